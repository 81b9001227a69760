"""From class names to prompts."""

from collections.abc import Sequence
from typing import Literal, get_args

from taskres_cache.errors import OptionError

PromptForm = Literal["spaces", "raw"]
PROMPT_FORMS: tuple[str, ...] = get_args(PromptForm)


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
