"""Logistic regression on the splits of a fit, measured on the same test images; nothing is written.

Axes: N images, C classes, D embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from taskres_cache.caches.contents import SplitName
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.methods.choice import MethodChoice, ValUse
from taskres_cache.methods.registry import find_method
from taskres_cache.runs.class_matching import text_head
from taskres_cache.runs.evaluation import predictions_of
from taskres_cache.runs.fitting.few_shot_tasks import TaskReader
from taskres_cache.runs.fitting.method_study import fitted_method
from taskres_cache.runs.scores import ImageHits

LOGISTIC_REGRESSION = "linear-probe"
MOST_WORK = 5e8  # C * N * D over all splits, about four seconds on two cores


@dataclass(frozen=True)
class Baseline:
    """Logistic regression on the splits of a fit.

    Parameters
    ----------
    tested : dict of (int, int) to ImageHits
        Which test images are classified correctly, by shots and seed.
    left_out : tuple of int
        Shots that would take too long.
    """

    tested: dict[SplitName, ImageHits]
    left_out: tuple[int, ...] = ()


def logistic_regression(
    cache: FeatureCache,
    splits: Sequence[SplitName],
    device: torch.device,
    val: ValUse = "few",
    most_work: float | None = None,
) -> Baseline:
    """Fit a logistic regression on splits, and measure it on the test images.

    Parameters
    ----------
    cache : FeatureCache
        The cache; it has test images.
    splits : sequence of (int, int)
        Few-shot splits as (shots, seed).
    device : torch.device
        Where to compute.
    val : {"few", "full"}
        Which validation images choose the penalty, as in `MethodChoice`.
    most_work : float, optional
        Largest sum of C * N * D over splits. Shot counts are added from the smallest on while the sum stays below.
        Defaults to 5e8, about four seconds on two cores.

    Raises
    ------
    FitError
        Features are not finite.
    """
    kept, left_out = _affordable(cache, list(dict.fromkeys(splits)), MOST_WORK if most_work is None else most_work)
    method = find_method(LOGISTIC_REGRESSION).method
    reader, choice, heads = TaskReader(cache, device), MethodChoice(method, method.options, val=val), []
    for name in kept:
        heads.append(fitted_method(reader, name, choice).classifier.head)
        reader.forget()
    text = text_head(cache)
    before = [] if text is None else [text]
    predictions = predictions_of(cache, cache.rows("test"), [*before, *heads], device)
    assert predictions is not None  # a fit refuses a cache without test images
    zero_shot = predictions[0].correct if before else None
    tested = [ImageHits(one.labels, one.correct, zero_shot) for one in predictions[len(before) :]]
    return Baseline(dict(zip(kept, tested, strict=True)), left_out)


def _affordable(
    cache: FeatureCache, splits: Sequence[SplitName], most_work: float
) -> tuple[list[SplitName], tuple[int, ...]]:
    """Return the splits whose work fits the limit, all seeds of a shot count or none, and the other shot counts."""
    work: dict[int, int] = {}
    for shots, seed in sorted(splits):
        images = len(cache.split(shots, seed).train)
        work[shots] = work.get(shots, 0) + images * len(cache.classnames) * cache.dim
    total, kept = 0.0, []
    for shots, of_shots in work.items():
        total += of_shots
        if total <= most_work:
            kept.append(shots)
    return [name for name in splits if name[0] in kept], tuple(shots for shots in work if shots not in kept)
