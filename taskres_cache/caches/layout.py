"""Where each part of a cache's contents lies in its file; knows neither HDF5 nor torch.

Axes: N images, M train images, V augmented views, C classes, T templates, P prompts, D embedding, W and I widths of the
text and the image tower.
"""

from typing import Any

import numpy as np

from taskres_cache.caches.contents import WIDE, CacheContents, SplitName, TextBases
from taskres_cache.caches.schema import CORRECTION_PARTS
from taskres_cache.datasets.sampling import shots_text

# Array names of the families of views and sets of prompts; the family WIDE has the place that format 1 gave it.
WIDE_ARRAYS = {
    "features": "features/augmented",
    "rows": "features/augmented_rows",
    "pre_projection": "features/augmented_pre_projection",
}


def family_array(family: str, part: str) -> str:
    """Return the path of a part of a family of views: `features`, `rows` or `pre_projection`."""
    return WIDE_ARRAYS[part] if family == WIDE else f"views/{family}/{part}"


def split_array(name: SplitName, part: str) -> str:
    """Return the path of a part of a few-shot split: `train` or `val`."""
    shots, seed = name
    return f"splits/shots_{shots_text(shots)}/seed_{seed}/{part}"


def arrays_by_path(contents: CacheContents) -> dict[str, Any]:
    """Return all arrays of a cache by their paths in the file; text as tuples."""
    arrays: dict[str, Any] = {
        "classnames": contents.classnames,
        "images/path": contents.paths,
        "images/stamp": contents.stamps,
        "images/label": contents.labels.astype(np.int32),
        "images/partition": contents.partitions.astype(np.uint8),
        "features/center": contents.image_features,
        "skipped/path": tuple(contents.skipped),
        "skipped/reason": tuple(contents.skipped.values()),
    }
    if contents.class_ids is not None:
        arrays["class_ids"] = contents.class_ids
    if contents.augmented is not None and contents.augmented_rows is not None:
        arrays["features/augmented"] = contents.augmented
        arrays["features/augmented_rows"] = contents.augmented_rows.astype(np.int64)
    if contents.text is not None:
        arrays |= _text_arrays(contents.text)
    for name, split in contents.splits.items():
        arrays[split_array(name, "train")] = split.train.astype(np.int64)
        arrays[split_array(name, "val")] = split.val.astype(np.int64)
    return arrays | arrays_of_version_2(contents)


def _text_arrays(text: TextBases) -> dict[str, Any]:
    arrays: dict[str, Any] = {"text/templates": text.templates, "text/embeddings": text.embeddings.astype(np.float32)}
    if text.pre_projection is not None and text.projection is not None:
        arrays["text/pre_projection"] = text.pre_projection.astype(np.float32)
        arrays["text/projection"] = text.projection.astype(np.float32)
    return arrays


def format_version(contents: CacheContents) -> int:
    """Return the version of the format: 1 if the cache has all that version 1 requires, and nothing else."""
    return 2 if contents.text is None or arrays_of_version_2(contents) else 1


def arrays_of_version_2(contents: CacheContents) -> dict[str, Any]:
    """Return the arrays that format 1 does not have; empty for a cache that is written as format 1."""
    arrays: dict[str, Any] = {}
    if contents.image_projection is not None:
        weights, bias = contents.image_projection
        arrays["image/projection"] = weights.astype(np.float32)
        arrays |= {} if bias is None else {"image/projection_bias": bias.astype(np.float32)}
    if contents.pre_projection is not None:
        arrays["features/pre_projection"] = contents.pre_projection
    if contents.augmented_pre_projection is not None:
        arrays[family_array(WIDE, "pre_projection")] = contents.augmented_pre_projection
    for part, texts in zip(CORRECTION_PARTS, zip(*contents.corrections, strict=True), strict=False):
        arrays[f"corrections/{part}"] = texts
    for name, family in contents.families.items():
        arrays[family_array(name, "features")] = family.image_features
        arrays[family_array(name, "rows")] = family.rows.astype(np.int64)
        if family.pre_projection is not None:
            arrays[family_array(name, "pre_projection")] = family.pre_projection
    if contents.shown_names is not None:
        arrays["text/shown_names"] = contents.shown_names
    for name, prompts in contents.prompts.items():
        arrays[f"prompts/{name}/texts"] = prompts.texts
        arrays[f"prompts/{name}/class"] = prompts.labels.astype(np.int64)
        arrays[f"prompts/{name}/embeddings"] = prompts.embeddings.astype(np.float32, copy=False)
        if prompts.pre_projection is not None:
            arrays[f"prompts/{name}/pre_projection"] = prompts.pre_projection.astype(np.float32, copy=False)
    return arrays
