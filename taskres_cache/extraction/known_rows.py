"""The rows of a cache in the making, by key: where each lies already, and reading it when it is asked for.

Axes: N images, V augmented views, D embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.provenance import Provenance
from taskres_cache.encoders.views import CENTER
from taskres_cache.errors import CacheDamagedError
from taskres_cache.extraction.blocks import BlockFolder, read_rows


class Rendering(NamedTuple):
    """What one row is the feature of: an image file as it is now, and CENTER or the number of an augmented view."""

    path: str
    stamp: str
    view: int

    def key(self, views_seed: int) -> str:
        """Return what the row goes by in a block."""
        of_file = f"{self.path}|{self.stamp}"
        return of_file if self.view == CENTER else f"{of_file}|view {self.view} of seed {views_seed}"


@dataclass(frozen=True)
class Already:
    """What need not be made again.

    Parameters
    ----------
    made_from : what the rows have to be made from to count.
    existing : a cache made from just that, or None.
    parts : folder of a killed run's finished blocks, there or not.
    """

    made_from: Provenance
    existing: FeatureCache | None
    parts: Path

    def image_blocks(self) -> BlockFolder:
        """Return the finished blocks of image features."""
        return self._blocks("image", "weights_sha256", "model_config", "precision", "preprocess")

    def text_blocks(self) -> BlockFolder:
        """Return the finished blocks of what the text tower said."""
        return self._blocks("text", "weights_sha256", "model_config")

    def _blocks(self, kind: str, *decisive: str) -> BlockFolder:
        return BlockFolder(self.parts, kind, {name: getattr(self.made_from, name) for name in decisive})


class KnownRows:
    """Image features that are there already, in a cache or in blocks; read when they are asked for, not before."""

    def __init__(self, already: Already) -> None:
        self._views_seed, self._cache = int(already.made_from.views.get("seed", 0)), already.existing
        self._blocks = already.image_blocks().places()
        files = already.existing.files() if already.existing else ()
        augmented = already.existing.augmented_rows.tolist() if already.existing else ()
        self._row_of = {file: row for row, file in enumerate(files)}
        self._augmented_row_of = {row: place for place, row in enumerate(augmented)}

    def __contains__(self, rendering: Rendering) -> bool:
        return self._find(rendering) is not None

    def read(self, renderings: Sequence[Rendering]) -> np.ndarray:
        """Return the features of renderings that are there (len(renderings), D), as stored.

        Raises
        ------
        CacheDamagedError : a block was damaged or removed since its rows were found.
        """
        numbers_by_source: dict[str, list[int]] = {}
        places = [self._find(rendering) for rendering in renderings]
        for number, found in enumerate(places):
            if found is None:
                raise CacheDamagedError(f"the block of {renderings[number].path} is gone; run the same command again")
            numbers_by_source.setdefault(found[0], []).append(number)
        parts = {
            source: self._read(source, [found[1] for found in (places[number] for number in numbers) if found])
            for source, numbers in numbers_by_source.items()
        }
        first = next(iter(parts.values()))
        features = np.empty((len(renderings), first.shape[1]), first.dtype)
        for source, numbers in numbers_by_source.items():
            features[numbers] = parts[source]
        return features

    def _find(self, rendering: Rendering) -> tuple[str, Any] | None:
        """Return which source has a rendering, and where in it; the cache before the blocks."""
        row = self._row_of.get((rendering.path, rendering.stamp))
        if row is not None and rendering.view == CENTER:
            return "center", row
        augmented_row = None if row is None else self._augmented_row_of.get(row)
        if augmented_row is not None and self._cache is not None and rendering.view < self._cache.views:
            return "augmented", (augmented_row, rendering.view)
        place = self._blocks.get(rendering.key(self._views_seed))
        return None if place is None else ("blocks", place)

    def _read(self, source: str, places: list[Any]) -> np.ndarray:
        if source == "blocks" or self._cache is None:
            return read_rows(places)
        if source == "center":
            return self._cache.stored("features/center", np.array(places, np.int64))
        rows, views = np.array(places, np.int64).T
        every_view = self._cache.stored("features/augmented", rows)  # (len(places), V, D)
        return every_view[np.arange(len(places)), views]  # type: ignore[no-any-return]


class LazyRows:
    """Features that are read when a slice of them is taken: an array as far as writing a cache goes.

    Parameters
    ----------
    known : where they are.
    renderings : of every row, those of one image one after the other.
    shape : (N, D) or (N, V, D).
    dtype : that they are stored in.
    """

    def __init__(
        self, known: KnownRows, renderings: Sequence[Rendering], shape: tuple[int, ...], dtype: np.dtype
    ) -> None:
        self._known, self._renderings = known, renderings
        self.shape, self.dtype = shape, dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        first, last, _ = rows.indices(len(self))
        of_an_image = len(self._renderings) // max(1, len(self))
        features = self._known.read(self._renderings[first * of_an_image : last * of_an_image])
        return features.reshape(last - first, *self.shape[1:])
