"""What is wrong with an argument is said before torch is imported, which takes seconds.

Checks of single options are callbacks; the others are called first in a command. The library checks everything again.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import typer

from taskres_cache.errors import OptionError, StorageError, UnknownNameError, WeightsError, near_matches

DEVICES = ("auto", "cpu", "cuda", "mps")
OTHER_DEVICES = ("mtia", "xpu")  # torch knows them too
PREFIXES = ("hf-hub:", "local-dir:")  # models that bring their own config

Check = Callable[[typer.CallbackParam, Any], Any]


def one_of(*known: str) -> Check:
    """Return a callback that refuses a value that is not one of some words."""

    def check(parameter: typer.CallbackParam, value: str | None) -> str | None:
        if value is not None and value not in known:
            near = near_matches(value, known)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise OptionError(f"{_option(parameter)} must be one of {', '.join(known)}, got {value!r}{meant}")
        return value

    return check


def at_least(least: Literal[0, 1]) -> Check:
    """Return a callback that refuses a negative number, and 0 unless it is the least."""

    def check(parameter: typer.CallbackParam, value: int | None) -> int | None:
        if value is not None and value < least:
            needed = "be positive" if least == 1 else "not be negative"
            raise OptionError(f"{_option(parameter)} must {needed}, got {value}")
        return value

    return check


def device(value: str) -> str:
    """Refuse a device that no machine has; whether this one has it, only torch knows."""
    kind, _, number = value.partition(":")
    if kind not in (*DEVICES, *OTHER_DEVICES) or (number and not number.isdecimal()):
        raise UnknownNameError("--device", value, DEVICES, "use auto, cpu, cuda, cuda:1 or mps")
    return value


def folder(parameter: typer.CallbackParam, value: Path | None) -> Path | None:
    """Refuse a folder to write to that is something else."""
    if value is not None and value.exists() and not value.is_dir():
        raise StorageError(f"{_option(parameter)} {value} cannot be written: it is not a folder; choose another one")
    return value


def checkpoint_path(value: str | None) -> str | None:
    """Refuse the path of a checkpoint that does not exist; a word without slash or suffix may be a tag."""
    if value is not None and (Path(value).suffix or len(Path(value).parts) > 1) and not Path(value).exists():
        raise WeightsError(f"checkpoint {value} does not exist; pass the path of the file that the run was made with")
    return value


def checkpoint(backbone: str, pretrained: str | None) -> None:
    """Refuse a model that open_clip does not have, a tag that the model does not have, and a file that is missing."""
    from taskres_cache.datasets.word_lists import clip_models, clip_tags

    if backbone.startswith(PREFIXES):
        return
    name = backbone.replace("/", "-")
    if name not in clip_models():
        remedy = "pass an open_clip model, hf-hub:OWNER/MODEL, local-dir:FOLDER or glyph-clip"
        raise UnknownNameError("backbone", name, clip_models(), remedy)
    if pretrained is None or Path(pretrained).is_file():
        return
    tags = clip_tags(name)
    if tags and pretrained.lower().replace("-", "_") not in tags:
        if Path(pretrained).suffix or len(Path(pretrained).parts) > 1:
            raise WeightsError(
                f"checkpoint {pretrained} does not exist; pass the path of a local file or a tag of {name}"
            )
        remedy = f"tags of {name}: {', '.join(tags)}; or pass the path of a local checkpoint file"
        raise UnknownNameError(f"tag of {name}", pretrained, tags, remedy)


def datasets(names: Sequence[str]) -> None:
    """Refuse names that are not known data sets."""
    from taskres_cache.datasets import ENTRIES

    for name in names:
        if name not in ENTRIES:
            raise UnknownNameError("data set", name, ENTRIES, "pass names that `taskres datasets` lists")


def splits(shots: Sequence[int], seeds: Sequence[int]) -> None:
    """Refuse shots that are not positive."""
    from taskres_cache.datasets import refuse_unusable_splits

    refuse_unusable_splits(shots, seeds)


def _option(parameter: typer.CallbackParam) -> str:
    return next((one for one in parameter.opts if one.startswith("--")), parameter.name or "")
