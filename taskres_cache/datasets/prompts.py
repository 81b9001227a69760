"""Prompts: templates filled with class names.

Axes: C classes, T templates.
"""

import os
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
    """Return the prompts as lists of shape (C, T).

    Parameters
    ----------
    templates : sequence of str
        Templates (T,) with one `{}` each.
    classnames : sequence of str
        Class names (C,) as the data set has them.
    form : {"spaces", "raw"}
        "spaces" replaces underscores by spaces, as the authors' zero-shot code does; "raw" keeps the names, as their
        trainer does.

    Raises
    ------
    OptionError
        A template does not have exactly one `{}`, or `form` has another value.
    """
    if form not in PROMPT_FORMS:
        raise OptionError(f"classnames must be one of {', '.join(PROMPT_FORMS)}, got {form!r}")
    for template in templates:
        if template.count("{}") != 1:
            raise OptionError(f"template {template!r} must have exactly one {{}} where the class name goes")
    return [[template.replace("{}", name) for template in templates] for name in _in_form(classnames, form)]


def _in_form(names: Sequence[str], form: str) -> list[str]:
    return [name.replace("_", " ") if form == "spaces" else name for name in names]


def own_or_filled(
    prompts: Sequence[Sequence[str]], templates: Sequence[str], names: Sequence[str], form: str
) -> tuple[tuple[str, ...], ...]:
    """Return the sentences of each class; those of a class without any are the filled templates.

    Parameters
    ----------
    prompts : sequence of sequence of str
        Sentences of each class (C lists); `{}` in them stands for the name.
    templates, names, form : sequence of str, sequence of str, {"spaces", "raw"}
        As in `fill_templates`.
    """
    without = [name for name, own in zip(names, prompts, strict=True) if not own]
    filled = iter(fill_templates(templates, without, form) if without else ())
    return tuple(
        tuple(text.replace("{}", name) for text in own) or tuple(next(filled))
        for name, own in zip(_in_form(names, form), prompts, strict=True)
    )


def read_templates(file_or_ensemble: str) -> tuple[str, ...]:
    """Return the templates of an ensemble (`imagenet-80`, `imagenet-7`), or of a text file with one per line.

    Raises
    ------
    UnknownNameError
        `file_or_ensemble` is neither an ensemble nor a file.
    OptionError
        The file could not be read, has no template, or has a line without exactly one `{}`; the message names the line.
    """
    if file_or_ensemble in ENSEMBLES:
        return prompt_ensemble(ENSEMBLES[file_or_ensemble])
    file = Path(file_or_ensemble)
    if not os.path.isfile(file):  # False too for a text longer than a name can be, where is_file raises
        raise UnknownNameError(
            "templates", file_or_ensemble, ENSEMBLES, f"pass a text file or {' or '.join(ENSEMBLES)}"
        )
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"could not read the templates in {file} ({error}); pass a UTF-8 text file") from error
    for number, line in enumerate(lines, start=1):
        if line and line.count("{}") != 1:
            raise OptionError(f"{file}, line {number}: {line!r} must have exactly one {{}} where the class name goes")
    templates = tuple(dict.fromkeys(line for line in lines if line))
    if not templates:
        raise OptionError(f"{file} has no template; write one per line, such as: a photo of a {{}}.")
    return templates
