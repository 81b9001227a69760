"""From class names to prompts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from taskres_cache.datasets.word_lists import prompt_ensemble
from taskres_cache.errors import OptionError, UnknownNameError

PromptForm = Literal["spaces", "raw"]
PROMPT_FORMS: tuple[str, ...] = get_args(PromptForm)

# Name of an ensemble -> open_clip's list.
ENSEMBLES = {"imagenet-80": "OPENAI_IMAGENET_TEMPLATES", "imagenet-7": "SIMPLE_IMAGENET_TEMPLATES"}


def fill_templates(templates: Sequence[str], classnames: Sequence[str], form: str = "spaces") -> list[list[str]]:
    """Return the prompts, classes by templates.

    Parameters
    ----------
    templates : (T,) each with one `{}`.
    classnames : (C,) as the data set has them.
    form : "spaces" turns underscores into spaces, as the authors' zero-shot code does; "raw" leaves the names alone,
        as their trainer does.

    Raises
    ------
    OptionError : a template without exactly one `{}`, or an unknown form.
    """
    if form not in PROMPT_FORMS:
        raise OptionError(f"classnames must be one of {', '.join(PROMPT_FORMS)}, got {form!r}")
    for template in templates:
        if template.count("{}") != 1:
            raise OptionError(f"template {template!r} must have exactly one {{}} where the class name goes")
    spoken = [name.replace("_", " ") if form == "spaces" else name for name in classnames]
    return [[template.replace("{}", name) for template in templates] for name in spoken]


def read_templates(file_or_ensemble: str) -> tuple[str, ...]:
    """Return the prompts of an ensemble (`imagenet-80`, `imagenet-7`), or of a text file with one on each line.

    Raises
    ------
    UnknownNameError : neither an ensemble nor a file.
    OptionError : a line without exactly one `{}`, named with its number, or no line at all.
    """
    if file_or_ensemble in ENSEMBLES:
        return prompt_ensemble(ENSEMBLES[file_or_ensemble])
    file = Path(file_or_ensemble)
    if not file.is_file():
        raise UnknownNameError(
            "templates", file_or_ensemble, ENSEMBLES, f"pass a text file or {' or '.join(ENSEMBLES)}"
        )
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"templates {file} cannot be read ({error}); pass a text file in UTF-8") from error
    for number, line in enumerate(lines, start=1):
        if line and line.count("{}") != 1:
            raise OptionError(f"{file}, line {number}: {line!r} must have exactly one {{}} where the class name goes")
    templates = tuple(dict.fromkeys(line for line in lines if line))
    if not templates:
        raise OptionError(f"{file} holds no template; write one on each line, such as: a photo of a {{}}.")
    return templates
