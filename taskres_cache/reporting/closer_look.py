"""What a report tells, as plain values: runs grouped into studies, and a closer look at the best method of each.

Axes: N test images, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from taskres_cache.caches.class_halves import open_cache
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.errors import CacheError, OptionError, RunError
from taskres_cache.reporting.published_results import Figures, published_figures
from taskres_cache.runs.calibration import Reliability, reliability
from taskres_cache.runs.evaluation import class_rows, predictions_of
from taskres_cache.runs.measures import Predictions, class_accuracies, confusion_matrix
from taskres_cache.runs.run import METRICS_FILE, Classifier, Head, find_runs, own_cache, read_classifier, read_metrics
from taskres_cache.runs.study import RunResult
from taskres_cache.runs.summary import Summary, summarise

MOST_PAIRS, MOST_MISTAKES = 12, 24
NEEDED = {
    **dict.fromkeys(("dataset", "backbone", "pretrained", "method"), str),
    **dict.fromkeys(("shots", "seed"), int),
    **dict.fromkeys(("zero_shot_accuracy", "test_accuracy"), float),
}


@dataclass(frozen=True)
class ClassGain:
    """A class, its test images, and its accuracy in percent: zero-shot, and the mean of base + residual over seeds."""

    name: str
    images: int
    zero_shot: float
    adapted: float

    @property
    def gain(self) -> float:
        """In points."""
        return self.adapted - self.zero_shot


@dataclass(frozen=True)
class ConfusedPair:
    """Test images of one class that are taken for another: how many a fit, and their share of the class in percent."""

    name: str
    taken_for: str
    images: float
    share: float


@dataclass(frozen=True)
class Mistake:
    """A test image that fits take for something else.

    Parameters
    ----------
    path, stamp : of the image, as the cache has them.
    name, taken_for : of the classes.
    confidence : in percent, the mean of the fits that are wrong.
    fits : how many of them are.
    """

    path: str
    stamp: str
    name: str
    taken_for: str
    confidence: float
    fits: int


@dataclass(frozen=True)
class CloserLook:
    """What the fits of one method and shot count do on the test images, over all seeds.

    Parameters
    ----------
    classifier : of the first seed, for recipe and provenance, which all share.
    seeds : of the fits.
    chosen_by : why this method, in words.
    images : N.
    gains : (C,) classes in label order; those without a test image are left out.
    confusion : (C, C) mean number of images, by what they are (rows) and what they are taken for.
    pairs, mistakes : the most frequent, and the most certain first.
    untempered, tempered : confidence against accuracy, without the temperature and with it.
    temperatures : (seeds,)
    notes : what a reader should know.
    """

    classifier: Classifier
    seeds: tuple[int, ...]
    chosen_by: str
    images: int
    gains: tuple[ClassGain, ...]
    confusion: np.ndarray
    pairs: tuple[ConfusedPair, ...]
    mistakes: tuple[Mistake, ...]
    untempered: Reliability
    tempered: Reliability
    temperatures: tuple[float, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """All runs of one data set, checkpoint and half of the classes.

    Parameters
    ----------
    dataset, backbone, pretrained, half : what the runs have in common.
    runs, summaries : one by one, and summed up over seeds.
    figures : what others have published of it.
    closer : None where the cache is not there to look closer.
    unseen : why it is not.
    """

    dataset: str
    backbone: str
    pretrained: str
    half: str
    runs: tuple[RunResult, ...]
    summaries: tuple[Summary, ...]
    figures: tuple[Figures, ...]
    closer: CloserLook | None
    unseen: str = ""

    @property
    def title(self) -> str:
        """The data set, and the half of it."""
        return self.dataset if self.half == "all" else f"{self.dataset}, {self.half} classes"

    @property
    def methods(self) -> dict[str, list[Summary]]:
        """Method -> its summaries, shots rising."""
        found: dict[str, list[Summary]] = {}
        for summary in self.summaries:
            found.setdefault(summary.method, []).append(summary)
        return found


def gather_studies(paths: Sequence[Path], cache_dir: Path, device: torch.device) -> list[Study]:
    """Return the runs at or below some paths as studies, in the order in which they are found.

    Parameters
    ----------
    paths : run folders, or folders above several; a run that is found twice counts once.
    cache_dir : where caches live, for runs whose own is no longer where it was.
    device : to ask the classifiers on.

    Raises
    ------
    RunError : no run, or one that is not intact.
    OptionError : two runs of the same method, shots and seed in one study, which would count as two seeds.
    """
    folders = list({folder.resolve(): folder for path in paths for folder in find_runs(path)}.values())
    groups: dict[tuple[str, ...], list[RunResult]] = {}
    for folder in folders:
        run = RunResult(folder, read_metrics(folder))
        groups.setdefault(_subject(run), []).append(run)
    for runs in groups.values():
        _refuse_doubles(runs)
    return [_study(runs, cache_dir, device) for runs in groups.values()]


def _subject(run: RunResult) -> tuple[str, ...]:
    """Return what the runs of a study have in common; raises RunError when the metrics lack what a report needs."""
    wrong = [name for name, kind in NEEDED.items() if not isinstance(run.metrics.get(name), kind)]
    if wrong:
        raise RunError(
            f"{run.folder / METRICS_FILE} lacks {', '.join(wrong)}, or holds no number there; fit the run again"
        )
    names = [run.metrics[name] for name in ("dataset", "backbone", "pretrained")]
    return (*names, run.metrics.get("weights_sha256", ""), run.metrics.get("classes", "all"))


def _refuse_doubles(runs: Sequence[RunResult]) -> None:
    """Raise OptionError where a seed of a method would count twice, as from two folders of runs."""
    seen: dict[tuple[str, int, int], Path] = {}
    for run in runs:
        fit = run.metrics["method"], run.metrics["shots"], run.metrics["seed"]
        if fit in seen:
            raise OptionError(f"{seen[fit]} and {run.folder} are the same fit; pass the folder of one of them")
        seen[fit] = run.folder


def _study(runs: Sequence[RunResult], cache_dir: Path, device: torch.device) -> Study:
    dataset, backbone, pretrained, _, half = _subject(runs[0])
    runs = sorted(runs, key=lambda run: not run.metrics["method"].startswith("taskres-regular"))  # the paper's first
    summaries = tuple(summarise(run.metrics for run in runs))
    figures = tuple(published_figures(dataset, backbone, pretrained)) if half == "all" else ()
    chosen, chosen_by = _most_promising(summaries)
    fits = [run for run in runs if (run.metrics["method"], run.metrics["shots"]) == (chosen.method, chosen.shots)]
    closer, unseen = None, ""
    try:
        closer = look_closer(fits, chosen_by, cache_dir, device)
    except (CacheError, RunError) as error:
        unseen = str(error)
    return Study(dataset, backbone, pretrained, half, tuple(runs), summaries, figures, closer, unseen)


def _most_promising(summaries: Sequence[Summary]) -> tuple[Summary, str]:
    """Return the summary to look closer at, and why: of the most shots the best by val; test has no say in it."""
    most = max(summary.shots for summary in summaries)
    candidates = [summary for summary in summaries if summary.shots == most]
    if len(candidates) == 1:
        return candidates[0], "the method with the most shots"
    if any(summary.mean_val_accuracy is None for summary in candidates):
        return candidates[0], "the first of the methods"
    return max(candidates, key=lambda summary: summary.mean_val_accuracy or 0.0), "the best by val accuracy"


def look_closer(fits: Sequence[RunResult], chosen_by: str, cache_dir: Path, device: torch.device) -> CloserLook:
    """Return what fits of one method and shot count do on the test images of their own cache.

    Raises
    ------
    CacheError, RunError : the cache is not there, damaged, or of another checkpoint or other classes.
    """
    classifiers = [read_classifier(fit.folder) for fit in fits]
    first = classifiers[0]
    cache = open_cache(own_cache(fits[0].folder, first, cache_dir), first.half)
    rows = cache.rows("test")
    heads = [_head_for(classifier, cache) for classifier in classifiers]
    said = predictions_of(cache, rows, [Head(cache.text_features), *heads], device)
    if said is None:
        raise RunError(f"{cache.path} has no test image")
    zero_shot, *adapted = said
    confusion = np.mean([confusion_matrix(one, len(cache.classnames)) for one in adapted], axis=0)  # (C, C)
    pooled = np.concatenate([one.right for one in adapted])
    return CloserLook(
        classifier=first,
        seeds=tuple(classifier.seed for classifier in classifiers),
        chosen_by=chosen_by,
        images=len(rows),
        gains=_gains(cache.classnames, zero_shot, adapted),
        confusion=confusion,
        pairs=_pairs(cache.classnames, confusion),
        mistakes=_mistakes(cache, rows, adapted),
        untempered=reliability(np.concatenate([one.untempered for one in adapted]), pooled),
        tempered=reliability(np.concatenate([one.confidences for one in adapted]), pooled),
        temperatures=tuple(classifier.temperature for classifier in classifiers),
        notes=_notes(fits, adapted, cache),
    )


def _head_for(classifier: Classifier, cache: FeatureCache) -> Head:
    """Return a classifier's head with its rows in the order of a cache's classes."""
    head = classifier.head
    return Head(head.weights[class_rows(classifier, cache)], head.image_shift, head.temperature)


def _gains(classnames: Sequence[str], zero_shot: Predictions, adapted: Sequence[Predictions]) -> tuple[ClassGain, ...]:
    counts = np.bincount(zero_shot.labels, minlength=len(classnames)).tolist()
    before = class_accuracies(zero_shot, len(classnames))
    after = zip(*(class_accuracies(one, len(classnames)) for one in adapted), strict=True)
    return tuple(
        ClassGain(name, count, old, float(np.mean(new)))
        for name, count, old, new in zip(classnames, counts, before, after, strict=True)
        if old is not None
    )


def _pairs(classnames: Sequence[str], confusion: np.ndarray) -> tuple[ConfusedPair, ...]:
    """Return the pairs of classes with the most images; of equal ones those with the greater share first."""
    wrong = confusion * ~np.eye(len(classnames), dtype=bool)
    shares = 100.0 * wrong / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    order = np.lexsort((-shares.ravel(), -wrong.ravel()))[:MOST_PAIRS]
    places = [divmod(int(cell), len(classnames)) for cell in order]
    return tuple(
        ConfusedPair(classnames[row], classnames[column], float(wrong[row, column]), float(shares[row, column]))
        for row, column in places
        if wrong[row, column] > 0
    )


def _mistakes(cache: FeatureCache, rows: np.ndarray, adapted: Sequence[Predictions]) -> tuple[Mistake, ...]:
    """Return the images that most fits are most certain of, and wrong; the class named is that of the surest fit."""
    wrong = np.stack([~one.right for one in adapted])  # (fits, N)
    confidences = np.stack([one.confidences for one in adapted]) * wrong
    order = np.argsort(-confidences.sum(axis=0), kind="stable")[:MOST_MISTAKES]
    files = cache.files()
    found = []
    for place in order.tolist():
        if not wrong[:, place].any():
            break
        path, stamp = files[rows[place]]
        surest = adapted[int(confidences[:, place].argmax())]
        name, taken_for = (cache.classnames[label[place]] for label in (surest.labels, surest.classes))
        count = int(wrong[:, place].sum())
        confidence = 100.0 * float(confidences[:, place].sum()) / count
        found.append(Mistake(path, stamp, name, taken_for, confidence, count))
    return tuple(found)


def _notes(fits: Sequence[RunResult], adapted: Sequence[Predictions], cache: FeatureCache) -> tuple[str, ...]:
    """Say so where the cache has become another since the runs were fitted."""
    changed = [
        fit.metrics["seed"]
        for fit, said in zip(fits, adapted, strict=True)
        if abs(fit.metrics["test_accuracy"] - said.accuracy) > 100 / len(said.labels) + 1e-9  # an image: other devices
    ]
    if not changed:
        return ()
    seeds = ", ".join(map(str, changed))
    return (f"{cache.path} has changed since the runs of seed {seeds} were measured: what follows is of today's.",)
