"""The contents of a finished cache, from a plan and the rows that are encoded by now.

Axes: N images, M train images, V augmented views, D embedding, I width of the image tower.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from taskres_cache.caches.contents import (
    DEFAULT_PROMPTS,
    DESCRIPTIONS,
    WIDE,
    CacheContents,
    ImageProjection,
    PromptSet,
    TextBases,
    ViewFamily,
)
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.layout import arrays_of_version_2
from taskres_cache.datasets import PARTITIONS, Dataset, Item
from taskres_cache.extraction.encode_missing import is_same_set
from taskres_cache.extraction.known_rows import EarlierWork, KnownRows, Rendering
from taskres_cache.extraction.planning import Plan, has_classes_of

RECORDED = ("recipe", "defaults", "val_per_class", "corrections")  # of the provenance; other fields identify the cache


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


@dataclass(frozen=True)
class Encoded:
    """Everything that is encoded by now, from which a cache is assembled.

    Parameters
    ----------
    earlier : EarlierWork
        The existing cache and the finished blocks.
    text : TextBases
        Text features of the templates.
    descriptions : PromptSet or None
        Text features of the data set's own prompts.
    image_projection : ImageProjection or None
        The last linear map of the image tower.
    pre_projection : {"none", "images", "all"}
        Of which renderings the cache stores the inputs of that map.
    """

    earlier: EarlierWork
    text: TextBases
    descriptions: PromptSet | None
    image_projection: ImageProjection | None
    pre_projection: str


def assembled(plan: Plan, encoded: Encoded, unreadable: dict[str, str]) -> CacheContents:
    """Return the contents of a cache of all needed images that could be read, in order; features are read lazily."""
    dataset, earlier = plan.dataset, encoded.earlier
    kept = [(partition, item) for partition, item in plan.needed if item.path not in unreadable]
    row_of = {item.path: row for row, (_, item) in enumerate(kept)}
    train = [row for row, (partition, _) in enumerate(kept) if partition == "train"]
    features = _Reader(plan, KnownRows(earlier), kept, train)
    inputs = _Reader(plan, KnownRows(earlier, "pre_projection"), kept, train)
    of_images, of_views = encoded.pre_projection != "none", encoded.pre_projection == "all"
    rows = np.array(train, np.int64)
    families = {
        name: ViewFamily(family.settings, rows, features.views(name), inputs.views(name) if of_views else None)
        for name, family in plan.families.items()
        if train
    }
    wide = families.pop(WIDE, None)
    prompts = _named_prompts(encoded, dataset)
    return CacheContents(
        provenance=earlier.provenance,
        classnames=dataset.classnames,
        class_ids=dataset.class_ids,
        paths=tuple(row_of),
        stamps=tuple(plan.stamps[path] for path in row_of),
        labels=np.array([item.label for _, item in kept], np.int32),
        partitions=np.array([PARTITIONS.index(partition) for partition, _ in kept], np.uint8),
        image_features=features.centers(),  # (N, D)
        text=encoded.text,
        splits=plan.splits(row_of),
        skipped=unreadable,
        augmented=wide.image_features if wide else None,  # (M, V, D)
        augmented_rows=rows if wide else None,
        image_projection=encoded.image_projection if of_images else None,
        pre_projection=inputs.centers() if of_images else None,  # (N, I)
        augmented_pre_projection=wide.pre_projection if wide else None,
        families=families,
        prompts=prompts,
        corrections=dataset.corrections.changes,
        shown_names=dataset.shown_names,
        default_prompts=_default_prompts(encoded, dataset, prompts),
    )


@dataclass(frozen=True)
class _Reader:
    """Lazily read rows of one part, of the images of a plan that could be read."""

    plan: Plan
    known: KnownRows
    kept: Sequence[tuple[str, Item]]
    train: Sequence[int]

    def centers(self) -> LazyRows:
        wanted = self.plan.renderings()
        return self._lazy([wanted[item.path][0] for _, item in self.kept], len(self.kept))

    def views(self, family: str) -> LazyRows:
        items = [self.kept[row][1] for row in self.train]
        return self._lazy(self.plan.renderings_of(items, family), len(items), self.plan.families[family].views)

    def _lazy(self, renderings: Sequence[Rendering], *shape: int) -> LazyRows:
        sample = self.known.read(renderings[:1])  # (1, D)
        return LazyRows(self.known, renderings, (*shape, sample.shape[1]), sample.dtype)


def _named_prompts(encoded: Encoded, dataset: Dataset) -> dict[str, PromptSet]:
    """Return the sets that the cache keeps, and that of the data set's own prompts."""
    cache = encoded.earlier.cache
    names = cache.named_sets if cache is not None and has_classes_of(cache, dataset) else ()
    kept = {name: cache.text(name) for name in names if name != DESCRIPTIONS} if cache else {}
    return kept if encoded.descriptions is None else {DESCRIPTIONS: encoded.descriptions, **kept}


def _default_prompts(encoded: Encoded, dataset: Dataset, prompts: Mapping[str, PromptSet]) -> str:
    """Return the set that fits use unless told otherwise."""
    if encoded.descriptions is not None:
        return DESCRIPTIONS
    cache = encoded.earlier.cache
    return cache.default_prompts if cache is not None and cache.default_prompts in prompts else DEFAULT_PROMPTS


def has_same_text(cache: FeatureCache, contents: CacheContents) -> bool:
    """Return True if a cache has the classes, names and prompts of these contents."""
    sets = cache.named_sets
    texts = contents.prompts.get(DESCRIPTIONS)
    return (
        all(
            getattr(cache, name) == getattr(contents, name) for name in ("classnames", "shown_names", "default_prompts")
        )
        and set(sets) == contents.prompts.keys()
        and (texts is None or is_same_set(cache.text(DESCRIPTIONS), texts.texts, texts.labels))
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
    families = {name: (family.image_features.shape[1], family.settings) for name, family in contents.families.items()}
    stored = {name: tuple(facts[:2]) for name, facts in cache.view_families.items() if name != WIDE}
    return (
        splits
        and cache.files() == list(zip(contents.paths, contents.stamps, strict=True))
        and all(getattr(cache, name) == getattr(contents, name) for name in ("classnames", "class_ids", "skipped"))
        and all(np.array_equal(getattr(cache, name), getattr(contents, name)) for name in ("labels", "partitions"))
        and np.array_equal(cache.augmented_rows, augmented)
        and cache.views == (contents.augmented.shape[1] if contents.augmented is not None else 0)
        and stored == families
        and all(np.array_equal(cache.family_rows[name], family.rows) for name, family in contents.families.items())
        and cache.shapes.keys() >= arrays_of_version_2(contents).keys()
        and has_same_text(cache, contents)
        and all(getattr(cache.provenance, name) == getattr(contents.provenance, name) for name in RECORDED)
    )
