"""Classifiers on the same test images, over seeds: zero-shot, logistic regression, and the fitted methods.

Axes: N test images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from taskres_cache.caches.contents import SplitName
from taskres_cache.datasets.sampling import shots_text
from taskres_cache.reporting.tables import Table, signed
from taskres_cache.runs.run import Run
from taskres_cache.runs.scores import ImageHits
from taskres_cache.runs.statistics.intervals import (
    Hits,
    Interval,
    PairedDifference,
    accuracy_interval,
    mean_class_accuracy,
    mean_class_accuracy_interval,
    paired_difference,
)

ZERO_SHOT, LOGISTIC_REGRESSION = "zero-shot", "logistic regression"
LONGEST_NAME = 26
PROMPTS_MARK = "@"  # in front of the set of prompts, as in names of runs
LINEAR_PROBE = "linear-probe"  # the method that is logistic regression


@dataclass(frozen=True)
class Standing:
    """A classifier at one shot count.

    Parameters
    ----------
    classifier : str
        Zero-shot, logistic regression, or the method.
    shots : int
        0 for zero-shot.
    seeds : tuple of int
        Of the fits; empty for zero-shot.
    labels : ndarray of shape (N,), int64
        True classes of the test images.
    hits : Hits
        Of the fits.
    zero_shot : Hits or None
        Of zero-shot, on the same images; None for a cache without text.
    """

    classifier: str
    shots: int
    seeds: tuple[int, ...]
    labels: np.ndarray
    hits: Hits
    zero_shot: Hits | None

    @property
    def interval(self) -> Interval:
        """95 % interval of the accuracy, in percent."""
        return accuracy_interval(self.hits)

    @property
    def against_zero_shot(self) -> PairedDifference | None:
        """Accuracy above zero-shot; None without text."""
        return None if self.zero_shot is None else paired_difference(self.hits, self.zero_shot)

    def as_json(self) -> dict[str, Any]:
        """Return the numbers by name, as in `metrics.json`."""
        against = self.against_zero_shot
        return {
            "accuracy": self.hits.accuracy,
            "accuracy_interval": self.interval,
            "mean_class_accuracy": mean_class_accuracy(self.hits, self.labels),
            "mean_class_accuracy_interval": mean_class_accuracy_interval(self.hits, self.labels),
            "against_zero_shot": None
            if against is None
            else {"difference": against.difference, "interval": against.interval, "p_value": against.p_value},
        }


def standings(runs: Sequence[Run], logistic: Mapping[SplitName, ImageHits] | None = None) -> list[Standing]:
    """Return zero-shot, then for each shot count logistic regression and the methods, each over its seeds.

    Parameters
    ----------
    runs : sequence of Run
        Just fitted on one cache, so that `tested` is there.
    logistic : mapping of (int, int) to ImageHits, optional
        Logistic regression by shots and seed.
    """
    groups: dict[tuple[str, int], dict[int, ImageHits]] = {}
    for (shots, seed), tested in (logistic or {}).items():
        groups.setdefault((LOGISTIC_REGRESSION, shots), {})[seed] = tested
    for run in runs:
        if run.tested is not None:
            groups.setdefault((run.metrics.method, run.metrics.shots), {})[run.metrics.seed] = run.tested
    if not groups:
        return []
    fitted = [_standing(*group, of_seeds) for group, of_seeds in groups.items()]
    fitted.sort(key=lambda one: one.shots)  # stable: classifiers stay in their order
    of_prompts = {prompts_of(one.classifier): one for one in fitted}  # each set of prompts has its own zero-shot
    zero_shot = [_zero_shot(prompts, one) for prompts, one in sorted(of_prompts.items(), key=lambda pair: pair[0])]
    return [*(one for one in zero_shot if one is not None), *fitted]


def prompts_of(classifier: str) -> str:
    """Return the set of prompts in the name of a classifier, as in "taskres@cupl"; empty for the default."""
    return classifier.partition(PROMPTS_MARK)[2]


def _zero_shot(prompts: str, one: Standing) -> Standing | None:
    if one.zero_shot is None:
        return None
    name = f"{ZERO_SHOT}{PROMPTS_MARK}{prompts}" if prompts else ZERO_SHOT
    return Standing(name, 0, (), one.labels, one.zero_shot, one.zero_shot)


def _standing(classifier: str, shots: int, of_seeds: Mapping[int, ImageHits]) -> Standing:
    first = next(iter(of_seeds.values()))
    hits = Hits.of_fits([tested.correct for tested in of_seeds.values()])
    zero_shot = None if first.zero_shot_correct is None else Hits.of_fits([first.zero_shot_correct])
    return Standing(classifier, shots, tuple(of_seeds), first.labels, hits, zero_shot)


def standings_table(found: Sequence[Standing], title: str) -> Table:
    """Return accuracy with its interval, mean per-class accuracy and gain over zero-shot of each classifier."""
    has_text = any(one.zero_shot is not None for one in found)
    rows = tuple(
        (
            shortened(one.classifier),
            "-" if one.shots == 0 else shots_text(one.shots),
            f"{one.hits.accuracy:.1f}",
            to_text(one.interval),
            f"{mean_class_accuracy(one.hits, one.labels):.1f}",
            *([_gain(one)] if has_text else []),
        )
        for one in found
    )
    images = f"{len(found[0].labels):,} test images" if found else ""
    columns = ("classifier", "shots", "accuracy %", "95 % interval", "per class %", *(["gain"] if has_text else []))
    return Table(f"{title}: all on the same {images}, mean over seeds", columns, rows)


def _gain(one: Standing) -> str:
    against = one.against_zero_shot
    return "-" if one.shots == 0 or against is None else signed(against.difference)


def shortened(name: str) -> str:
    """Return the name of a classifier, cut if the table would be wider than 80 columns."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def to_text(interval: Interval) -> str:
    """Return "94.1 to 96.3"."""
    return f"{interval[0]:.1f} to {interval[1]:.1f}"
