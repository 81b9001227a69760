"""Reading image features of a cache on demand: of images, of augmented views, before and after the last projection.

Axes: N images, M train images, V augmented views, D embedding, I width of the image tower.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from taskres_cache.caches.contents import WIDE, ImageProjection
from taskres_cache.caches.hdf5 import iterate_rows, read_arrays, read_rows, read_strings
from taskres_cache.caches.labelled import LabelledImages
from taskres_cache.caches.layout import family_array
from taskres_cache.caches.provenance import Provenance
from taskres_cache.caches.schema import CORRECTION_PARTS, REMEDY
from taskres_cache.caches.soundness import mismatched_row, unusable_row
from taskres_cache.datasets.labels.changes import Change, Corrections
from taskres_cache.errors import CacheError


class FamilyFacts(NamedTuple):
    """What a cache has of a family of augmented views.

    Parameters
    ----------
    views : int
        V, per train image.
    settings : dict
        How they were made: seed, scale, ratio, flips, interpolation.
    has_pre_projection : bool
        Whether the inputs of the image projection are stored too.
    """

    views: int
    settings: dict[str, Any]
    has_pre_projection: bool


class StoredFeatures(LabelledImages):
    """Image features in a cache file; `FeatureCache` opens the file."""

    path: Path
    provenance: Provenance
    shapes: dict[str, tuple[int, ...]]
    augmented_rows: np.ndarray
    family_rows: dict[str, np.ndarray]
    family_settings: dict[str, dict[str, Any]]

    @property
    def dim(self) -> int:
        """D, the embedding size."""
        return int(self.shapes["features/center"][1])

    @property
    def corrections(self) -> Corrections:
        """The images whose label or part was corrected after the data set was read, and those left out."""
        if "corrections/path" not in self.shapes:
            return Corrections()
        columns = [read_strings(self.path, f"corrections/{part}") for part in CORRECTION_PARTS]
        files = self.provenance.corrections.get("files")
        named = tuple((name, str(digest)) for name, digest in files.items()) if isinstance(files, dict) else ()
        return Corrections(tuple(Change(*row) for row in zip(*columns, strict=True)), named, frozenset(columns[0]))

    def image_features(self, rows: np.ndarray) -> np.ndarray:
        """Return the image features of some rows.

        Parameters
        ----------
        rows : ndarray of shape (N,), int64
            Row numbers, in any order.

        Returns
        -------
        ndarray of shape (N, D), float32
            Un-normalised, in the order of `rows`.
        """
        features = np.empty((len(rows), self.dim), dtype=np.float32)
        for positions, piece in self.pieces(rows):
            features[positions] = piece
        return features

    def pieces(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the image features of some rows, one chunk of the file at a time.

        Each chunk is read once, and memory never holds more than one.

        Parameters
        ----------
        rows : ndarray of shape (N,), int64
            Row numbers, in any order.

        Yields
        ------
        positions : ndarray of shape (n,), int64
            Positions in `rows`.
        image_features : ndarray of shape (n, D), float32
            Un-normalised features of these rows.

        Raises
        ------
        CacheError
            A row is not finite or only zeros, or the features of several images are all equal.
        """
        first, alike = None, True
        for positions, piece in self._usable_pieces("features/center", rows):
            first = piece[:1].copy() if first is None else first  # a view would keep the first chunk in memory
            alike = alike and bool((piece == first).all())
            yield positions, piece
        if alike and len(np.unique(rows)) > 1:
            raise CacheError(f"{self.path}: the features of all {len(rows)} images are equal; {REMEDY}")

    def augmented_pieces(self, rows: np.ndarray, family: str = WIDE) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the features of the augmented views of some rows, one chunk of the file at a time.

        Parameters
        ----------
        rows : ndarray of shape (N,), int64
            Row numbers of train images, in any order.
        family : str, optional
            Name of the family, of `view_families`. Defaults to `wide`, TaskRes's own views.

        Yields
        ------
        positions : ndarray of shape (n,), int64
            Positions in `rows`.
        image_features : ndarray of shape (n, V, D), float32
            Un-normalised features of the views.

        Raises
        ------
        CacheError
            The cache has no augmented views for one of the rows, or the features of a view are unusable.
        """
        places = self._places(rows, family)
        yield from self._usable_pieces(family_array(family, "features"), places)

    @property
    def view_families(self) -> dict[str, FamilyFacts]:
        """The families of augmented views by name; empty without views."""
        settings = {WIDE: self.provenance.views, **self.family_settings}
        found = {name: self.shapes.get(family_array(name, "features")) for name in (WIDE, *self.family_rows)}
        return {
            name: FamilyFacts(shape[1], settings[name], family_array(name, "pre_projection") in self.shapes)
            for name, shape in found.items()
            if shape is not None
        }

    @property
    def has_pre_projection(self) -> bool:
        """Whether the inputs of the image projection are stored for all images."""
        return "features/pre_projection" in self.shapes

    def image_projection(self) -> ImageProjection | None:
        """Return the last linear map of the image tower: weights (I, D) and bias (D,) or None.

        None if the cache has no pre-projections.

        Raises
        ------
        CacheError
            A value is not finite.
        """
        arrays = read_arrays(self.path, "image/projection", "image/projection_bias") if self.has_pre_projection else {}
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise CacheError(f"{self.path}: {name} has NaN or infinite values; {REMEDY}")
        if not arrays:
            return None
        floats = {name: array.astype(np.float32, copy=False) for name, array in arrays.items()}
        return ImageProjection(floats["image/projection"], floats.get("image/projection_bias"))

    def pre_projection(self, rows: np.ndarray) -> np.ndarray:
        """Return the inputs of the image projection of some rows.

        Parameters
        ----------
        rows : ndarray of shape (N,), int64
            Row numbers, in any order.

        Returns
        -------
        ndarray of shape (N, I), float32
            In the order of `rows`: `pre_projection @ weights + bias` are the image features.

        Raises
        ------
        CacheError
            The cache has none, or a value is not finite.
        """
        self._refuse_no_pre_projection("features/pre_projection")
        found = np.empty((len(rows), self.shapes["features/pre_projection"][1]), np.float32)
        for positions, piece in self.pre_projection_pieces(rows):
            found[positions] = piece
        return found

    def pre_projection_pieces(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield positions in `rows` and the inputs of the image projection (n, I), one chunk at a time.

        Parameters and errors are those of `pre_projection`.
        """
        self._refuse_no_pre_projection("features/pre_projection")
        yield from self._finite_pieces("features/pre_projection", rows)

    def augmented_pre_projection_pieces(
        self, rows: np.ndarray, family: str = WIDE
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield positions in `rows` and the inputs of the image projection (n, V, I) for views, one chunk at a time.

        Parameters and errors are those of `augmented_pieces`.
        """
        places, name = self._places(rows, family), family_array(family, "pre_projection")
        self._refuse_no_pre_projection(name)
        yield from self._finite_pieces(name, places)

    def refuse_mismatched_projection(self) -> None:
        """Raise CacheError if `pre_projection @ projection + bias` differs from image features, rounding aside."""
        projection, precision = self.image_projection(), self.provenance.precision
        pairs = {"features/center": "features/pre_projection"} | {
            family_array(name, "features"): family_array(name, "pre_projection") for name in self.view_families
        }
        for name, inputs in pairs.items():
            if projection is None or inputs not in self.shapes:
                continue
            rows = np.arange(self.shapes[name][0])
            for positions, piece in self._finite_pieces(inputs, rows):
                features = read_rows(self.path, name, positions).astype(np.float32, copy=False)
                fault = mismatched_row(projection.applied(piece), features, precision)
                self._refuse_mismatch(fault and (int(positions[fault[0]]), fault[1]), name, "image/projection")

    def _refuse_mismatch(self, fault: tuple[int, float] | None, name: str, projection: str) -> None:
        if fault is not None:
            raise CacheError(
                f"{self.path}: {name}, row {fault[0]} is not its pre-projection times {projection} (relative "
                f"difference {fault[1]:.2g}); {REMEDY}"
            )

    def _refuse_no_pre_projection(self, name: str) -> None:
        if name not in self.shapes:
            which = "images" if name == "features/pre_projection" else "all"
            raise CacheError(
                f"{self.path} has no array {name}, the inputs of the image projection; add them: run the command that "
                f"made the cache with --pre-projection {which}"
            )

    def _places(self, rows: np.ndarray, family: str) -> np.ndarray:
        """Return where the views of some rows are stored in the arrays of a family."""
        known = self.augmented_rows if family == WIDE else self.family_rows.get(family, np.zeros(0, np.int64))
        place_of = {row: place for place, row in enumerate(known.tolist())}
        places = [place_of.get(row) for row in rows.tolist()]
        if None in places:
            row, which = int(rows[places.index(None)]), "" if family == WIDE else f"{family} "
            option = "" if family == WIDE else f" --view-family {family}"
            raise CacheError(
                f"{self.path} has no {which}augmented views for row {row}; add them: taskres extract --views{option}"
            )
        return np.array(places, np.int64)

    def _usable_pieces(self, name: str, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield rows of an array a chunk at a time; raises CacheError at the first row without a direction."""
        for positions, piece in iterate_rows(self.path, name, rows):
            fault = unusable_row(piece.reshape(-1, piece.shape[-1]))
            if fault is not None:
                row = int(rows[positions[fault[0] * len(piece) // piece[..., 0].size]])
                raise CacheError(f"{self.path}: {name}, row {row} {fault[1]}; {REMEDY}")
            yield positions, piece

    def _finite_pieces(self, name: str, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield rows of an array a chunk at a time; raises CacheError at the first value that is not finite."""
        for positions, piece in iterate_rows(self.path, name, rows):
            finite = np.isfinite(piece).reshape(len(piece), -1).all(axis=1)
            if not finite.all():
                row = int(rows[positions[finite.argmin()]])
                raise CacheError(f"{self.path}: {name}, row {row} has NaN or infinite values; {REMEDY}")
            yield positions, piece

    def stored(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Return some rows of the array `name`, in the order of `rows` and in the stored type."""
        return read_rows(self.path, name, rows)
