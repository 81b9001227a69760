"""Labels that are names, or numbers without class names, as positions in the class names.

Axes: N images of a partition, C classes.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from taskres_cache.caches.foreign.arrays import strings
from taskres_cache.errors import ArraysError, near_matches
from taskres_cache.system.names import shown

LABELS = ("labels", "train_labels", "val_labels", "test_labels")
Arrays = Mapping[str, np.ndarray]


def with_numbered_labels(arrays: Arrays) -> dict[str, np.ndarray]:
    """Return arrays with class names and integer labels.

    Names are sorted unless `classnames` gives them. Integers without class names are named by their digits.

    Raises
    ------
    ArraysError
        Labels are neither integers nor text, a name is not in `classnames`, a number between others has no image, or
        there is text without class names.
    """
    given = {name: arrays[name] for name in LABELS if name in arrays}
    if not given:
        return dict(arrays)
    if "classnames" not in arrays and "text_features" in arrays:
        raise ArraysError("missing arrays: classnames; text_features needs the name of the class of each of its rows")
    are_names = {name: labels.dtype.kind in "SUO" for name, labels in given.items()}
    if not any(are_names.values()):
        known = "classnames" in arrays or any(labels.dtype.kind not in "iu" for labels in given.values())
        return dict(arrays) if known else {**arrays, "classnames": _counted_names(given)}
    numeric = next((name for name, is_name in are_names.items() if not is_name), None)
    if numeric is not None:
        named = next(name for name, is_name in are_names.items() if is_name)
        raise ArraysError(f"{numeric} has numbers and {named} has names; give all labels in the same form")
    names = {name: _names_in(name, labels) for name, labels in given.items()}
    if "classnames" in arrays:
        classnames = strings("classnames", arrays["classnames"])
    else:
        classnames = tuple(sorted({label for labels in names.values() for label in labels}))
    position_of = {classname: position for position, classname in enumerate(classnames)}
    numbered = {name: _positions(name, labels, position_of) for name, labels in names.items()}
    return {**arrays, **numbered, "classnames": np.array(classnames)}


def _names_in(name: str, labels: np.ndarray) -> tuple[str, ...]:
    """Return labels as text; raises ArraysError with the row of a missing value, or one that is not text."""
    values = labels.tolist() if labels.ndim == 1 else []
    wrong = next((row for row, value in enumerate(values) if not isinstance(value, str | bytes)), None)
    if wrong is not None:
        missing = values[wrong] is None or values[wrong] != values[wrong]
        found = "has no label" if missing else f"is {shown(repr(values[wrong]))[1:-1]}, expected text"
        raise ArraysError(f"{name}: row {wrong} {found}; fix or remove the row")
    return strings(name, labels)


def _positions(name: str, labels: Sequence[str], position_of: Mapping[str, int]) -> np.ndarray:
    """Return the position (N,) of each label; raises ArraysError for the first unknown one."""
    for row, label in enumerate(labels):
        if label not in position_of:
            near = near_matches(label, position_of)[:1]
            hint = f"; did you mean {near[0]!r}?" if near else ";"
            raise ArraysError(f"{name}: row {row} has {shown(label)}, not one of classnames{hint} add it or fix it")
    return np.array([position_of[label] for label in labels], np.int64)


def _counted_names(given: Arrays) -> np.ndarray:
    """Return "0", "1" and so on; raises ArraysError for a negative number, or one that is left out."""
    found = np.unique(np.concatenate([labels.ravel() for labels in given.values()]))
    if len(found) and found[0] < 0:
        raise ArraysError(f"{next(iter(given))} has label {found[0]}, expected 0 or more; remove the unlabelled rows")
    gap = next((number for number, label in enumerate(found.tolist()) if number != label), None)
    if gap is not None:
        raise ArraysError(
            f"no image has label {gap}, but labels go up to {found[-1]}; number the classes without gaps, or name them "
            "in classnames"
        )
    return np.array([str(number) for number in range(len(found))], dtype=str)
