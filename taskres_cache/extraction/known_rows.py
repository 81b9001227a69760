"""Features that earlier runs have encoded: where each row is stored, and reading it on demand.

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
    """What one row is the feature of: a version of an image file, and CENTER or the number of an augmented view."""

    path: str
    stamp: str
    view: int

    def key(self, views_seed: int) -> str:
        """Return the key of the row in a block."""
        version = f"{self.path}|{self.stamp}"
        return version if self.view == CENTER else f"{version}|view {self.view} of seed {views_seed}"


@dataclass(frozen=True)
class EarlierWork:
    """What earlier runs have finished.

    Parameters
    ----------
    provenance : Provenance
        The inputs of the cache in progress. Only rows from the same inputs are reused.
    cache : FeatureCache or None
        The existing cache, made from the same inputs.
    parts : Path
        Folder for finished blocks; it need not exist.
    """

    provenance: Provenance
    cache: FeatureCache | None
    parts: Path

    @property
    def views_seed(self) -> int:
        """The seed of the augmented views."""
        return int(self.provenance.views.get("seed", 0))

    def image_blocks(self) -> BlockFolder:
        """Return the finished blocks of image features."""
        return self._blocks("image", "weights_sha256", "model_config", "precision", "preprocess")

    def text_blocks(self) -> BlockFolder:
        """Return the finished blocks of the text tower's outputs."""
        return self._blocks("text", "weights_sha256", "model_config")

    def _blocks(self, kind: str, *inputs: str) -> BlockFolder:
        return BlockFolder(self.parts, kind, {name: getattr(self.provenance, name) for name in inputs})


class KnownRows:
    """Image features in the existing cache and in blocks; they are read on demand."""

    def __init__(self, earlier: EarlierWork) -> None:
        self._views_seed, self._cache = earlier.views_seed, earlier.cache
        self._blocks = earlier.image_blocks().places()
        files = earlier.cache.files() if earlier.cache else ()
        augmented = earlier.cache.augmented_rows.tolist() if earlier.cache else ()
        self._row_of = {file: row for row, file in enumerate(files)}
        self._augmented_row_of = {row: place for place, row in enumerate(augmented)}

    def __contains__(self, rendering: Rendering) -> bool:
        return self._find(rendering) is not None

    def read(self, renderings: Sequence[Rendering]) -> np.ndarray:
        """Return the features of known renderings (len(renderings), D), as stored.

        Raises
        ------
        CacheDamagedError
            A block was removed or damaged after its rows were found.
        """
        numbers_by_source: dict[str, list[int]] = {}
        places = [self._find(rendering) for rendering in renderings]
        for number, found in enumerate(places):
            if found is None:
                path = renderings[number].path
                raise CacheDamagedError(f"the block of {path} was removed by another program; run the command again")
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
        """Return the source that has a rendering and the place in it; the cache comes before the blocks."""
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
