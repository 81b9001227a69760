"""Where a fit writes a run: a result of other inputs is never replaced, and no reader finds a run half written."""

import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from secrets import token_hex
from shutil import rmtree
from time import time

from taskres_cache.errors import StorageError
from taskres_cache.runs.classifier import Classifier
from taskres_cache.runs.finding import CLASSIFIER_FILE, METRICS_FILE, UNFINISHED, is_unfinished
from taskres_cache.runs.metrics import Metrics
from taskres_cache.runs.run import Run, recorded_inputs, write_run

DIGITS = 8  # of inputs_sha256 in the name of a folder
SECONDS_UNTIL_LEFTOVER = 3600.0  # a run is written in less than a second


def place_run(folder: Path, classifier: Classifier, metrics: Metrics) -> Run:
    """Write a run to its folder, or next to it if the folder holds a run of other inputs, or one that is unreadable.

    A folder of a run with the same inputs and recipe is replaced: the result is the same. A new folder appears
    complete, so that two processes cannot write to the same one.

    Raises
    ------
    StorageError
        The folder is not writable.
    """
    _discard_leftovers(folder.parent)
    kept = None
    for target in _names(folder, metrics.inputs_sha256):
        written = _created(target, classifier, metrics)
        if written is None and _holds_same_run(target, metrics):
            written = write_run(target, classifier, metrics)
        if written is not None:
            return Run(target, written, kept)
        kept = kept or target
    raise AssertionError("names are endless")


def path_from(folder: Path, file: Path) -> str:
    """Return the path of a file relative to a folder; empty if there is none, as between drives."""
    try:
        return Path(os.path.relpath(file.resolve(), folder.resolve())).as_posix()
    except ValueError:
        return ""


def _names(folder: Path, inputs_sha256: str) -> Iterator[Path]:
    """Yield the folders to try: `seed_1`, `seed_1-<digits>`, `seed_1-<digits>-2` and so on."""
    yield folder
    beside = folder.with_name(f"{folder.name}-{inputs_sha256[:DIGITS]}")
    yield beside
    for number in count(2):
        yield beside.with_name(f"{beside.name}-{number}")


def _holds_same_run(folder: Path, metrics: Metrics) -> bool:
    """Return True if a folder holds no run, or what is readable of its run has the same inputs and recipe."""
    if not any((folder / name).exists() for name in (CLASSIFIER_FILE, METRICS_FILE)):
        return True
    recorded = recorded_inputs(folder)
    return bool(recorded) and all(
        inputs == metrics.inputs_sha256 and study in (None, metrics.study_sha256) and recipe == metrics.recipe
        for inputs, study, recipe in recorded
    )


def _created(folder: Path, classifier: Classifier, metrics: Metrics) -> Metrics | None:
    """Write a run to a new folder, which appears complete, and return its metrics; None if the folder exists."""
    if folder.exists():
        return None
    unfinished = folder.with_name(f".{folder.name}.{token_hex(8)}{UNFINISHED}")
    try:
        written = write_run(unfinished, classifier, metrics)
        os.rename(unfinished, folder)  # fails if another process has made the folder meanwhile
    except OSError as error:
        if folder.is_dir():
            return None
        raise StorageError(
            f"{folder} cannot be written ({error.strerror or error}); choose another folder, or free disk space"
        ) from error
    finally:
        rmtree(unfinished, ignore_errors=True)
    return written


def _discard_leftovers(parent: Path) -> None:
    """Remove folders that killed processes left unfinished."""
    with suppress(OSError):
        for folder in parent.iterdir():
            if is_unfinished(folder) and time() - folder.stat().st_mtime > SECONDS_UNTIL_LEFTOVER:
                rmtree(folder, ignore_errors=True)
