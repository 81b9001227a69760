"""How well a classifier does on the features of a cache.

Axes: N images, C classes of the cache, D embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from taskres_cache.caches.contents import regular_base
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.provenance import encoder_differences
from taskres_cache.errors import RunError
from taskres_cache.heads import Head
from taskres_cache.runs.measures import TOP, Predictions, reliability
from taskres_cache.runs.run import Classifier


@dataclass(frozen=True)
class Evaluation:
    """Accuracies in percent on one cache's test part: of its own zero-shot, of a run's base, and of base + residual.

    The last four are of base + residual: also top-5, and the calibration error with and without the temperature.
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


class Digest(Protocol):
    """What takes in bytes, such as hashlib's."""

    def update(self, content: Any, /) -> None:
        """Take in more."""


def predictions_of(
    cache: FeatureCache, rows: np.ndarray, heads: Sequence[Head], device: torch.device, digest: Digest | None = None
) -> list[Predictions] | None:
    """Return what each head says of some rows of a cache; None where there is no row.

    The rows are read once, a piece at a time, for all heads together, and `digest` takes them in as they pass. Heads
    that are one and the same are asked once.
    """
    if len(rows) == 0:
        return None
    asked = {_key(head): _Asked.of(head.to(device), len(rows)) for head in heads}
    labels = cache.labels[rows].astype(np.int64)
    for positions, features in cache.pieces(rows):
        if digest is not None:
            digest.update(features.data)
        images, right = torch.from_numpy(features).to(device), torch.from_numpy(labels[positions]).to(device)
        for one in asked.values():
            one.hear(positions, images, right)
    return [asked[_key(head)].predictions(labels) for head in heads]


def percent_correct(
    cache: FeatureCache, rows: np.ndarray, heads: Sequence[Head], device: torch.device
) -> list[float] | None:
    """Return the accuracy in percent of each head on some rows of a cache; None where there is no row."""
    said = predictions_of(cache, rows, heads, device)
    return None if said is None else [one.accuracy for one in said]


def _key(head: Head) -> tuple[object, ...]:
    """Return what is equal for heads that share their tensors."""
    shift = None if head.image_shift is None else head.image_shift.data_ptr()
    return head.weights.data_ptr(), head.weights.shape, shift, head.logit_scale, head.temperature


@dataclass(frozen=True)
class _Asked:
    """A head on its device, and room for what it says of N images."""

    head: Head
    classes: np.ndarray
    in_top5: np.ndarray
    confidences: np.ndarray
    untempered: np.ndarray

    @classmethod
    def of(cls, head: Head, count: int) -> "_Asked":
        """Return a head that is to be asked about so many images."""
        return cls(head, *(np.empty(count, kind) for kind in (np.int64, np.bool_, np.float32, np.float32)))

    def hear(self, positions: np.ndarray, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Take down what the head says of a piece of images (n, D) with labels (n,)."""
        cosines = self.head.cosines(images)  # (n, C)
        best, classes = cosines.max(dim=-1)
        own = cosines.gather(-1, labels[:, None])  # (n, 1)
        self.classes[positions] = classes.cpu().numpy()
        self.in_top5[positions] = ((cosines > own).sum(dim=-1) < TOP).cpu().numpy()
        below = cosines.sub_(best[:, None]).mul_(self.head.logit_scale)  # best class: logit 0, probability 1 / sum
        self.untempered[positions] = below.exp().sum(dim=-1).reciprocal().cpu().numpy()
        self.confidences[positions] = below.div_(self.head.temperature).exp_().sum(dim=-1).reciprocal().cpu().numpy()

    def predictions(self, labels: np.ndarray) -> Predictions:
        """Return what the head has said, beside what is right (N,)."""
        return Predictions(labels, self.classes, self.in_top5, self.confidences, self.untempered)


def text_head(cache: FeatureCache) -> Head:
    """Return the regular base of a cache as a head: zero-shot."""
    return Head.of_arrays(cache.text_features, cache.provenance.logit_scale)


@dataclass(frozen=True)
class ZeroShot:
    """Accuracies in percent of the text classifier alone, in one of the forms that the field reports."""

    form: str
    templates: tuple[str, ...]
    val_accuracy: float | None
    test_accuracy: float | None


def zero_shot_weights(embeddings: np.ndarray) -> dict[str, np.ndarray]:
    """Return form -> classifier (C, D) of un-normalised text embeddings (C, T, D).

    "single prompt" is the first template's; "prompt ensemble" the mean of normalised embeddings (CLIP's own way);
    "residual base" the mean of un-normalised ones, which the task residual is added to (TaskRes).
    """
    normalised = embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)  # (C, T, D)
    return {
        "single prompt": embeddings[:, 0],  # (C, D)
        "prompt ensemble": normalised.mean(axis=1),
        "residual base": regular_base(embeddings),
    }


def evaluate_zero_shot(cache: FeatureCache, device: torch.device) -> list[ZeroShot]:
    """Return the accuracy of each form of zero-shot on the val and test part of a cache."""
    templates = cache.templates
    forms = zero_shot_weights(cache.text_bases().embeddings)
    heads = [Head.of_arrays(form, cache.provenance.logit_scale) for form in forms.values()]
    nothing: list[float | None] = [None] * len(forms)
    val, test = (
        percent_correct(cache, cache.rows(partition), heads, device) or nothing for partition in ("val", "test")
    )
    return [
        ZeroShot(form, templates[:1] if form == "single prompt" else templates, *accuracies)
        for form, *accuracies in zip(forms, val, test, strict=True)
    ]


def evaluate_run(classifier: Classifier, cache: FeatureCache, device: torch.device) -> Evaluation:
    """Return a run's accuracy on the test part of a cache, its own or another of the same checkpoint.

    Raises
    ------
    RunError : the cache has another checkpoint's features, or classes that the run does not know.
    """
    classes, test = class_rows(classifier, cache), cache.rows("test")
    base = Head.of_arrays(classifier.base[classes], cache.provenance.logit_scale)
    said = predictions_of(cache, test, [text_head(cache), base, classifier.head.of_classes(classes)], device)
    if said is None:
        raise RunError(f"{cache.path} has no test image")
    of_zero_shot, of_base, of_head = said
    error, untempered = calibration_errors(of_head)
    return Evaluation(
        cache=cache.path,
        dataset=cache.provenance.dataset,
        images=len(test),
        classes=len(classes),
        zero_shot_accuracy=of_zero_shot.accuracy,
        base_accuracy=of_base.accuracy,
        test_accuracy=of_head.accuracy,
        top5_accuracy=of_head.top5_accuracy,
        calibration_error=error,
        untempered_calibration_error=untempered,
    )


def calibration_errors(said: Predictions) -> tuple[float, float]:
    """Return the expected calibration error in percent, with the temperature and without."""
    return reliability(said.confidences, said.right).error, reliability(said.untempered, said.right).error


def class_rows(classifier: Classifier, cache: FeatureCache) -> np.ndarray:
    """Return the classifier's row for each class of a cache (C,); a cache may have fewer classes.

    Classes are matched by their identifiers where both have such, else by name.
    """
    _refuse_other_features(classifier, cache)
    known, asked = classifier.classnames, cache.classnames
    if classifier.class_ids is not None and cache.class_ids is not None:
        known, asked = classifier.class_ids, cache.class_ids
    if asked == known:
        return np.arange(len(known))
    row_of = {key: row for row, key in enumerate(known)}
    unknown = [name for name, key in zip(cache.classnames, asked, strict=True) if key not in row_of]
    if unknown:
        raise RunError(
            f"{cache.path} has {len(unknown)} of {len(asked)} classes that the run does not know "
            f"({', '.join(repr(name) for name in unknown[:3])}); {_remedy_for_unknown(classifier)}"
        )
    if len(row_of) < len(known):
        raise RunError(
            f"the run has several classes of one name, and {cache.path} another list of classes; rename them"
        )
    return np.array([row_of[key] for key in asked])


def _remedy_for_unknown(classifier: Classifier) -> str:
    if classifier.half == "all":
        return "fit a run on a cache that has them"
    return (
        f"it was fitted on the {classifier.half} half of its classes (--classes {classifier.half}) and has no residual "
        "for others: for those there is zero-shot, taskres eval CACHE --zero-shot"
    )


def _refuse_other_features(classifier: Classifier, cache: FeatureCache) -> None:
    """Raise RunError when a cache's features do not come from the run's encoder and preprocessing."""
    differing = [
        f"{name}: cache has {has!r}, run has {own!r}"
        for name, (own, has) in encoder_differences(classifier.provenance, cache.provenance).items()
    ]
    if cache.dim != classifier.base.shape[1]:
        differing.append(f"width: cache has {cache.dim}, run has {classifier.base.shape[1]}")
    if differing:
        raise RunError(
            f"{cache.path} holds features of another checkpoint than the run: {'; '.join(differing)}; "
            "extract it with the run's backbone and weights"
        )
