"""Arrays that somebody else made, checked one by one; every mistake is an ArraysError of one line.

Axes: N images of a partition, C classes, T templates, D embedding.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from taskres_cache.caches.schema import GREATEST_LOGIT_SCALE, is_likely_logarithm
from taskres_cache.caches.soundness import all_equal, unusable_row
from taskres_cache.errors import ArraysError

OPENAI_LOGIT_SCALE = 100.0
REPEATED_SHARE = 0.5  # of the test images; fewer occur in real data sets, which have duplicates


def text_features(arrays: Mapping[str, np.ndarray], classes: int) -> np.ndarray:
    """Return text features as (C, T, D) float32."""
    text = arrays["text_features"]
    _refuse_type("text_features", text)
    if text.ndim not in (2, 3) or len(text) != classes or 0 in text.shape:
        raise ArraysError(
            f"text_features has shape {text.shape}, expected ({classes}, D) or ({classes}, T, D): one row per "
            "class name"
        )
    text = text.reshape(classes, -1, text.shape[-1])
    converted = _usable("text_features", text.reshape(-1, text.shape[-1])).reshape(text.shape)
    if all_equal(converted.reshape(classes, -1)):
        raise ArraysError(f"text_features are equal for all {classes} classes; compute them again")
    return converted


def image_features(
    arrays: Mapping[str, np.ndarray], partition: str, labels: np.ndarray, dims: tuple[int, ...], reference: str
) -> np.ndarray:
    """Return the features of a partition as (N, D) float32; `dims` is (D,), as the array named `reference` has it."""
    name, dim = f"{partition}_features", dims[0] if dims else 0
    features = arrays[name]
    _refuse_type(name, features)
    if features.ndim != 2 or len(features) != len(labels):
        raise ArraysError(
            f"{name} has shape {features.shape}, expected ({len(labels)}, {dim}): one row per label in "
            f"{partition}_labels"
        )
    if features.shape[1] != dim:
        raise ArraysError(
            f"{name} has {features.shape[1]} columns and {reference} has {dim}; both must come from the same model"
        )
    converted = _usable(name, features)
    if all_equal(converted):
        raise ArraysError(f"{name}: all {len(features)} rows are equal; compute them again")
    return converted


def labels_of(arrays: Mapping[str, np.ndarray], partition: str, classes: int) -> np.ndarray:
    """Return labels as (N,) int32."""
    name = f"{partition}_labels"
    for one, other in ((f"{partition}_features", name), (name, f"{partition}_features")):
        if other not in arrays:
            raise ArraysError(f"{one} is given but {other} is missing; add it")
    labels = arrays[name]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ArraysError(f"{name} has shape {labels.shape} and type {labels.dtype}, expected integers of shape (N,)")
    if len(labels) == 0:
        raise ArraysError(f"{name} is empty; train and test need images, and val can be left out")
    if labels.min() < 0 or labels.max() >= classes:
        raise ArraysError(
            f"{name} has labels from {labels.min()} to {labels.max()}, expected 0 to {classes - 1}: positions in "
            f"the {classes} classnames"
        )
    return labels.astype(np.int32)


def strings(name: str, array: np.ndarray) -> tuple[str, ...]:
    """Return an array of text; bytes, as h5py and some programs store text, are UTF-8."""
    values = array.tolist() if array.ndim == 1 and array.dtype.kind in "SUO" else None
    if values is None or not all(isinstance(value, str | bytes) for value in values):
        raise ArraysError(
            f"{name} has shape {array.shape} and type {array.dtype}, expected text of one axis; save "
            "np.array([...], dtype=str)"
        )
    try:
        strings = tuple(value.decode() if isinstance(value, bytes) else value for value in values)
        "".join(strings).encode()
    except UnicodeError as error:
        raise ArraysError(f"{name} has bytes that are not UTF-8 ({error}); decode it and save text") from error
    empty = next((place for place, string in enumerate(strings) if not string.strip()), None)
    if empty is not None:
        raise ArraysError(f"{name}: entry {empty} is empty; name every entry")
    return strings


def logit_scale(arrays: Mapping[str, np.ndarray]) -> float:
    """Return the multiplier of the cosine similarities; OpenAI's if there is none."""
    value = arrays.get("logit_scale", np.array(OPENAI_LOGIT_SCALE))
    numeric = value.dtype.kind in "iuf" and value.size == 1
    scale = float(value.reshape(())) if numeric else float("nan")
    if not 0 < scale <= GREATEST_LOGIT_SCALE:
        found = scale if numeric else f"an array of shape {value.shape} and type {value.dtype}"
        raise ArraysError(f"logit_scale is {found}, expected one positive number: the multiplier, not its logarithm")
    if is_likely_logarithm(scale):
        raise ArraysError(
            f"logit_scale is {scale:.6g}, nearly certainly the logarithm of {math.exp(scale):.4g}; expected the "
            "multiplier: save np.exp(logit_scale)"
        )
    return scale


def templates(arrays: Mapping[str, np.ndarray], count: int) -> tuple[str, ...]:
    """Return the templates (T,), or numbered names if there are none."""
    if "templates" not in arrays:
        return tuple(f"imported text features {number}" for number in range(count))
    templates = strings("templates", arrays["templates"])
    if len(templates) != count:
        raise ArraysError(f"templates has length {len(templates)}, but text_features has {count} per class")
    return templates


def refuse_classes(classnames: Sequence[str], class_ids: Sequence[str] | None, train_labels: np.ndarray) -> None:
    """Raise ArraysError for fewer than two classes, two of one name or identifier, or one without training images."""
    if len(classnames) < 2:
        raise ArraysError(f"classnames has length {len(classnames)}, expected at least 2")
    if class_ids is not None and len(class_ids) != len(classnames):
        raise ArraysError(f"class_ids has length {len(class_ids)} and classnames {len(classnames)}; expected as many")
    twice, count = Counter(classnames if class_ids is None else class_ids).most_common(1)[0]
    if count > 1 and class_ids is None:
        raise ArraysError(
            f"class name {twice!r} occurs twice in classnames; give every class its own name, or add class_ids"
        )
    if count > 1:
        raise ArraysError(f"{twice!r} occurs twice in class_ids; give every class its own identifier")
    empty = sorted(set(range(len(classnames))) - set(train_labels.tolist()))
    if empty:
        raise ArraysError(f"class {classnames[empty[0]]!r} has no training image; add one or remove the class")


def refuse_repeated(features: Mapping[str, np.ndarray]) -> None:
    """Raise ArraysError if most validation or test images are training images."""
    for partition, count in repeated_rows(features).items():
        if count >= REPEATED_SHARE * len(features[partition]):
            raise ArraysError(
                f"{count} of {len(features[partition])} rows of {partition}_features are also in train_features; "
                "expected other images: an accuracy on training images says nothing"
            )


def repeated_rows(features: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Return how many rows of val and test are also training rows, bit for bit."""
    known = {row.tobytes() for row in features["train"]}
    others = {partition: rows for partition, rows in features.items() if partition != "train"}
    return {partition: sum(row.tobytes() in known for row in rows) for partition, rows in others.items()}


def _refuse_type(name: str, features: np.ndarray) -> None:
    if not np.issubdtype(features.dtype, np.floating):
        raise ArraysError(f"{name} has type {features.dtype}, expected floating-point features")


def _usable(name: str, features: np.ndarray) -> np.ndarray:
    """Return features as float32; raises ArraysError for the first row without a direction."""
    with np.errstate(over="ignore"):
        converted: np.ndarray = features.astype(np.float32)
    fault = unusable_row(converted)
    if fault is not None:
        raise ArraysError(f"{name}: row {fault[0]} {fault[1]}; remove it or compute it again")
    return converted
