"""What the text tower reads of the prompts, before anything is encoded: cut class names, classes that read the same.

Axes: C classes, T templates, L tokens that the tower reads.
"""

import re
from collections.abc import Sequence

from taskres_cache.datasets import Dataset
from taskres_cache.datasets.prompts import fill_templates
from taskres_cache.encoders.backbone import Backbone
from taskres_cache.errors import OptionError

SHOWN = 5  # groups of classes in a note
SHOWN_LETTERS = 60  # of a prompt or name in a message


def checked_prompts(dataset: Dataset, backbone: Backbone, form: str) -> tuple[str, ...]:
    """Return notes on prompts that are cut off after the class name, and on classes that read alike.

    Raises
    ------
    OptionError
        A template or `form` is invalid, or the class name of a prompt is cut off.
    """
    prompts = fill_templates(dataset.templates, dataset.classnames, form)  # (C, T)
    up_to_name = fill_templates([_up_to_name(one) for one in dataset.templates], dataset.classnames, form)
    read: dict[bytes, list[int]] = {}
    cut: list[str] = []
    for label, row in enumerate(prompts):
        tokens = backbone.tokenizer(row)  # (T, L)
        read.setdefault(tokens.numpy().tobytes(), []).append(label)
        is_cut = backbone.are_cut(row, tokens)
        cut += [prompt for prompt, long in zip(row, is_cut, strict=True) if long]
        if any(is_cut):
            _refuse_cut_name(dataset, label, up_to_name[label], backbone, tokens.shape[1])
    total = sum(map(len, prompts))
    notes = _notes_on_cut(cut, total, backbone)
    return (*notes, *_notes_on_alike(dataset.classnames, [group for group in read.values() if len(group) > 1]))


def _up_to_name(template: str) -> str:
    """Return a template up to the class name; templates without one are refused by `fill_templates`."""
    return template[: template.index("{}") + 2] if "{}" in template else template


def _refuse_cut_name(dataset: Dataset, label: int, up_to_name: Sequence[str], backbone: Backbone, length: int) -> None:
    """Raise OptionError if the tower does not read a prompt up to the end of the class name."""
    for template, hidden in zip(dataset.templates, backbone.are_cut(up_to_name), strict=True):
        if hidden:
            raise OptionError(
                f"{backbone.name} reads {length} tokens, and the prompt {_short(template)} is longer before the end of "
                f"the class name {_short(dataset.classnames[label])}, which is cut off; shorten the prompt "
                "(--templates FILE) or the name of the class"
            )


def _notes_on_cut(cut: Sequence[str], total: int, backbone: Backbone) -> tuple[str, ...]:
    if not cut:
        return ()
    length = backbone.tokenizer([""]).shape[1]
    return (
        f"{len(cut)} of {total} prompts are longer than the {length} tokens that {backbone.name} reads; what comes "
        f"after the class name is cut off, as in {_short(cut[0])}",
    )


def _notes_on_alike(classnames: Sequence[str], same: Sequence[Sequence[int]]) -> tuple[str, ...]:
    """Return notes on groups of classes whose prompts have the same tokens, and on names that are nearly the same."""
    by_letters: dict[str, list[int]] = {}
    for label, name in enumerate(classnames):
        by_letters.setdefault(re.sub(r"[\s_]+", "", name).casefold(), []).append(label)
    said = {label for group in same for label in group}
    similar = [group for group in by_letters.values() if len(group) > 1 and not said.issuperset(group)]
    return (
        *_note(classnames, same, "have the same text features: text cannot tell them apart"),
        *_note(classnames, similar, "differ only in case, spaces or underscores"),
    )


def _note(classnames: Sequence[str], groups: Sequence[Sequence[int]], what: str) -> tuple[str, ...]:
    listed = "; ".join(
        " and ".join(f"{_short(classnames[label])} ({label})" for label in one) for one in groups[:SHOWN]
    )
    more = f"; and {len(groups) - SHOWN} more" if len(groups) > SHOWN else ""
    return (f"classes {what}: {listed}{more}",) if groups else ()


def _short(text: str) -> str:
    return repr(text if len(text) <= SHOWN_LETTERS else f"{text[:SHOWN_LETTERS]}...")
