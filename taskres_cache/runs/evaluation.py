"""Accuracy of classifiers on the images of a cache.

Axes: N images, C classes of the cache, T templates, D embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from taskres_cache.caches.class_halves import open_cache
from taskres_cache.caches.contents import regular_base
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.provenance import encoder_differences
from taskres_cache.errors import RunError
from taskres_cache.heads.head import Head
from taskres_cache.heads.kinds import CosineHead
from taskres_cache.runs.classifier import Classifier
from taskres_cache.runs.scores import TOP, Predictions, reliability
from taskres_cache.system.names import shown

LONGEST_VALUE = 200  # characters of a value in a message


@dataclass(frozen=True)
class Evaluation:
    """Accuracies and calibration errors of a run on the test images of a cache, in percent.

    Parameters
    ----------
    cache : Path
        The cache file.
    dataset : str
        Its data set.
    images, classes : int
        Number of test images and classes.
    zero_shot_accuracy, base_accuracy, test_accuracy : float
        Of the cache's text classifier, of the run's base, and of base + residual.
    top5_accuracy, calibration_error, untempered_calibration_error : float
        Of base + residual; the calibration error with the temperature and without.
    base_half_accuracy, harmonic_mean : float, optional
        Of a run of the base half on the new half of its data set: its accuracy on the base half, and the harmonic mean
        of both accuracies.
    """

    cache: Path
    dataset: str
    images: int
    classes: int
    zero_shot_accuracy: float
    base_accuracy: float
    test_accuracy: float
    top5_accuracy: float
    calibration_error: float
    untempered_calibration_error: float
    base_half_accuracy: float | None = None
    harmonic_mean: float | None = None


class Digest(Protocol):
    """A hash such as those of hashlib."""

    def update(self, content: Any, /) -> None:
        """Add bytes."""


def predictions_of(
    cache: FeatureCache, rows: np.ndarray, heads: Sequence[Head], device: torch.device, digest: Digest | None = None
) -> list[Predictions] | None:
    """Return the predictions of each head on some rows of a cache; None without rows.

    The rows are read once, in pieces, for all heads together. Heads that share all tensors are computed once.

    Parameters
    ----------
    cache : FeatureCache
        Where the images are.
    rows : ndarray of shape (N,), int
        Rows of the images.
    heads : sequence of Head
        The classifiers.
    device : torch.device
        Where to compute.
    digest : Digest, optional
        Updated with the image features.
    """
    if len(rows) == 0:
        return None
    outputs = {head.shared_key(): _Outputs.empty(head.to(device), len(rows)) for head in heads}
    labels = cache.labels[rows].astype(np.int64)
    for positions, features in cache.pieces(rows):
        if digest is not None:
            digest.update(features.data)
        images, true_classes = torch.from_numpy(features).to(device), torch.from_numpy(labels[positions]).to(device)
        for output in outputs.values():
            output.add(positions, images, true_classes)
    return [outputs[head.shared_key()].predictions(labels) for head in heads]


def percent_correct(
    cache: FeatureCache, rows: np.ndarray, heads: Sequence[Head], device: torch.device
) -> list[float] | None:
    """Return the accuracy in percent of each head on some rows of a cache; None without rows."""
    predictions = predictions_of(cache, rows, heads, device)
    return None if predictions is None else [of_head.accuracy for of_head in predictions]


@dataclass(frozen=True)
class _Outputs:
    """A head on its device, and buffers for its predictions on N images."""

    head: Head
    classes: np.ndarray
    in_top5: np.ndarray
    confidences: np.ndarray
    untempered: np.ndarray

    @classmethod
    def empty(cls, head: Head, count: int) -> "_Outputs":
        """Allocate the buffers."""
        return cls(head, *(np.empty(count, kind) for kind in (np.int64, np.bool_, np.float32, np.float32)))

    def add(self, positions: np.ndarray, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Store the predictions on a piece of images (n, D) with labels (n,)."""
        scores = self.head.scores(images)  # (n, C)
        best, classes = scores.max(dim=-1)
        of_label = scores.gather(-1, labels[:, None])  # (n, 1)
        self.classes[positions] = classes.cpu().numpy()
        self.in_top5[positions] = ((scores > of_label).sum(dim=-1) < TOP).cpu().numpy()
        below = scores.sub_(best[:, None]).mul_(self.head.scale)  # best class: logit 0, probability 1 / sum
        self.untempered[positions] = below.exp().sum(dim=-1).reciprocal().cpu().numpy()
        self.confidences[positions] = below.div_(self.head.temperature).exp_().sum(dim=-1).reciprocal().cpu().numpy()

    def predictions(self, labels: np.ndarray) -> Predictions:
        """Return the predictions together with the labels (N,)."""
        return Predictions(labels, self.classes, self.in_top5, self.confidences, self.untempered)


def text_head(cache: FeatureCache) -> Head:
    """Return the zero-shot classifier of a cache, its regular base."""
    return CosineHead.of_arrays(cache.text_features, cache.provenance.logit_scale)


@dataclass(frozen=True)
class ZeroShot:
    """Accuracies of zero-shot classification in one of the forms that papers report, in percent.

    Parameters
    ----------
    form : str
        Name of the form, see `zero_shot_weights`.
    templates : tuple of str
        The templates that it uses.
    val_accuracy, test_accuracy : float or None
        None without validation or test images.
    """

    form: str
    templates: tuple[str, ...]
    val_accuracy: float | None
    test_accuracy: float | None


def zero_shot_weights(embeddings: np.ndarray) -> dict[str, np.ndarray]:
    """Return the zero-shot classifiers (C, D) of un-normalised text embeddings (C, T, D) by form.

    "single prompt" uses the first template; "prompt ensemble" is the mean of the normalised embeddings (CLIP);
    "residual base" is the mean of the un-normalised embeddings, to which the task residual is added (TaskRes).
    """
    normalised = embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)  # (C, T, D)
    return {
        "single prompt": embeddings[:, 0],  # (C, D)
        "prompt ensemble": normalised.mean(axis=1),
        "residual base": regular_base(embeddings),
    }


def evaluate_zero_shot(cache: FeatureCache, device: torch.device) -> list[ZeroShot]:
    """Return the accuracy of each form of zero-shot classification on the val and test images of a cache."""
    templates = cache.templates
    forms = zero_shot_weights(cache.text_bases().embeddings)
    heads = [CosineHead.of_arrays(form, cache.provenance.logit_scale) for form in forms.values()]
    no_images: list[float | None] = [None] * len(forms)
    val, test = (
        percent_correct(cache, cache.rows(partition), heads, device) or no_images for partition in ("val", "test")
    )
    return [
        ZeroShot(form, templates[:1] if form == "single prompt" else templates, *accuracies)
        for form, *accuracies in zip(forms, val, test, strict=True)
    ]


def evaluate_run(classifier: Classifier, cache: FeatureCache, device: torch.device) -> Evaluation:
    """Evaluate a run on the test images of a cache.

    Parameters
    ----------
    classifier : Classifier
        The classifier of the run.
    cache : FeatureCache
        The run's cache, or another one of the same checkpoint.
    device : torch.device
        Where to compute.

    Raises
    ------
    RunError
        The cache has features of another checkpoint, classes that the run cannot be applied to, or no test images.
    """
    rows = cache.rows("test")
    predictions = predictions_of(cache, rows, [text_head(cache), *heads_on(classifier, cache)], device)
    if predictions is None:
        raise RunError(f"{cache.path} has no test images; pass a cache that has some")
    zero_shot, of_base, adapted = predictions
    error, untempered = calibration_errors(adapted)
    of_base_half = _accuracy_on_base_half(classifier, cache, device)
    return Evaluation(
        cache=cache.path,
        dataset=cache.provenance.dataset,
        images=len(rows),
        classes=len(cache.classnames),
        zero_shot_accuracy=zero_shot.accuracy,
        base_accuracy=of_base.accuracy,
        test_accuracy=adapted.accuracy,
        top5_accuracy=adapted.top5_accuracy,
        calibration_error=error,
        untempered_calibration_error=untempered,
        base_half_accuracy=of_base_half,
        harmonic_mean=None if of_base_half is None else harmonic_mean(of_base_half, adapted.accuracy),
    )


def _accuracy_on_base_half(classifier: Classifier, cache: FeatureCache, device: torch.device) -> float | None:
    """Return the accuracy of a run of the base half on that half, if the cache is the new half of its data set."""
    if (classifier.half, cache.half) != ("base", "new") or classifier.provenance.dataset != cache.provenance.dataset:
        return None
    half = open_cache(cache.path, "base")
    accuracies = percent_correct(half, half.rows("test"), heads_on(classifier, half)[1:], device)
    return None if accuracies is None else accuracies[0]


def harmonic_mean(one: float, other: float) -> float:
    """Return the harmonic mean of two accuracies; 0 if both are 0."""
    return 2 * one * other / (one + other) if one + other else 0.0


def heads_on(classifier: Classifier, cache: FeatureCache) -> list[Head]:
    """Return the heads of a run's base and of base + residual for the classes of a cache.

    A run without a residual per class, only with one on the image side or a tuned projection, has learnt nothing about
    single classes: if it does not know a class of the cache, its base is computed from the text of the cache.

    Raises
    ------
    RunError
        The cache has features of another checkpoint, or classes that the run does not know and cannot be applied to.
    """
    try:
        rows = class_rows(classifier, cache)
    except UnknownClassesError:
        if classifier.residual.any():
            raise
        base, scale = _base_of_other_classes(classifier, cache), classifier.provenance.logit_scale
        shift, alpha = classifier.image_residual, classifier.alpha
        adapted = CosineHead.of_arrays(base, scale, None, shift, alpha, classifier.temperature)
        return [CosineHead.of_arrays(base, cache.provenance.logit_scale), adapted]
    base_head = CosineHead.of_arrays(classifier.base[rows], cache.provenance.logit_scale)
    return [base_head, classifier.head.of_classes(rows)]


def _base_of_other_classes(classifier: Classifier, cache: FeatureCache) -> np.ndarray:
    """Return the base (C, D) of the classes of a cache, from its text, as the run's own base was made."""
    if classifier.recipe.base == "regular":
        return cache.text_features
    projection, pre_projection = classifier.projection, cache.text_bases().pre_projection
    if projection is None:
        raise RunError(
            f"{cache.path} has classes that the run does not know, and the run's base was read from a file without a "
            "text projection, so there is no base for them; fit a run on a cache that has them"
        )
    if pre_projection is None or pre_projection.shape[2] != len(projection):
        raise RunError(
            f"{cache.path} has classes that the run does not know, and no text/pre_projection of width "
            f"{len(projection)} to apply the run's text projection to; extract the cache with the run's backbone"
        )
    base: np.ndarray = pre_projection.mean(axis=1) @ projection  # (C, D)
    return base


def calibration_errors(predictions: Predictions) -> tuple[float, float]:
    """Return the expected calibration error in percent, with the temperature and without."""
    confidences, untempered, correct = predictions.confidences, predictions.untempered, predictions.correct
    return reliability(confidences, correct).error, reliability(untempered, correct).error


class UnknownClassesError(RunError):
    """A cache has classes that a run does not know."""


def class_rows(classifier: Classifier, cache: FeatureCache) -> np.ndarray:
    """Return the row of the classifier for each class of a cache (C,); a cache may have fewer classes.

    Classes are matched by identifier if both have identifiers, else by name.

    Raises
    ------
    RunError
        The cache has features of another checkpoint, or its classes cannot be matched.
    """
    _refuse_other_features(classifier, cache)
    known, wanted = classifier.classnames, cache.classnames
    if classifier.class_ids is not None and cache.class_ids is not None:
        known, wanted = classifier.class_ids, cache.class_ids
    if wanted == known:
        return np.arange(len(known))
    row_of = {key: row for row, key in enumerate(known)}
    unknown = [name for name, key in zip(cache.classnames, wanted, strict=True) if key not in row_of]
    if unknown:
        raise UnknownClassesError(
            f"{cache.path} has {len(unknown)} of {len(wanted)} classes that the run does not know "
            f"({', '.join(shown(name) for name in unknown[:3])}); {_remedy_for_unknown(classifier)}"
        )
    if len(row_of) < len(known):
        raise RunError(
            f"the run has several classes with the same name, and {cache.path} has other classes than the run, so they "
            "cannot be matched by name; give the classes distinct names and fit the run again"
        )
    return np.array([row_of[key] for key in wanted])


def _remedy_for_unknown(classifier: Classifier) -> str:
    if classifier.half == "all":
        return "fit a run on a cache that has them, or one with --residual image or --base enhanced-only"
    return (
        f"the run was fitted with --classes {classifier.half} and has no residual for others; evaluate those "
        "zero-shot: taskres eval CACHE --zero-shot, or fit with --residual image or --base enhanced-only"
    )


def shown_value(value: object) -> str:
    """Return a value for a message, shortened."""
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def _refuse_other_features(classifier: Classifier, cache: FeatureCache) -> None:
    """Raise RunError if the features of a cache are not from the encoder and preprocessing of the run."""
    differing = [
        f"{name}: cache has {shown_value(has)}, run has {shown_value(own)}"
        for name, (own, has) in encoder_differences(classifier.provenance, cache.provenance).items()
    ]
    if cache.dim != classifier.base.shape[1]:
        differing.append(f"embedding size: cache has {cache.dim}, run has {classifier.base.shape[1]}")
    if differing:
        raise RunError(
            f"{cache.path} holds features of another checkpoint than the run: {'; '.join(differing)}; "
            "extract it with the run's backbone and weights"
        )
