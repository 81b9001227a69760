"""Whether features mean anything: finite, with a direction, not all alike, and what they classify without training.

Axes: N rows or images, C classes, D embedding.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from taskres_cache.caches.contents import CacheContents, regular_base
from taskres_cache.caches.schema import REMEDY
from taskres_cache.datasets import PARTITIONS
from taskres_cache.errors import CacheError

ROWS = 4096  # images per product
# Allowed relative difference of a feature and its pre-projection times the projection. Measured on RN50 and ViT-B/32:
# 4e-7 in fp32, 3e-4 when stored as float16, 2.5e-3 in bf16; trained towers may cancel more.
ROUNDING = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 5e-2}
UNKNOWN_ROUNDING = 2e-2

NO_TEXT = (
    "has no text features, only image features; use what needs none, such as taskres fit CACHE --method auto, or "
    "import it again with text_features"
)


def unusable_row(features: np.ndarray) -> tuple[int, str] | None:
    """Return the first row that has no direction and why, or None if every row has one.

    Parameters
    ----------
    features : ndarray of shape (N, D), float32
        Image or text features.
    """
    with np.errstate(all="ignore"):
        squares = np.einsum("nd,nd->n", features, features)  # NaN, infinite and zero rows show in one pass
    usable = (squares > 0) & np.isfinite(squares)
    if usable.all():
        return None
    row = int(usable.argmin())
    if not np.isfinite(features[row]).all():
        return row, "has NaN or infinite values"
    if not features[row].any():
        return row, "has only zeros and so no direction"
    return row, f"has values up to {np.abs(features[row]).max():.3g}, whose squares float32 cannot represent"


def all_equal(features: np.ndarray) -> bool:
    """Return True if there are several rows and all are equal."""
    return len(features) > 1 and bool((features == features[0]).all())


def refuse_unusable_base(path: Path, name: str, base: np.ndarray) -> None:
    """Raise CacheError if the mean of a class has no direction, or all means are equal."""
    fault = unusable_row(base)
    if fault is not None:
        raise CacheError(f"{path}: {name} of class {fault[0]} (mean over prompts) {fault[1]}; {REMEDY}")
    if all_equal(base):
        raise CacheError(f"{path}: {name} have the same mean for all {len(base)} classes; {REMEDY}")


def refuse_unusable_text(path: Path, embeddings: np.ndarray) -> None:
    """Raise CacheError if text features have no direction, or are equal for all classes."""
    classes, templates, dim = embeddings.shape
    for what, features in (("prompt", embeddings), ("mean over templates", embeddings.mean(axis=1, keepdims=True))):
        fault = unusable_row(features.reshape(-1, dim))
        if fault is not None:
            label = fault[0] // features.shape[1]
            raise CacheError(f"{path}: text/embeddings of class {label} ({what}) {fault[1]}; {REMEDY}")
    if all_equal(embeddings.reshape(classes, templates * dim)):
        raise CacheError(f"{path}: text/embeddings are equal for all {classes} classes; {REMEDY}")


def mismatched_row(computed: np.ndarray, features: np.ndarray, precision: str) -> tuple[int, float] | None:
    """Return the first row that differs by more than rounding and its relative difference, or None.

    Parameters
    ----------
    computed, features : ndarray of shape (..., D), float32
        Pre-projections times their projection, and the stored features.
    precision : str
        What the features were computed in: fp32, fp16 or bf16; other values mean unknown.
    """
    differences = np.linalg.norm(computed - features, axis=-1) / np.maximum(np.linalg.norm(features, axis=-1), 1e-30)
    per_row = differences.reshape(len(features), -1).max(axis=1, initial=0.0)
    agrees = per_row <= ROUNDING.get(precision, UNKNOWN_ROUNDING)  # NaN does not
    if agrees.all():
        return None
    row = int(agrees.argmin())
    return row, float(per_row[row])


@dataclass(frozen=True)
class ZeroShot:
    """Accuracy of a classifier that nothing was trained for, and the size of the features.

    Parameters
    ----------
    partition : str
        The images: test, or val or train if there are no others.
    images : int
        Their number.
    accuracy : float
        Percentage of them that the nearest text feature classifies correctly, or without text the nearest class mean
        of the train images.
    text_norm : float or None
        Mean length of the text features, averaged over templates; None without text.
    image_norm : float
        Mean length of these image features.
    """

    partition: str
    images: int
    accuracy: float
    text_norm: float | None
    image_norm: float

    def __str__(self) -> str:
        what = "accuracy of the nearest class mean" if self.text_norm is None else "zero-shot accuracy"
        of_text = "" if self.text_norm is None else f"text features {self.text_norm:.4g}, of "
        return (
            f"{what} {self.accuracy:.2f} % on {self.images} {self.partition} images; mean length of {of_text}image "
            f"features {self.image_norm:.4g}"
        )


def zero_shot_of(contents: CacheContents) -> ZeroShot:
    """Return the accuracy of text or class means on test, or on val or train if there is no test image."""
    present = set(contents.partitions.tolist())
    number = next(number for number in (2, 1, 0) if number in present)
    rows = np.flatnonzero(contents.partitions == number)
    everything = np.asarray(contents.image_features[:])
    if contents.text is not None:
        base = regular_base(contents.text.embeddings)  # (C, D)
    else:
        base = _class_means(everything, contents.labels, contents.partitions == 0, len(contents.classnames))
    lengths = np.linalg.norm(base, axis=1, keepdims=True)
    lengths[lengths == 0] = 1.0  # of a class mean: a class without train images
    features = everything[rows].astype(np.float32)  # (N, D)
    correct = 0
    for start in range(0, len(rows), ROWS):
        predictions = (features[start : start + ROWS] @ (base / lengths).T).argmax(axis=1)
        correct += int((predictions == contents.labels[rows[start : start + ROWS]]).sum())
    text_norm = None if contents.text is None else float(lengths.mean())
    sizes = text_norm, float(np.linalg.norm(features, axis=1).mean())
    return ZeroShot(PARTITIONS[number], len(rows), 100 * correct / len(rows), *sizes)


def _class_means(features: np.ndarray, labels: np.ndarray, chosen: np.ndarray, classes: int) -> np.ndarray:
    """Return the mean (C, D) of the chosen rows of each class; zeros for a class without any."""
    means = np.zeros((classes, features.shape[1]), np.float32)
    for label in np.unique(labels[chosen]):
        means[label] = features[chosen & (labels == label)].mean(axis=0, dtype=np.float64)
    return means
