"""What each attribute and array of a cache must be, declared once; knows neither HDF5 nor torch.

Axes: N images, M train images, V augmented views, C classes, T templates, P prompts, D embedding, W and I widths of the
text and the image tower, S skipped images, R corrected images.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from taskres_cache.caches.contents import DEFAULT_PROMPTS, WIDE
from taskres_cache.caches.provenance import DICTIONARIES, NAMES, OWN, PAPER
from taskres_cache.errors import CacheError
from taskres_cache.system.names import shown, unsafe_name

Kind = Literal["text", "integers", "floats"]
REMEDY = "make the cache again"
GREATEST_LOGIT_SCALE = 1e6  # trained models have 10 to 200; products beyond this overflow
# Logarithms of 13.5 to 128. Models start at 14.3 and are trained to about 100, and no model multiplies by 2.6 to 4.85.
LOGARITHMS = (2.6, 4.85)
# Fields of the JSON in `recipe`; another field comes from a newer version, which `fit` says.
RECIPE_NUMBERS = ("alpha", "lr", "weight_decay")
RECIPE_WHOLE = ("epochs", "batch_size", "patience", "views")
RECIPE_OPTIONAL = ("epochs", "patience")  # may be null
RECIPE_TEXTS = ("base", "base_sha256", "residual", "alpha_rule", "precision", "view_use")
RECIPE_LISTS = ("alphas", "lrs", "weight_decays")


@dataclass(frozen=True)
class ArrayRule:
    """What one array must be.

    Parameters
    ----------
    kind : {"text", "integers", "floats"}
        Type of its values, of any width.
    axes : str
        One letter per axis; equal letters have equal sizes.
    optional : bool
        Whether another program may leave it out.
    """

    kind: Kind
    axes: str
    optional: bool = False


CORRECTION_PARTS = ("path", "original", "label", "original_part", "part")  # the fields of `Change`

ARRAYS = {
    "classnames": ArrayRule("text", "C"),
    "class_ids": ArrayRule("text", "C", optional=True),
    "images/label": ArrayRule("integers", "N"),
    "images/path": ArrayRule("text", "N"),
    "images/stamp": ArrayRule("text", "N", optional=True),
    "images/partition": ArrayRule("integers", "N"),
    "text/templates": ArrayRule("text", "T", optional=True),  # from version 2 on, see `check_text`
    "features/center": ArrayRule("floats", "ND"),
    "text/embeddings": ArrayRule("floats", "CTD", optional=True),
    "text/pre_projection": ArrayRule("floats", "CTW", optional=True),
    "text/projection": ArrayRule("floats", "WD", optional=True),
    "features/augmented_rows": ArrayRule("integers", "M", optional=True),
    "features/augmented": ArrayRule("floats", "MVD", optional=True),
    "skipped/path": ArrayRule("text", "S", optional=True),
    "skipped/reason": ArrayRule("text", "S", optional=True),
}
ARRAYS_OF_VERSION_2 = {
    "image/projection": ArrayRule("floats", "ID", optional=True),
    "image/projection_bias": ArrayRule("floats", "D", optional=True),
    "features/pre_projection": ArrayRule("floats", "NI", optional=True),
    "features/augmented_pre_projection": ArrayRule("floats", "MVI", optional=True),
    **{f"corrections/{part}": ArrayRule("text", "R", optional=True) for part in CORRECTION_PARTS},
    "text/shown_names": ArrayRule("text", "C", optional=True),
}
# Parts of each named group of version 2; M, V and P are sizes of one group.
GROUPS = {
    "views": {
        "features": ArrayRule("floats", "MVD"),
        "rows": ArrayRule("integers", "M"),
        "pre_projection": ArrayRule("floats", "MVI", optional=True),
    },
    "prompts": {
        "texts": ArrayRule("text", "P"),
        "class": ArrayRule("integers", "P"),
        "embeddings": ArrayRule("floats", "PD"),
        "pre_projection": ArrayRule("floats", "PW", optional=True),
    },
}
OWN_AXES = "MVP"
GROUP_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
RESERVED = {"views": WIDE, "prompts": DEFAULT_PROMPTS}  # these have their places from version 1
# Present together.
PAIRS = (
    ("text/templates", "text/embeddings"),
    ("features/augmented", "features/augmented_rows"),
    ("text/pre_projection", "text/projection"),
    ("skipped/path", "skipped/reason"),
    ("features/pre_projection", "image/projection"),
    *((f"corrections/{part}", "corrections/path") for part in CORRECTION_PARTS[1:]),
)
# The first only together with the second.
NEEDS = (
    ("text/projection", "text/embeddings"),
    ("image/projection_bias", "image/projection"),
    ("features/augmented_pre_projection", "features/pre_projection"),
    ("features/augmented_pre_projection", "features/augmented"),
)
SPLIT_PART = ArrayRule("integers", "K")  # K images drawn: every array below `splits`
FEWEST = {"C": 2, "N": 1, "T": 1, "D": 1, "W": 1, "V": 1, "I": 1, "P": 1}

TEXTS = (*NAMES, "weights_sha256", "created_at", "created_by")
DEFAULT_SET = "default_prompts"  # the set of prompts that fits use
OPTIONAL_TEXTS = (
    "model_config", "precision", "classnames_form", "split", "images_folder", "defaults", "val_per_class", DEFAULT_SET,
)  # fmt: skip
VAL_PER_CLASS = re.compile(r"[1-9]\d{0,8}|all")
VIEW_FAMILIES = "view_families"  # settings of the families below `views`, by name
OBJECTS = ("preprocess", *DICTIONARIES, VIEW_FAMILIES)  # JSON


@dataclass(frozen=True)
class FoundArray:
    """What the file says about one array.

    Parameters
    ----------
    kind : str
        A `Kind`, or the name of another type.
    shape : tuple of int
        Its shape.
    """

    kind: str
    shape: tuple[int, ...]


def is_of_version_2(name: str) -> bool:
    """Return True for an array that version 1 of the format does not have."""
    return name in ARRAYS_OF_VERSION_2 or name.split("/")[0] in GROUPS


def group_names(found: Iterable[str], group: str) -> tuple[str, ...]:
    """Return the names of the groups below `views` or `prompts`, sorted."""
    return tuple(sorted({name.split("/")[1] for name in found if name.startswith(f"{group}/")}))


def check_arrays(path: Path, found: Mapping[str, FoundArray]) -> None:
    """Raise CacheError if an array is missing, or has another type or shape than its rule says."""
    sizes: dict[str, int] = {}
    for name, rule in {**ARRAYS, **ARRAYS_OF_VERSION_2}.items():
        if name in found:
            _check_array(path, name, found[name], rule, sizes)
        elif not rule.optional:
            raise CacheError(f"{path} has no array {name}; {REMEDY}")
    for one, other in PAIRS:
        if (one in found) != (other in found):
            missing, present = (one, other) if other in found else (other, one)
            raise CacheError(f"{path} has no array {missing}, which belongs to {present}; {REMEDY}")
    for one, other in NEEDS:
        if one in found and other not in found:
            raise CacheError(f"{path} has no array {other}, which {one} needs; {REMEDY}")
    for name in found:
        if name.startswith("splits/"):
            _check_array(path, name, found[name], SPLIT_PART, {})
    for group in GROUPS:
        for name in group_names(found, group):
            _check_group(path, group, name, found, sizes)


def check_text(path: Path, version: int, found: Mapping[str, FoundArray]) -> None:
    """Raise CacheError if a file of version 1 has no text features; version 2 may be without."""
    missing = [name for name in ("text/templates", "text/embeddings") if name not in found]
    if version == 1 and missing:
        raise CacheError(f"{path} has no array {missing[0]}; {REMEDY}")


def _check_group(path: Path, group: str, name: str, found: Mapping[str, FoundArray], sizes: Mapping[str, int]) -> None:
    """Check the arrays of one family of views or one set of prompts."""
    rules, prefix = GROUPS[group], f"{group}/{name}/"
    if GROUP_NAME.fullmatch(name) is None or name == RESERVED[group]:
        raise CacheError(f"{path}: {group}/{shown(name)} is not a usable name of a group; {REMEDY}")
    unexpected = next((one for one in found if one.startswith(prefix) and one.removeprefix(prefix) not in rules), None)
    if unexpected is not None:
        raise CacheError(f"{path}: unexpected array {unexpected}, expected {prefix}{', '.join(rules)}")
    own = {axis: size for axis, size in sizes.items() if axis not in OWN_AXES}
    for part, rule in rules.items():
        if prefix + part in found:
            _check_array(path, prefix + part, found[prefix + part], rule, own)
        elif not rule.optional:
            raise CacheError(f"{path} has no array {prefix}{part}; {REMEDY}")
    needed = {"views": "features/pre_projection", "prompts": "text/projection"}[group]
    if f"{prefix}pre_projection" in found and needed not in found:
        raise CacheError(f"{path} has no array {needed}, which {prefix}pre_projection needs; {REMEDY}")


def check_attributes(path: Path, plain: Mapping[str, Any]) -> None:
    """Raise CacheError if an attribute is missing or invalid; `plain` has text and numbers by name."""
    for name in (*TEXTS, "logit_scale", "preprocess"):
        if name not in plain:
            raise CacheError(f"{path} has no attribute {name}; {REMEDY}")
    for name in (*TEXTS, *OPTIONAL_TEXTS, *OBJECTS):
        if name in plain and not isinstance(plain[name], str):
            raise CacheError(f"{path}: attribute {name} is {_as_found(plain[name])}, expected text; {REMEDY}")
    for name in NAMES:
        fault = unsafe_name(plain[name])
        if fault is not None:
            raise CacheError(
                f"{path}: attribute {name} is {shown(plain[name])}, which {fault}; expected a plain name, since it "
                "becomes part of a path: do not use this file unless you know where it comes from"
            )
    if plain.get("defaults", PAPER) not in (PAPER, OWN):
        raise CacheError(
            f"{path}: attribute defaults is {_as_found(plain['defaults'])}, expected {PAPER} or {OWN}; {REMEDY}"
        )
    if VAL_PER_CLASS.fullmatch(plain.get("val_per_class", "all")) is None:
        found = _as_found(plain["val_per_class"])
        raise CacheError(f"{path}: attribute val_per_class is {found}, expected a number or all; {REMEDY}")
    for name in OBJECTS:
        if name in plain and not _is_object(plain[name]):
            raise CacheError(f"{path}: attribute {name} is {shown(plain[name])}, expected a JSON object; {REMEDY}")
    for name, value in json.loads(plain.get("recipe", "{}")).items():
        if not _is_recipe_value(name, value):
            raise CacheError(f"{path}: attribute recipe has {name} {shown(repr(value))}, of a wrong type; {REMEDY}")
    scale = plain["logit_scale"]
    if not isinstance(scale, float) or not 0 < scale <= GREATEST_LOGIT_SCALE:
        raise CacheError(
            f"{path}: attribute logit_scale is {_as_found(scale)}, expected a positive multiplier (100 for OpenAI's "
            f"models); {REMEDY}"
        )


def is_likely_logarithm(logit_scale: float) -> bool:
    """Return True for a scale that is nearly certainly the logarithm of the multiplier."""
    return LOGARITHMS[0] <= logit_scale <= LOGARITHMS[1]


def _as_found(value: object) -> str:
    """Return a value for a message, shortened."""
    return shown(value) if isinstance(value, str) else shown(repr(value))[1:-1]


def _check_array(path: Path, name: str, found: FoundArray, rule: ArrayRule, sizes: dict[str, int]) -> None:
    """Check one array and add the sizes of its axes to `sizes`."""
    if found.kind != rule.kind:
        raise CacheError(f"{path}: {name} has type {found.kind}, expected {rule.kind}; {REMEDY}")
    expected = tuple(sizes.get(axis) for axis in rule.axes)
    agrees = len(found.shape) == len(rule.axes) and all(
        size in (None, has) for size, has in zip(expected, found.shape, strict=True)
    )
    if not agrees:
        named = ", ".join(str(sizes.get(axis, axis)) for axis in rule.axes) + ("," if len(rule.axes) == 1 else "")
        raise CacheError(f"{path}: {name} has shape {found.shape}, expected ({named}); {REMEDY}")
    for axis, size in zip(rule.axes, found.shape, strict=True):
        sizes[axis] = size
        least = FEWEST.get(axis, 0)
        if size < least:
            raise CacheError(f"{path}: {name} has shape {found.shape}, expected {axis} of at least {least}; {REMEDY}")


def _is_recipe_value(name: str, value: Any) -> bool:
    """Return True if a field of a recipe has the right type, or is not known."""
    if value is None:
        return name in RECIPE_OPTIONAL or name not in RECIPE_WHOLE + RECIPE_NUMBERS + RECIPE_TEXTS + RECIPE_LISTS
    if name in RECIPE_NUMBERS:
        return _is_number(value)
    if name in RECIPE_WHOLE:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31
    if name in RECIPE_LISTS:
        return isinstance(value, list) and all(_is_number(one) for one in value)
    return isinstance(value, str) or name not in RECIPE_TEXTS


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < GREATEST_LOGIT_SCALE


def _is_object(text: str) -> bool:
    """Return True for a JSON object whose values are finite."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def declared_bytes(shape: tuple[int, ...], chunks: tuple[int, ...] | None, item_bytes: int) -> int:
    """Return the memory that reading an array takes: its values, or one chunk if that is larger."""
    return item_bytes * max(math.prod(shape), math.prod(chunks) if chunks else 0)
