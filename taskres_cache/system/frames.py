"""Tables for notebooks: pandas is optional, and imported when a table is asked for."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from taskres_cache.system.extras import require


def frame_of(columns: "Mapping[str, Sequence[Any] | np.ndarray]") -> Any:
    """Return a pandas DataFrame of columns.

    Raises
    ------
    MissingExtraError
        pandas is not installed.
    """
    require("to_frame", "pandas", ["pandas"])
    import pandas

    return pandas.DataFrame(dict(columns))
