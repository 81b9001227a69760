"""What a run says about pictures, as arrays, as a table, and in a notebook.

Axes: N pictures, C classes, D embedding.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from taskres_cache.system.frames import frame_of

ROWS_SHOWN = 20


@dataclass(frozen=True, repr=False)
class Predictions:
    """Classes and calibrated probabilities of pictures, in the order in which they were given.

    Parameters
    ----------
    classnames : tuple of str
        The classes (C,).
    names : tuple of str
        Path or file name of each picture, or its position.
    probabilities : ndarray of shape (N, C), float32
        From 0 to 1; NaN for a picture that could not be read.
    errors : dict of int to str
        Position -> reason, of the pictures that could not be read.
    image_features : ndarray of shape (N, D), float32, or None
        Un-normalised features, if they were asked for.
    """

    classnames: tuple[str, ...]
    names: tuple[str, ...]
    probabilities: np.ndarray
    errors: dict[int, str]
    image_features: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[tuple[str, str | None, float]]:
        """Yield name, class and probability of each picture; no class and NaN if it could not be read."""
        return zip(self.names, self.labels, self.confidences.tolist(), strict=True)

    @property
    def labels(self) -> tuple[str | None, ...]:
        """The most probable class of each picture; None if it could not be read."""
        return tuple(self._label(row) for row in range(len(self)))

    @property
    def label(self) -> str:
        """The most probable class of a single picture.

        Raises
        ------
        ValueError
            There are more pictures than one, or none.
        """
        if len(self) != 1 or self.labels[0] is None:
            raise ValueError(f"there are {len(self)} pictures; use labels")
        return self.labels[0]

    @property
    def confidences(self) -> np.ndarray:
        """The probability (N,) of each picture's class."""
        best: np.ndarray = self.probabilities.max(axis=1)
        return best

    def top(self, count: int = 5) -> list[list[tuple[str, float]]]:
        """Return the most probable classes of each picture with their probabilities; none if it could not be read."""
        order = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :count]
        return [
            [] if row in self.errors else [(self.classnames[label], float(shares[label])) for label in labels]
            for row, (labels, shares) in enumerate(zip(order.tolist(), self.probabilities, strict=True))
        ]

    def to_frame(self) -> Any:
        """Return a pandas DataFrame: name, label, confidence, error, and one column of probabilities per class.

        Raises
        ------
        MissingExtraError
            pandas is not installed.
        """
        errors = [self.errors.get(row) for row in range(len(self))]
        columns: dict[str, Any] = {"name": self.names, "label": self.labels, "confidence": self.confidences}
        shares = {f"p({name})": self.probabilities[:, label] for label, name in enumerate(self.classnames)}
        return frame_of({**columns, "error": errors, **shares})

    def __repr__(self) -> str:
        lines = [f"  {name}: {self._said(row)}" for row, name in enumerate(self.names[:ROWS_SHOWN])]
        more = [f"  and {len(self) - ROWS_SHOWN} more"] if len(self) > ROWS_SHOWN else []
        return "\n".join([f"Predictions of {len(self)} pictures, {len(self.classnames)} classes", *lines, *more])

    def _repr_html_(self) -> str:
        """Return the first pictures as an HTML table with bars."""
        rows = "".join(
            f"<tr><td>{escape(name)}</td><td>{escape(self._said(row))}</td><td>{self._bar(row)}</td></tr>"
            for row, name in enumerate(self.names[:ROWS_SHOWN])
        )
        more = f"<p>and {len(self) - ROWS_SHOWN} more</p>" if len(self) > ROWS_SHOWN else ""
        head = "<thead><tr><th>picture</th><th>class</th><th></th></tr></thead>"
        return f"<table>{head}<tbody>{rows}</tbody></table>{more}"

    def _label(self, row: int) -> str | None:
        return None if row in self.errors else self.classnames[int(self.probabilities[row].argmax())]

    def _said(self, row: int) -> str:
        label = self._label(row)
        return f"unreadable: {self.errors[row]}" if label is None else f"{label} {100 * self.confidences[row]:.1f} %"

    def _bar(self, row: int) -> str:
        share = 0.0 if row in self.errors else float(self.confidences[row])
        style = f"width:{100 * share:.0f}px;height:0.8em;background:#4a7;display:inline-block"
        return f'<span style="{style}"></span>'
