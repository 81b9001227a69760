"""Which runs below a folder a command uses: the only one, the best one, or all of them."""

from pathlib import Path

from taskres_cache.errors import OptionError, RunError
from taskres_cache.runs.finding import CLASSIFIER_FILE, find_run, find_runs
from taskres_cache.runs.metrics import Metrics
from taskres_cache.runs.run import read_classifier, read_metrics
from taskres_cache.runs.several.ensemble import Ensemble


def best_run(path: Path) -> Path:
    """Return the run at or below a path with the highest validation accuracy; of equal ones, that with fewer shots.

    Test accuracies are not read: a run chosen by them would be measured on the images that chose it.

    Raises
    ------
    OptionError
        The runs have different classes or encoders.
    RunError
        There is no run, or none has a validation accuracy.
    """
    folders = _folders(path)
    Ensemble(tuple(read_classifier(folder) for folder in folders))  # refuses runs that cannot be compared
    known = {folder: metrics for folder in folders if (metrics := read_metrics(folder)).val_accuracy is not None}
    if not known:
        raise RunError(f"no run below {path} has a validation accuracy; pass one run, such as {folders[-1]}")
    return max(known, key=lambda folder: _rank(known[folder]))  # of equals the first, in the order of `find_runs`


def chosen_runs(path: Path, best: bool, ensemble: bool) -> list[Path]:
    """Return the run folders that a command uses: the only one at a path, the best one, or all.

    Raises
    ------
    OptionError
        Both are asked for; or neither, and there are several runs.
    RunError
        There is no run.
    """
    if best and ensemble:
        raise OptionError("--best uses one run and --ensemble all of them; pass one of the two")
    if best:
        return [best_run(path)]
    return _folders(path) if ensemble else [_only_run(path)]


def read_ensemble(folders: list[Path]) -> Ensemble:
    """Return the classifiers of run folders, checked to be of one encoder and the same classes."""
    return Ensemble(tuple(read_classifier(folder) for folder in folders))


def _only_run(path: Path) -> Path:
    """Return the one run at or below a path; of several, the error names the two options."""
    try:
        return find_run(path)
    except OptionError as error:
        raise OptionError(f"{error}, or pass --best or --ensemble") from error


def _folders(path: Path) -> list[Path]:
    """Return the run folders at or below a path; a run folder is itself, whatever lies below it."""
    return [find_run(path)] if (path / CLASSIFIER_FILE).is_file() else find_runs(path)


def _rank(metrics: Metrics) -> tuple[float, int]:
    """Return a key that is larger for a better run."""
    return metrics.val_accuracy or 0.0, -metrics.shots
