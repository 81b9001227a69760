"""Auto: the best of each family of candidates, added with weights that the validation images support.

1. Fit the candidates of `candidates.py`. TaskRes starts with alpha 0.5, and 4 and 16 times that, scaled to the base; it
   goes on in steps of 4 while the largest wins.
2. Score each by the log-likelihood of the split's few validation images at its own temperature, minus 1 nat for each
   step away from the defaults of its family. Without validation images, by stratified cross-validation on train.
3. Add the calibrated logits of the best of each family, with weights that maximise the likelihood under a prior.
4. All are linear in normalised features, so the sum is one linear head.

Without text features, the mean image of each class takes the place of the text. It is computed per fold, so that the
judged images are never part of it; if a class has a single image and there are no validation images, nothing is scored.

At one shot without validation images nothing can be scored. Zero-shot was not fitted on the training images, so they
show how informative the text is: the result is plain TaskRes if it is, else a large alpha plus class means.

Axes: N images, C classes, D embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from taskres_cache.errors import FitError
from taskres_cache.heads.head import Head
from taskres_cache.heads.kinds import CosineHead, LinearHead
from taskres_cache.methods.auto.candidates import (
    ALPHA_STEP,
    GDA_WEIGHTS,
    Candidate,
    Part,
    Spread,
    base_scale,
    first_alphas,
    gda,
    logistic,
    next_alpha,
    task_residuals,
    usual_weight,
    zero_shot,
)
from taskres_cache.methods.auto.choosing import (
    Judge,
    Judged,
    best_of_families,
    information,
    stratified_folds,
    weights_of_sum,
)
from taskres_cache.methods.few_shot import FewShotTask, unit
from taskres_cache.methods.method import Adapted, Method, Setting, Trial
from taskres_cache.methods.search import PAPER_ALPHA
from taskres_cache.methods.training_sets import class_means

INFORMATIVE = 0.25  # of the text, see `information`


@dataclass(frozen=True)
class AutoOptions:
    """Options of auto.

    Parameters
    ----------
    folds : int, default 4
        At most this many folds of the training images, if there are no validation images.
    """

    folds: int = 4


def fit(task: FewShotTask, options: AutoOptions) -> Adapted:
    """Fit the candidates, choose, and return the head of their sum.

    Parameters
    ----------
    task : FewShotTask
        A few-shot split, with or without validation images.
    options : AutoOptions
        How to choose without validation images.

    Raises
    ------
    FitError
        The result is not finite, or there is no text and a class has no training images.
    """
    whole = _part(task, np.ones(len(task.train), bool))
    if task.val is not None and len(task.val):
        return _chosen(task, "val", [whole], Judge([(0, unit(task.val.image_features))], task.val.labels))
    folds = min(options.folds, _most_folds(task))
    if folds < 2:
        return _without_choice(whole)
    return _chosen(task, "cross-validation", *_cross_validation(task, whole, folds))


def _part(task: FewShotTask, rows: np.ndarray) -> Part:
    features, labels = task.train.image_features[rows], task.train.labels[rows]
    base = _mean_images(features, labels, task.classes) if task.text.is_absent else task.text.base
    name = "class means" if task.text.is_absent else "zero-shot"
    return Part(features, labels, base, task.logit_scale, task.shots, task.seed, task.device, name)


def _mean_images(features: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Return the class means (C, D) that take the place of text; raises FitError for a class without images."""
    means = class_means(features, labels, classes)
    if not np.isfinite(means).all() or not means.any(axis=1).all():
        raise FitError("a class has no usable training images, and without text features nothing else describes it")
    return means.astype(features.dtype)


def _most_folds(task: FewShotTask) -> int:
    """Return how many folds the training images allow; 1 if a fold would leave a class without text or images."""
    counts = np.bincount(task.train.labels, minlength=task.classes)
    return 1 if task.text.is_absent and counts.min() < 2 else int(counts.max())


def _cross_validation(task: FewShotTask, whole: Part, folds: int) -> tuple[list[Part], Judge]:
    """Return the whole training set and it without each fold, and the judge that has the folds."""
    fold_of = stratified_folds(task.train.labels, folds, task.seed)
    held_out = [np.flatnonzero(fold_of == fold) for fold in range(folds)]
    parts = [whole, *(_part(task, fold_of != fold) for fold in range(folds))]
    seen_by = [(1 + fold, unit(task.train.image_features[rows])) for fold, rows in enumerate(held_out)]
    return parts, Judge(seen_by, task.train.labels[np.concatenate(held_out)])


def _chosen(task: FewShotTask, by: str, parts: Sequence[Part], judge: Judge) -> Adapted:
    """Judge all candidates and return the sum of the best of each family."""
    judged = [*_judged_text(parts, judge), *_judged_images(parts, judge)]
    best = best_of_families(judged)
    weights = weights_of_sum(best, judge.labels)
    used = [(one, weight) for one, weight in zip(best, weights, strict=True) if weight > 0]
    chosen: dict[str, Setting] = {"judged by": by}
    for one, weight in used:
        name = str(one.candidate.settings["candidate"])
        chosen |= {f"{name} {key}": value for key, value in one.candidate.settings.items() if key != "candidate"}
        chosen[f"{name} share"] = round(float(weight / weights.sum()), 3)
    trials = tuple(Trial(one.candidate.settings, one.accuracy, one.loss) for one in judged)
    head = summed([(one.candidate, weight / one.temperature) for one, weight in used], task.logit_scale)
    return Adapted(head, chosen, trials)


def _judged_text(parts: Sequence[Part], judge: Judge) -> list[Judged]:
    """Judge zero-shot and TaskRes, with larger alphas while the largest wins."""
    base = parts[0].base
    judged = [judge.judged([zero_shot(part) for part in parts])]
    alphas = list(first_alphas(base))
    new = alphas
    while new:
        judged += [judge.judged(fitted) for fitted in task_residuals(parts, new)]
        best = best_of_families(judged)[0].candidate.settings.get("alpha")
        following = next_alpha(alphas, base) if best == max(alphas) else None
        new = [] if following is None else [following]
        alphas += new
    return judged


def _judged_images(parts: Sequence[Part], judge: Judge) -> list[Judged]:
    """Judge GDA and logistic regression."""
    directions = [unit(part.image_features) for part in parts]
    spreads = [
        Spread.of_images(rows, part.labels, len(part.base)) for rows, part in zip(directions, parts, strict=True)
    ]
    # The weight of GDA means something else without any spread, so folds of one shot cannot choose it.
    comparable = len({spread.scatter is None for spread in spreads}) == 1
    weights = GDA_WEIGHTS if comparable else (usual_weight(spreads[0], parts[0].shots),)
    found = []
    of_parts = [gda(part, spread, weights) for part, spread in zip(parts, spreads, strict=True)]
    for one in of_parts[0]:
        ridge, weight = one.settings["ridge"], one.settings["weight"]
        fitted = [
            next((c for c in listed if (c.settings["ridge"], c.settings["weight"]) == (ridge, weight)), listed[-1])
            for listed in of_parts
        ]
        found.append(judge.judged(fitted))
    regressions = [logistic(*of_part) for of_part in zip(parts, directions, spreads, strict=True)]
    return [*found, *(judge.judged(fitted) for fitted in zip(*regressions, strict=True))]


def _without_choice(part: Part) -> Adapted:
    """Return plain TaskRes if the text tells the training images apart, else a large alpha plus class means."""
    directions = unit(part.image_features)
    informed = information(zero_shot(part).logits(directions), part.labels)
    weak = informed < INFORMATIVE  # never for class means, which are these images
    alpha = float(f"{base_scale(part.base) * ALPHA_STEP**2:.3g}") if weak else PAPER_ALPHA
    used = [(fitted[0], 1.0) for fitted in task_residuals([part], [alpha])]
    if weak:
        spread = Spread.of_images(directions, part.labels, len(part.base))
        used.append((gda(part, spread, GDA_WEIGHTS[-1:])[0], 1.0))
    chosen: dict[str, Setting] = {"judged by": "rule", "taskres alpha": alpha}
    if part.base_name == "zero-shot":
        chosen["text information"] = round(informed, 3)
    return Adapted(summed(used or [(zero_shot(part), 1.0)], part.logit_scale), chosen)


def summed(terms: Sequence[tuple[Candidate, float]], logit_scale: float) -> Head:
    """Return one head of the weighted sum of candidates: linear, or the cosine head of a single text classifier.

    Parameters
    ----------
    terms : sequence of (Candidate, float)
        Candidates, and the factors of their logits.
    logit_scale : float
        Of the cosine head.

    Raises
    ------
    FitError
        The sum is not finite.
    """
    kind = terms[0][0].weights.dtype
    weights = sum(factor * one.weights.astype(np.float64) for one, factor in terms)
    bias = sum(factor * one.bias.astype(np.float64) for one, factor in terms)
    if not (np.isfinite(weights).all() and np.isfinite(bias).all()):
        raise FitError("the classifier has NaN or infinite weights; check the features")
    if len(terms) == 1 and terms[0][0].family == "text":
        return CosineHead(torch.from_numpy(terms[0][0].weights / logit_scale), logit_scale)
    return LinearHead(
        torch.from_numpy(np.asarray(weights).astype(kind)),
        torch.from_numpy(np.asarray(bias).astype(kind)),
        "normalised",
    )


METHOD = Method(
    name="auto",
    fit=fit,
    options=AutoOptions(),
    trains="the best of zero-shot, TaskRes, GDA and logistic regression, or their sum",
    chooses="everything by the likelihood of val; cross-validation on train without val",
    paper="none",
    needs_text=False,
)
