"""Optional arrays of format 2 that another program made: pre-projections, views, further prompts; checked one by one.

Axes: N images, M train images, V views, C classes, P prompts, D embedding, W and I widths of the towers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from taskres_cache.caches.contents import WIDE, ImageProjection, PromptSet, TextBases, ViewFamily
from taskres_cache.caches.foreign.arrays import strings
from taskres_cache.caches.foreign.npz import PROMPTS
from taskres_cache.caches.provenance import UNKNOWN
from taskres_cache.caches.schema import GROUP_NAME, RESERVED
from taskres_cache.caches.soundness import mismatched_row, unusable_row
from taskres_cache.errors import ArraysError

FAMILIES = {WIDE: "train_views", "narrow": "train_views_narrow"}  # family -> its array
OF_TEXT = ("templates", "text_pre_projection", "text_projection")
IMPORTED = {"made_by": "imported arrays"}  # settings of imported views
Arrays = Mapping[str, np.ndarray]


def parts_of_version_2(arrays: Arrays, features: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return pre-projections and views as fields of `CacheContents`; `features` (N, D) by partition.

    Raises
    ------
    ArraysError
        An array is missing or has another shape, or inputs times the projection are not the features.
    """
    projection, inputs = _pre_projections(arrays, features)
    views = _families(arrays, features["train"], projection)
    wide = views.pop(WIDE, None)
    return {
        "image_projection": projection,
        "pre_projection": inputs,
        "augmented": wide.image_features if wide else None,
        "augmented_rows": wide.rows if wide else None,
        "augmented_pre_projection": wide.pre_projection if wide else None,
        "families": views,
    }


def _pre_projections(
    arrays: Arrays, features: Mapping[str, np.ndarray]
) -> tuple[ImageProjection | None, np.ndarray | None]:
    """Return the image projection, and its inputs (N, I) for all partitions; both None if the arrays have none."""
    needed = ("image_projection", *(f"{partition}_pre_projection" for partition in features))
    given = [name for name in (*needed, "image_projection_bias", "val_pre_projection") if name in arrays]
    if not given:
        return None, None
    missing = next((name for name in needed if name not in arrays), None)
    if missing is not None:
        raise ArraysError(f"{given[0]} is given but {missing} is missing; add it")
    if "val" not in features and "val_pre_projection" in arrays:
        raise ArraysError("val_pre_projection is given but val_features is missing; add it")
    projection = _projection(arrays, features["train"].shape[1])
    inputs = [_inputs(arrays, f"{name}_pre_projection", projection, rows) for name, rows in features.items()]
    return projection, np.concatenate(inputs)


def _families(arrays: Arrays, train: np.ndarray, projection: ImageProjection | None) -> dict[str, ViewFamily]:
    """Return the families of views of the train images, whose features are (M, D)."""
    found: dict[str, ViewFamily] = {}
    for family, name in FAMILIES.items():
        inputs_name = f"{name}_pre_projection"
        for one, other in ((inputs_name, name), (inputs_name, "image_projection")):
            if one in arrays and other not in arrays:
                raise ArraysError(f"{one} is given but {other} is missing; add it")
        if name not in arrays:
            continue
        views = _floats(arrays, name)
        if views.ndim != 3 or len(views) != len(train) or views.shape[2] != train.shape[1] or views.shape[1] == 0:
            raise ArraysError(f"{name} has shape {views.shape}, expected ({len(train)}, V, {train.shape[1]})")
        _refuse_unusable(name, views)
        inputs = _inputs(arrays, inputs_name, projection, views) if projection and inputs_name in arrays else None
        found[family] = ViewFamily(dict(IMPORTED), np.arange(len(train)), views, inputs)
    return found


def refuse_missing_text(arrays: Arrays) -> None:
    """Raise ArraysError for arrays that belong to text features, if these are not given."""
    belonging = [name for name in arrays if name in OF_TEXT or PROMPTS.fullmatch(name)]
    if belonging and "text_features" not in arrays:
        raise ArraysError(f"{belonging[0]} is given but text_features is missing; add it")


def with_text_projection(arrays: Arrays, text: TextBases) -> TextBases:
    """Return text features with their pre-projections (C, T, W) and the projection (W, D), if both are given.

    Raises
    ------
    ArraysError
        One is missing or has another shape, or their product is not the text features.
    """
    names = ("text_pre_projection", "text_projection")
    given = [name for name in names if name in arrays]
    if not given:
        return text
    if len(given) == 1:
        raise ArraysError(f"{given[0]} is given but {names[given[0] == names[0]]} is missing; add it")
    inputs, projection = (_floats(arrays, name) for name in names)
    classes, templates, dim = text.embeddings.shape
    if inputs.ndim == 2 and templates == 1:
        inputs = inputs[:, None]
    if inputs.ndim != 3 or inputs.shape[:2] != (classes, templates) or projection.shape != (inputs.shape[2], dim):
        raise ArraysError(
            f"text_pre_projection has shape {inputs.shape} and text_projection {projection.shape}, expected "
            f"({classes}, {templates}, W) and (W, {dim})"
        )
    _refuse_mismatch("text_pre_projection @ text_projection", inputs @ projection, text.embeddings)
    return TextBases(text.templates, text.embeddings, inputs, projection)


def prompt_sets(arrays: Arrays, classnames: Sequence[str], text: TextBases) -> dict[str, PromptSet]:
    """Return the named sets of prompts, each sorted by class.

    Raises
    ------
    ArraysError
        A set has an unusable name, a part is missing or has another shape, or a class has no prompt.
    """
    names = sorted({matched[1] for matched in map(PROMPTS.fullmatch, arrays) if matched})
    return {name: _prompt_set(arrays, name, classnames, text) for name in names}


def _prompt_set(arrays: Arrays, name: str, classnames: Sequence[str], text: TextBases) -> PromptSet:
    prefix, needed = f"prompts_{name}", ["texts", "labels", "features"]
    needed += ["pre_projection"] if text.projection is not None else []
    missing = next((part for part in needed if f"{prefix}_{part}" not in arrays), None)
    if missing is not None:
        raise ArraysError(f"{prefix}_{missing} is missing; a set of prompts needs {', '.join(needed)}")
    if GROUP_NAME.fullmatch(name) is None or name == RESERVED["prompts"]:
        raise ArraysError(f"{prefix}_texts: {name!r} is not a usable name of a set of prompts; choose another")
    texts, labels = strings(f"{prefix}_texts", arrays[f"{prefix}_texts"]), arrays[f"{prefix}_labels"]
    features, dim = _floats(arrays, f"{prefix}_features"), text.embeddings.shape[2]
    if features.shape != (len(texts), dim) or labels.shape != (len(texts),) or labels.dtype.kind not in "iu":
        raise ArraysError(
            f"{prefix}_features has shape {features.shape} and {prefix}_labels {labels.shape} of {labels.dtype}, "
            f"expected ({len(texts)}, {dim}) and integers ({len(texts)},)"
        )
    if not np.array_equal(np.unique(labels), np.arange(len(classnames))):
        raise ArraysError(f"{prefix}_labels has other labels than 0 to {len(classnames) - 1}, each at least once")
    _refuse_unusable(f"{prefix}_features", features)
    inputs = _prompt_inputs(arrays, f"{prefix}_pre_projection", features, text.projection)
    order = np.argsort(labels, kind="stable")
    return PromptSet(
        texts=tuple(texts[place] for place in order.tolist()),
        labels=labels[order].astype(np.int64),
        embeddings=features[order],
        pre_projection=None if inputs is None else inputs[order],
    )


def _prompt_inputs(arrays: Arrays, name: str, features: np.ndarray, projection: np.ndarray | None) -> np.ndarray | None:
    """Return the pre-projections (P, W) of a set of prompts, or None without them."""
    if name not in arrays:
        return None
    inputs = _floats(arrays, name)
    if projection is None:
        raise ArraysError(f"{name} is given but text_projection is missing; add it")
    if inputs.shape != (len(features), len(projection)):
        raise ArraysError(f"{name} has shape {inputs.shape}, expected ({len(features)}, {len(projection)})")
    _refuse_mismatch(f"{name} @ text_projection", inputs @ projection, features)
    return inputs


def _projection(arrays: Arrays, dim: int) -> ImageProjection:
    weights = _floats(arrays, "image_projection")
    bias = _floats(arrays, "image_projection_bias") if "image_projection_bias" in arrays else None
    if weights.ndim != 2 or weights.shape[1] != dim:
        raise ArraysError(f"image_projection has shape {weights.shape}, expected (I, {dim})")
    if bias is not None and bias.shape != (dim,):
        raise ArraysError(f"image_projection_bias has shape {bias.shape}, expected ({dim},)")
    return ImageProjection(weights, bias)


def _inputs(arrays: Arrays, name: str, projection: ImageProjection, features: np.ndarray) -> np.ndarray:
    """Return inputs of the image projection (..., I); raises ArraysError unless they give the features (..., D)."""
    inputs, expected = _floats(arrays, name), (*features.shape[:-1], projection.weights.shape[0])
    if inputs.shape != expected:
        raise ArraysError(f"{name} has shape {inputs.shape}, expected {expected}: the input of image_projection")
    bias = "" if projection.bias is None else " + image_projection_bias"
    _refuse_mismatch(f"{name} @ image_projection{bias}", projection.applied(inputs), features)
    return inputs


def _floats(arrays: Arrays, name: str) -> np.ndarray:
    array = arrays[name]
    if not np.issubdtype(array.dtype, np.floating):
        raise ArraysError(f"{name} has type {array.dtype}, expected floating point")
    with np.errstate(over="ignore"):
        floats: np.ndarray = array.astype(np.float32)
    if not np.isfinite(floats).all():
        raise ArraysError(f"{name} has NaN or infinite values; compute it again")
    return floats


def _refuse_unusable(name: str, features: np.ndarray) -> None:
    fault = unusable_row(features.reshape(-1, features.shape[-1]))
    if fault is not None:
        raise ArraysError(f"{name}: row {fault[0]} {fault[1]}; remove it or compute it again")


def _refuse_mismatch(formula: str, computed: np.ndarray, features: np.ndarray) -> None:
    fault = mismatched_row(computed, features, UNKNOWN)
    if fault is not None:
        raise ArraysError(
            f"{formula} differs from the features in row {fault[0]} (relative difference {fault[1]:.2g}); save all of "
            "one model, un-normalised"
        )
