"""Shell completion: known names, and caches and runs in the current folder.

If no name matches, nothing is offered and the shell completes files itself: it knows about quotes, `~` and slashes.
Nothing here imports torch, because the user waits.
"""

import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import wraps
from pathlib import Path

import typer

Offer = str | tuple[str, str]  # a word, or a word and its description, which zsh and fish show
Completer = Callable[[typer.Context, str], Iterable[Offer]]

RUNS = Path("runs")
RUN_FILES = "*/*/*/shots_*/seed_*/classifier.safetensors"  # below RUNS
PLAIN = re.compile(r"\w[\w./+,-]*")  # words that need no quotes in any shell


def quiet(offer: Completer) -> Completer:
    """Return a completer that offers only words that need no quotes, and nothing on errors: a prompt is no log."""

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
    """Offer the bases that need no file, as a comma-separated list."""
    from taskres_cache.recipe import BUILT_BASES

    return _continued(incomplete, BUILT_BASES)


def published(field: str) -> Completer:
    """Return a completer that offers the data sets, methods or backbones of published figures."""

    @quiet
    def offered(context: typer.Context, incomplete: str) -> Iterable[Offer]:
        from taskres_cache.reporting.published.figures import PUBLISHED_AS, read_figures

        return PUBLISHED_AS if field == "method" else dict.fromkeys(getattr(one, field) for one in read_figures())

    return offered


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
    """Offer the known data sets, and the folders, lists and archives in the current folder."""
    from taskres_cache.datasets import ENTRIES
    from taskres_cache.datasets.forms.opening import FORMS

    known = [
        (name, entry.title.replace("'", "’"))  # Typer's script for zsh loses the other apostrophe
        for name, entry in ENTRIES.items()
        if name.startswith(incomplete)
    ]
    if not known:
        return []
    files = (file.name for file in Path().iterdir() if file.name.startswith(incomplete) and file.is_file())
    return [*known, *_folders(incomplete), *sorted(name for name in files if any(f.recognises(name) for f in FORMS))]


@quiet
def several_datasets(context: typer.Context, incomplete: str) -> Iterable[Offer]:
    """Offer the known data sets, as a comma-separated list."""
    from taskres_cache.datasets import ENTRIES

    return _continued(incomplete, ENTRIES)


@quiet
def methods(context: typer.Context, incomplete: str) -> Iterable[Offer]:
    """Offer names of methods, also in a list."""
    from taskres_cache.methods.names import TASKRES, method_names

    return _continued(incomplete, (TASKRES, *method_names(), "all"))


@quiet
def caches(context: typer.Context, incomplete: str) -> Iterable[Offer]:
    """Offer the names of cached data sets, with the checkpoints they are cached for."""
    folder = Path(context.params.get("cache_dir") or os.environ.get("TASKRES_CACHE_DIR") or "cache")
    checkpoints: dict[str, list[str]] = {}
    for file in sorted(folder.glob("*/*.h5")):
        checkpoints.setdefault(file.stem, []).append(file.parent.name)
    return [(name, f"cached for {' and '.join(found)}") for name, found in checkpoints.items()]


@quiet
def runs(context: typer.Context, incomplete: str) -> Iterable[Offer]:
    """Offer run folders up to the level where they differ, so that levels with a single folder need no key."""
    found = sorted(file.parent.as_posix() for file in RUNS.glob(RUN_FILES))
    matching = [run for run in found if run.startswith(incomplete)]
    if len(matching) < 2:
        return matching
    shared = len(Path(os.path.commonpath(matching)).parts)
    branches = dict.fromkeys(Path(*Path(run).parts[: shared + 1]).as_posix() for run in matching)
    return [branch if branch in matching else f"{branch}/" for branch in branches]


@quiet
def runs_or_caches(context: typer.Context, incomplete: str) -> Iterable[Offer]:
    """Offer runs, or caches after `--on` and with `--zero-shot`, as `taskres eval` takes them."""
    given = context.params
    return (caches if given.get("zero_shot") or given.get("on") else runs)(context, incomplete)


@quiet
def backbones(context: typer.Context, incomplete: str) -> Iterable[Offer]:
    """Offer the models of open_clip and the bundled one."""
    from taskres_cache.datasets.word_lists import clip_models

    return clip_models()


def _word(offer: Offer) -> str:
    return offer if isinstance(offer, str) else offer[0]


def _continued(incomplete: str, words: Iterable[str]) -> list[str]:
    """Return the list typed so far, once for each missing word, with that word added."""
    before, comma, _ = incomplete.rpartition(",")
    return [f"{before}{comma}{word}" for word in words if word not in before.split(",")]


def _folders(start: str) -> list[str]:
    """Return the folders in the current one whose names start with `start`, with a slash."""
    return sorted(f"{entry.name}/" for entry in Path().iterdir() if entry.name.startswith(start) and entry.is_dir())
