"""What the text tower reads of the prompts, before anything is encoded: cut class names, classes that read the same.

Axes: C classes, T templates, L tokens that the tower reads.
"""

import re
from collections.abc import Sequence
from hashlib import sha256
from typing import NamedTuple

from taskres_cache.datasets import Dataset
from taskres_cache.datasets.prompts import fill_templates
from taskres_cache.encoders.backbone import Backbone
from taskres_cache.errors import OptionError

SHOWN = 5  # groups of classes in a note
SHOWN_LETTERS = 60  # of a prompt or name in a message
COUNTED = 16  # times the tokens that the tower reads: as many tokens of a prompt are counted
PROMPTS_AT_ONCE = 256


class _Reading(NamedTuple):
    """What the tower reads of prompts: those that are cut off, by class, and groups of classes that read the same."""

    total: int
    cut: dict[int, list[str]]
    alike: list[list[int]]


def checked_prompts(dataset: Dataset, backbone: Backbone, form: str) -> tuple[str, ...]:
    """Return notes on prompts that are cut off, and on classes that read alike.

    Raises
    ------
    OptionError
        A template or `form` is invalid, or the class name of a prompt is cut off.
    """
    prompts = fill_templates(dataset.templates, dataset.names_in_prompts, form)  # (C, T)
    reading = _reading(prompts, backbone)
    _refuse_cut_names(dataset, sorted(reading.cut), form, backbone)
    return _notes(reading, dataset.classnames, backbone, "; what comes after the class name is cut off")


def checked_text(dataset: Dataset, backbone: Backbone, form: str) -> tuple[str, ...]:
    """Return the notes on templates and on a data set's own prompts; errors are those of `checked_prompts`."""
    notes, own = checked_prompts(dataset, backbone, form), dataset.sentences(form)
    of_own = () if own is None else notes_on_prompts(own, dataset.classnames, backbone)
    return tuple(dict.fromkeys((*notes, *of_own)))


def notes_on_prompts(
    prompts: Sequence[Sequence[str]], classnames: Sequence[str], backbone: Backbone
) -> tuple[str, ...]:
    """Return notes on complete sentences (C lists) that are cut off, and on classes that read alike."""
    return _notes(_reading(prompts, backbone), classnames, backbone, "; their end is cut off")


def _reading(prompts: Sequence[Sequence[str]], backbone: Backbone) -> _Reading:
    read: dict[bytes, list[int]] = {}
    cut: dict[int, list[str]] = {}
    for label, row in enumerate(prompts):
        tokens = backbone.tokenizer(list(row))  # (T, L)
        read.setdefault(sha256(tokens.numpy().tobytes()).digest(), []).append(label)
        long = [text for text, is_cut in zip(row, backbone.are_cut(row, tokens), strict=True) if is_cut]
        cut |= {label: long} if long else {}
    return _Reading(sum(map(len, prompts)), cut, [group for group in read.values() if len(group) > 1])


def _up_to_name(template: str) -> str:
    """Return a template up to the class name; templates without one are refused by `fill_templates`."""
    return template[: template.index("{}") + 2] if "{}" in template else template


def _refuse_cut_names(dataset: Dataset, labels: Sequence[int], form: str, backbone: Backbone) -> None:
    """Raise OptionError if the tower does not read a prompt of some classes up to the end of the class name."""
    names = [dataset.names_in_prompts[label] for label in labels]
    up_to_name = fill_templates([_up_to_name(one) for one in dataset.templates], names, form)
    for name, row in zip(names, up_to_name, strict=True):
        for template, hidden in zip(dataset.templates, backbone.are_cut(row), strict=True):
            if hidden:
                raise OptionError(
                    f"{backbone.name} reads {_length(backbone)} tokens, and the prompt {_short(template)} is longer "
                    f"before the end of the class name {_short(name)}, which is cut off; shorten the prompt "
                    "(--templates FILE) or the name of the class"
                )


def _notes(reading: _Reading, classnames: Sequence[str], backbone: Backbone, consequence: str) -> tuple[str, ...]:
    alike = _notes_on_alike(classnames, reading.alike)
    cut = [text for texts in reading.cut.values() for text in texts]
    if not cut:
        return alike
    most = max(
        _longest(cut[start : start + PROMPTS_AT_ONCE], backbone) for start in range(0, len(cut), PROMPTS_AT_ONCE)
    )
    return (
        f"{len(cut)} of {reading.total} prompts are longer than the {_length(backbone)} tokens that {backbone.name} "
        f"reads (the longest has {most}){consequence}, as in {_short(cut[0])}",
        *alike,
    )


def _length(backbone: Backbone) -> int:
    """Return L, the tokens that the text tower reads."""
    return int(backbone.tokenizer([""]).shape[1])


def _longest(prompts: Sequence[str], backbone: Backbone) -> int:
    """Return the number of tokens of the longest prompt, with begin and end, as far as they are counted."""
    padding = int(backbone.tokenizer([""]).mode().values)
    tokens = backbone.tokenizer(list(prompts), context_length=COUNTED * _length(backbone))
    return int((tokens != padding).sum(dim=1).max())


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
