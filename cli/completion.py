"""What the shell offers while a command is being typed: names that are known, and what lies in this folder.

Where nothing goes on from what has been typed, nothing is offered, and the shell completes files as it always does. So
a path is left to the shell, which knows about quotes, `~` and slashes. Nothing here imports torch: a person waits.
"""

import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import wraps
from pathlib import Path

import typer

Offer = str | tuple[str, str]  # a word, or a word and what it is, which zsh and fish show beside it
Completer = Callable[[typer.Context, str], Iterable[Offer]]

RUNS = Path("runs")
RUN_FILES = "*/*/*/shots_*/seed_*/classifier.safetensors"  # below the folder of all runs
PLAIN = re.compile(r"\w[\w./+,-]*")  # what no shell wants quotes around; it gives them to what it completes by itself


def quiet(offer: Completer) -> Completer:
    """Return a completer that offers what can stand unquoted, and nothing where this one fails: a prompt is no log."""

    @wraps(offer)
    def offered(context: typer.Context, incomplete: str) -> Iterable[Offer]:
        with suppress(Exception):
            return [one for one in offer(context, incomplete) if PLAIN.fullmatch(_word(one))]
        return []

    return offered


def one_of(*words: str) -> Completer:
    """Return a completer that offers these words."""

    def offered(context: typer.Context, incomplete: str) -> Iterable[Offer]:
        return words

    return offered


def choices(field: str) -> Completer:
    """Return a completer that offers the possible values of a field of the recipe."""

    @quiet
    def offered(context: typer.Context, incomplete: str) -> Iterable[Offer]:
        from taskres_cache.recipe import CHOICES

        return CHOICES[field]

    return offered


@quiet
def bases(context: typer.Context, incomplete: str) -> Iterable[Offer]:
    """Offer the bases that need no file, several of them with commas."""
    from taskres_cache.recipe import BUILT_BASES

    return _continued(incomplete, BUILT_BASES)


@quiet
def prompt_forms(context: typer.Context, incomplete: str) -> Iterable[Offer]:
    """Offer the ways to write class names in prompts."""
    from taskres_cache.datasets.prompts import PROMPT_FORMS

    return PROMPT_FORMS


@quiet
def ensembles(context: typer.Context, incomplete: str) -> Iterable[Offer]:
    """Offer the named sets of prompts."""
    from taskres_cache.datasets.prompts import ENSEMBLES

    return ENSEMBLES


@quiet
def datasets(context: typer.Context, incomplete: str) -> Iterable[Offer]:
    """Offer the known data sets, and the folders here beside them."""
    from taskres_cache.datasets import ENTRIES

    known = [
        (name, entry.title.replace("'", "’"))  # Typer's script for zsh loses the other apostrophe
        for name, entry in ENTRIES.items()
        if name.startswith(incomplete)
    ]
    return [*known, *_folders(incomplete)] if known else []


@quiet
def several_datasets(context: typer.Context, incomplete: str) -> Iterable[Offer]:
    """Offer the known data sets, several of them with commas."""
    from taskres_cache.datasets import ENTRIES

    return _continued(incomplete, ENTRIES)


@quiet
def caches(context: typer.Context, incomplete: str) -> Iterable[Offer]:
    """Offer the names of cached data sets, each with the checkpoints that it is cached for."""
    folder = Path(context.params.get("cache_dir") or "cache")
    checkpoints: dict[str, list[str]] = {}
    for file in sorted(folder.glob("*/*.h5")):
        checkpoints.setdefault(file.stem, []).append(file.parent.name)
    return [(name, f"cached for {' and '.join(found)}") for name, found in checkpoints.items()]


@quiet
def runs(context: typer.Context, incomplete: str) -> Iterable[Offer]:
    """Offer run folders below `runs` up to where they part, so that levels with one folder need no key."""
    found = sorted(file.parent.as_posix() for file in RUNS.glob(RUN_FILES))
    matching = [run for run in found if run.startswith(incomplete)]
    if len(matching) < 2:
        return matching
    shared = len(Path(os.path.commonpath(matching)).parts)
    branches = dict.fromkeys(Path(*Path(run).parts[: shared + 1]).as_posix() for run in matching)
    return [branch if branch in matching else f"{branch}/" for branch in branches]


@quiet
def runs_or_caches(context: typer.Context, incomplete: str) -> Iterable[Offer]:
    """Offer what `taskres eval` takes: a run first, caches after `--on` or with `--zero-shot`."""
    given = context.params
    return (caches if given.get("zero_shot") or given.get("on") else runs)(context, incomplete)


@quiet
def backbones(context: typer.Context, incomplete: str) -> Iterable[Offer]:
    """Offer open_clip's models and the bundled one."""
    from taskres_cache.datasets.word_lists import clip_models

    return clip_models()


def _word(offer: Offer) -> str:
    return offer if isinstance(offer, str) else offer[0]


def _continued(incomplete: str, words: Iterable[str]) -> list[str]:
    """Return a list with commas as far as it is complete, with each word that it lacks."""
    before, comma, _ = incomplete.rpartition(",")
    return [f"{before}{comma}{word}" for word in words if word not in before.split(",")]


def _folders(start: str) -> list[str]:
    """Return the folders here whose names start so, with a slash."""
    return sorted(f"{entry.name}/" for entry in Path().iterdir() if entry.name.startswith(start) and entry.is_dir())
