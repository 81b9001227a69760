"""Features that earlier runs have encoded: where each row is stored, and reading it on demand.

Axes: N images, V augmented views, D embedding or width of the image tower.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.layout import family_array
from taskres_cache.caches.provenance import Provenance
from taskres_cache.encoders.views import CENTER, WIDE, View
from taskres_cache.errors import CacheDamagedError
from taskres_cache.extraction.blocks import BlockFolder, read_rows

Part = Literal["features", "pre_projection"]  # image features, or the inputs of the image tower's last linear map


class Rendering(NamedTuple):
    """What one row is the feature of: a version of an image file, and CENTER or an augmented view."""

    path: str
    stamp: str
    view: View

    @property
    def key(self) -> str:
        """The key of the row in a block."""
        version = f"{self.path}|{self.stamp}"
        if self.view == CENTER:
            return version
        family = "" if self.view.family == WIDE else f", {self.view.family}"
        return f"{version}|view {self.view.number} of seed {self.view.seed}{family}"


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

    def image_blocks(self, part: Part = "features") -> BlockFolder:
        """Return the finished blocks of image features, or of the inputs of the image projection."""
        kind = "image" if part == "features" else part
        return self._blocks(kind, "weights_sha256", "model_config", "precision", "preprocess")

    def text_blocks(self) -> BlockFolder:
        """Return the finished blocks of the text tower's outputs."""
        return self._blocks("text", "weights_sha256", "model_config")

    def _blocks(self, kind: str, *inputs: str) -> BlockFolder:
        return BlockFolder(self.parts, kind, {name: getattr(self.provenance, name) for name in inputs})


class KnownRows:
    """Image features, or their pre-projections, in the existing cache and in blocks; they are read on demand.

    Parameters
    ----------
    earlier : EarlierWork
        The cache and the blocks.
    part : {"features", "pre_projection"}, optional
        What to read.
    """

    def __init__(self, earlier: EarlierWork, part: Part = "features") -> None:
        self._part, self._cache = part, earlier.cache
        self._blocks = earlier.image_blocks(part).places()
        files = earlier.cache.files() if earlier.cache else ()
        self._row_of = {file: row for row, file in enumerate(files)}
        self._place_of: dict[str, dict[int, int]] = {}  # family -> row -> place in its arrays
        if earlier.cache is not None:
            families = {WIDE: earlier.cache.augmented_rows, **earlier.cache.family_rows}
            self._place_of = {
                name: {row: place for place, row in enumerate(rows.tolist())} for name, rows in families.items()
            }

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
        """Return the array or "blocks" that has a rendering, and the place in it; the cache comes before the blocks."""
        row, view = self._row_of.get((rendering.path, rendering.stamp)), rendering.view
        array = self._array(view.family)
        shape = () if self._cache is None else self._cache.shapes.get(array, ())
        if row is not None and shape and view == CENTER:
            return array, row
        place = None if row is None else self._place_of.get(view.family, {}).get(row)
        if place is not None and shape and view.number < shape[1]:
            return array, (place, view.number)
        block = self._blocks.get(rendering.key)
        return None if block is None else ("blocks", block)

    def _array(self, family: str) -> str:
        """Return the cache's array for a family of views, or for CENTER."""
        if family != CENTER.family:
            return family_array(family, self._part)
        return "features/center" if self._part == "features" else "features/pre_projection"

    def _read(self, source: str, places: list[Any]) -> np.ndarray:
        if source == "blocks" or self._cache is None:
            return read_rows(places)
        if isinstance(places[0], int):
            return self._cache.stored(source, np.array(places, np.int64))
        rows, views = np.array(places, np.int64).T
        every_view = self._cache.stored(source, rows)  # (len(places), V, D)
        return every_view[np.arange(len(places)), views]  # type: ignore[no-any-return]
