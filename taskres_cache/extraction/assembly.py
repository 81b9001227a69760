"""The contents of a finished cache, from a plan and the rows that are encoded by now.

Axes: N images, M train images, V augmented views, D embedding.
"""

from collections.abc import Sequence

import numpy as np

from taskres_cache.caches.contents import CacheContents, TextBases
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.datasets import PARTITIONS
from taskres_cache.extraction.known_rows import EarlierWork, KnownRows, Rendering
from taskres_cache.extraction.planning import Plan


class LazyRows:
    """Features that are read when they are sliced: an array as far as writing a cache is concerned.

    Parameters
    ----------
    known : KnownRows
        Where the features are stored.
    renderings : sequence of Rendering
        What each row is the feature of, image by image.
    shape : tuple of int
        (N, D) or (N, V, D).
    dtype : numpy.dtype
        The stored type.
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
        per_image = len(self._renderings) // max(1, len(self))
        features = self._known.read(self._renderings[first * per_image : last * per_image])
        return features.reshape(last - first, *self.shape[1:])


def assembled(plan: Plan, earlier: EarlierWork, unreadable: dict[str, str], text: TextBases) -> CacheContents:
    """Return the contents of a cache of all needed images that could be read, in order; features are read lazily."""
    dataset, known, wanted = plan.dataset, KnownRows(earlier), plan.renderings()
    kept = [(partition, item) for partition, item in plan.needed if item.path not in unreadable]
    row_of = {item.path: row for row, (_, item) in enumerate(kept)}
    centers = [wanted[path][0] for path in row_of]
    train = [row for row, (partition, _) in enumerate(kept) if partition == "train"]
    views = [rendering for row in train for rendering in wanted[kept[row][1].path][1:]]
    sample = known.read(centers[:1])  # (1, D)
    return CacheContents(
        provenance=earlier.provenance,
        classnames=dataset.classnames,
        class_ids=dataset.class_ids,
        paths=tuple(row_of),
        stamps=tuple(plan.stamps[path] for path in row_of),
        labels=np.array([item.label for _, item in kept], np.int32),
        partitions=np.array([PARTITIONS.index(partition) for partition, _ in kept], np.uint8),
        image_features=_lazy(known, centers, sample, len(kept)),  # (N, D)
        text=text,
        splits=plan.splits(row_of),
        skipped=unreadable,
        augmented=_lazy(known, views, sample, len(train), plan.views) if views else None,  # (M, V, D)
        augmented_rows=np.array(train, np.int64) if views else None,
    )


def is_up_to_date(cache: FeatureCache, contents: CacheContents) -> bool:
    """Return True if a cache already has these contents; versions of libraries do not count.

    Features need no comparison: those of a file with the same stamp were reused.
    """
    splits = cache.splits.keys() == contents.splits.keys() and all(
        np.array_equal(getattr(cache.splits[name], part), getattr(split, part))
        for name, split in contents.splits.items()
        for part in ("train", "val")
    )
    augmented = contents.augmented_rows if contents.augmented_rows is not None else np.zeros(0, np.int64)
    return (
        splits
        and cache.files() == list(zip(contents.paths, contents.stamps, strict=True))
        and all(getattr(cache, name) == getattr(contents, name) for name in ("classnames", "class_ids", "skipped"))
        and all(np.array_equal(getattr(cache, name), getattr(contents, name)) for name in ("labels", "partitions"))
        and np.array_equal(cache.augmented_rows, augmented)
        and cache.views == (contents.augmented.shape[1] if contents.augmented is not None else 0)
        and cache.provenance.recipe == contents.provenance.recipe
    )


def _lazy(known: KnownRows, renderings: Sequence[Rendering], sample: np.ndarray, *shape: int) -> LazyRows:
    return LazyRows(known, renderings, (*shape, sample.shape[1]), sample.dtype)
