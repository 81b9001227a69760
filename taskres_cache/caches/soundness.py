"""Whether features mean anything: finite, with a direction, and not all alike; knows neither HDF5 nor torch.

Axes: N rows, D embedding.
"""

import numpy as np


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
