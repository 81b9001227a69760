"""Accuracy of classifiers on the images of a cache.

Axes: N images, C classes of the cache, T templates, D embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from taskres_cache.caches.class_halves import open_cache
from taskres_cache.caches.contents import regular_base
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.errors import RunError
from taskres_cache.heads.head import Head
from taskres_cache.heads.kinds import CosineHead
from taskres_cache.runs.class_matching import heads_on, text_head, with_text_of
from taskres_cache.runs.classifier import Classifier
from taskres_cache.runs.scores import TOP, Predictions, reliability


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
    zero_shot_accuracy, base_accuracy : float or None
        Of the cache's text classifier, and of the run's base; None if the cache has no text.
    test_accuracy : float
        Of base + residual.
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
    zero_shot_accuracy: float | None
    base_accuracy: float | None
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
    outputs = {head.shared_key(): _Outputs.empty(head.to(device), len(rows), device) for head in heads}
    labels = cache.labels[rows].astype(np.int64)
    for read in dict.fromkeys(["features", *(head.input for head in heads)]):
        reading = [output for output in outputs.values() if output.head.input == read]
        for positions, inputs in cache.pieces(rows) if read == "features" else cache.pre_projection_pieces(rows):
            if digest is not None and read == "features":
                digest.update(inputs.data)
            arrays = (positions, inputs, labels[positions])
            places, images, true_classes = (torch.from_numpy(array).to(device) for array in arrays)
            for output in reading:
                output.add(places, images, true_classes)
    return [outputs[head.shared_key()].predictions(labels) for head in heads]


def inputs_of(cache: FeatureCache, rows: np.ndarray, head: Head) -> np.ndarray:
    """Return what a head reads of some rows (N, W), float32: image features, or the input of their projection."""
    if head.input == "features":
        return cache.image_features(rows)
    inputs = np.empty((len(rows), head.width), np.float32)
    for positions, piece in cache.pre_projection_pieces(rows):
        inputs[positions] = piece
    return inputs


def percent_correct(
    cache: FeatureCache, rows: np.ndarray, heads: Sequence[Head], device: torch.device
) -> list[float] | None:
    """Return the accuracy in percent of each head on some rows of a cache; None without rows."""
    predictions = predictions_of(cache, rows, heads, device)
    return None if predictions is None else [of_head.accuracy for of_head in predictions]


@dataclass(frozen=True)
class _Outputs:
    """A head, and buffers for its predictions on N images, all on one device, which is waited for at the end only."""

    head: Head
    classes: torch.Tensor
    in_top5: torch.Tensor
    confidences: torch.Tensor
    untempered: torch.Tensor

    @classmethod
    def empty(cls, head: Head, count: int, device: torch.device) -> "_Outputs":
        """Allocate the buffers."""
        kinds = (torch.int64, torch.bool, torch.float32, torch.float32)
        return cls(head, *(torch.empty(count, dtype=kind, device=device) for kind in kinds))

    def add(self, places: torch.Tensor, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Store the predictions on a piece of images (n, D) with labels (n,) at its places (n,)."""
        scores = self.head.scores(images)  # (n, C)
        best, classes = scores.max(dim=-1)
        of_label = scores.gather(-1, labels[:, None])  # (n, 1)
        self.classes[places] = classes
        self.in_top5[places] = (scores > of_label).sum(dim=-1) < TOP
        below = scores.sub_(best[:, None]).mul_(self.head.scale)  # best class: logit 0, probability 1 / sum
        self.untempered[places] = below.exp().sum(dim=-1).reciprocal().float()
        self.confidences[places] = below.div_(self.head.temperature).exp_().sum(dim=-1).reciprocal().float()

    def predictions(self, labels: np.ndarray) -> Predictions:
        """Return the predictions together with the labels (N,)."""
        buffers = (self.classes, self.in_top5, self.confidences, self.untempered)
        return Predictions(labels, *(buffer.cpu().numpy() for buffer in buffers))


@dataclass(frozen=True)
class ZeroShot:
    """Accuracies of zero-shot classification in one of the forms that papers report, in percent.

    Parameters
    ----------
    form : str
        Name of the form, see `zero_shot_weights`.
    templates : tuple of str
        The templates that it uses; empty for named sets of prompts.
    val_accuracy, test_accuracy : float or None
        None without validation or test images.
    prompts_per_class : float
        Mean number of prompts of a class.
    """

    form: str
    templates: tuple[str, ...]
    val_accuracy: float | None
    test_accuracy: float | None
    prompts_per_class: float


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
    """Return the accuracy of each form of zero-shot classification on the val and test images of a cache.

    Named sets of prompts have the last two forms, called `prompt ensemble@NAME` and `residual base@NAME`.
    """
    templates, forms = cache.templates, zero_shot_weights(cache.text_bases().embeddings)
    used = {form: templates[:1] if form == "single prompt" else templates for form in forms}
    per_class = {form: float(len(of_form)) for form, of_form in used.items()}
    for name in cache.named_sets:
        text = cache.text(name)
        directions = text.embeddings / np.linalg.norm(text.embeddings, axis=1, keepdims=True)  # (P, D)
        of_set = {"prompt ensemble": replace(text, embeddings=directions).base, "residual base": text.base}
        forms |= {f"{form}@{name}": weights for form, weights in of_set.items()}
        per_class |= {f"{form}@{name}": len(text.texts) / len(cache.classnames) for form in of_set}
    heads = [CosineHead.of_arrays(form, cache.provenance.logit_scale) for form in forms.values()]
    no_images: list[float | None] = [None] * len(forms)
    val, test = (
        percent_correct(cache, cache.rows(partition), heads, device) or no_images for partition in ("val", "test")
    )
    return [
        ZeroShot(form, used.get(form, ()), of_val, of_test, per_class[form])
        for form, of_val, of_test in zip(forms, val, test, strict=True)
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
    cache = with_text_of(classifier, cache)
    rows = cache.rows("test")
    heads = (text_head(cache), *heads_on(classifier, cache))
    found = predictions_of(cache, rows, [head for head in heads if head is not None], device)
    if found is None:
        raise RunError(f"{cache.path} has no test images; pass a cache that has some")
    rest, adapted = iter(found), found[-1]
    zero_shot, of_base = (None if head is None else next(rest) for head in heads[:2])
    error, untempered = calibration_errors(adapted)
    of_base_half = _accuracy_on_base_half(classifier, cache, device)
    return Evaluation(
        cache=cache.path,
        dataset=cache.provenance.dataset,
        images=len(rows),
        classes=len(cache.classnames),
        zero_shot_accuracy=None if zero_shot is None else zero_shot.accuracy,
        base_accuracy=None if of_base is None else of_base.accuracy,
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
    half = with_text_of(classifier, open_cache(cache.path, "base"))
    accuracies = percent_correct(half, half.rows("test"), heads_on(classifier, half)[1:], device)
    return None if accuracies is None else accuracies[0]


def harmonic_mean(one: float, other: float) -> float:
    """Return the harmonic mean of two accuracies; 0 if both are 0."""
    return 2 * one * other / (one + other) if one + other else 0.0


def calibration_errors(predictions: Predictions) -> tuple[float, float]:
    """Return the expected calibration error in percent, with the temperature and without."""
    confidences, untempered, correct = predictions.confidences, predictions.untempered, predictions.correct
    return reliability(confidences, correct).error, reliability(untempered, correct).error
