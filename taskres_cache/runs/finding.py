"""The folder of a run, and the runs at or below a path. Does not need torch."""

from hashlib import sha256
from pathlib import Path

from taskres_cache.caches.contents import DEFAULT_PROMPTS
from taskres_cache.caches.provenance import Provenance
from taskres_cache.datasets.sampling import shots_text
from taskres_cache.errors import OptionError, RunError
from taskres_cache.recipe import LONGEST_METHOD

CLASSIFIER_FILE = "classifier.safetensors"
METRICS_FILE = "metrics.json"
UNFINISHED = ".tmp"


def checkpoint_folder(above: Path, provenance: Provenance) -> Path:
    """Return the folder of one checkpoint below the folder of all runs or of all caches."""
    return above / f"{provenance.backbone}-{provenance.pretrained}"


def run_folder(out: Path, provenance: Provenance, method: str, half: str, shots: int, seed: int) -> Path:
    """Return the folder of a run; its path contains everything that distinguishes fits of one cache."""
    name = method + ("" if half == "all" else f"-{half}-classes")
    return (
        checkpoint_folder(out, provenance) / provenance.dataset / name / f"shots_{shots_text(shots)}" / f"seed_{seed}"
    )


def method_of_set(method: str, prompts: str) -> str:
    """Return the name of a method fitted with a set of prompts: the method's own for the filled templates."""
    name = method if prompts == DEFAULT_PROMPTS else f"{method}@{prompts}"
    digest = sha256(name.encode()).hexdigest()[:16]
    return name if len(name) <= LONGEST_METHOD else f"{name[: LONGEST_METHOD - 17]}-{digest}"


def find_runs(path: Path) -> list[Path]:
    """Return the run folders at or below a path, by shots, then seed; raises RunError if there is none."""
    if path.is_file():
        return [path.parent]
    found = {file.parent for file in path.rglob(CLASSIFIER_FILE) if not is_unfinished(file.parent)}
    if not found:
        raise RunError(f"no {CLASSIFIER_FILE} at or below {path}; pass a run folder that `taskres fit` wrote")
    return sorted(found, key=lambda folder: [_as_number(part) for part in folder.parts])


def folders_of_run(folder: Path) -> list[Path]:
    """Return the folders that may hold a run: the folder itself, and those of runs of other inputs, next to it."""
    return [folder, *sorted(folder.parent.glob(f"{folder.name}-*"))]


def is_unfinished(folder: Path) -> bool:
    """Return True for the folder of a run that is being written, or was when its process was killed."""
    return folder.name.startswith(".") and folder.name.endswith(UNFINISHED)


def find_run(path: Path) -> Path:
    """Return the one run at or below a path: a run folder, its classifier file, or a folder above it.

    Raises
    ------
    OptionError
        There are several.
    RunError
        There is none.
    """
    if path.is_file() or (path / CLASSIFIER_FILE).is_file():
        return path.parent if path.name == CLASSIFIER_FILE else path
    folders = find_runs(path)
    if len(folders) > 1:
        raise OptionError(f"{path} holds {len(folders)} runs; pass one of them, such as {folders[-1]}")
    return folders[0]


def _as_number(part: str) -> tuple[str, int]:
    """Return a folder name as a sort key that puts `shots_16` after `shots_8`, and `shots_all` last."""
    word, _, number = part.rpartition("_")
    return (word, int(number)) if number.isdigit() else (part, 0)
