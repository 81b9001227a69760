"""Which images a data set's few-shot splits need, and what of a cache that is there already may be kept.

Axes: N images, M train images, V augmented views.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from taskres_cache.caches.contents import Split, SplitName
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.provenance import Provenance
from taskres_cache.datasets import Dataset, FewShotSplit, Item, labels_of, sample_few_shot
from taskres_cache.datasets.images import ABSENT
from taskres_cache.encoders.views import CENTER
from taskres_cache.errors import CacheMismatchError, DatasetError
from taskres_cache.extraction.known_rows import Rendering

DECISIVE = ("weights_sha256", "model_config", "preprocess", "precision", "classnames_form", "split")


@dataclass(frozen=True)
class Plan:
    """What a cache is to hold.

    Parameters
    ----------
    dataset : the images.
    draws : every split that is asked for or in the cache, as positions in the data set's lists.
    needed : (partition, item) of the union of all splits and the test part, each image once, in list order.
    stamps : path -> what changes when the file does.
    views : augmented views of each train image.
    """

    dataset: Dataset
    draws: dict[SplitName, FewShotSplit]
    needed: tuple[tuple[str, Item], ...]
    stamps: dict[str, str]
    views: int

    def renderings(self) -> dict[str, tuple[Rendering, ...]]:
        """Return path -> what is wanted of the image."""
        views = {"train": (CENTER, *range(self.views))}
        return {
            item.path: tuple(
                Rendering(item.path, self.stamps[item.path], view) for view in views.get(partition, (CENTER,))
            )
            for partition, item in self.needed
        }

    def splits(self, row_of: dict[str, int]) -> dict[SplitName, Split]:
        """Return the cache rows of every split in the order of the draw; images without a row are left out."""
        train, val = self.dataset.train, self.dataset.val
        return {
            name: Split(_rows(train, draw.train, row_of), _rows(val, draw.val, row_of))
            for name, draw in self.draws.items()
        }


def plan_cache(dataset: Dataset, asked: set[SplitName], views: int, existing: FeatureCache | None) -> Plan:
    """Return what a cache is to hold, splits and views of the existing one included."""
    draws = _draws(dataset, asked | set(existing.splits if existing else ()))
    needed = _needed_items(dataset, draws)
    stamps = {item.path: dataset.source.stamp(item.path) for _, item in needed}
    return Plan(dataset, draws, needed, stamps, max(views, existing.views if existing else 0))


def existing_cache(path: Path, dataset: Dataset, made_from: Provenance) -> FeatureCache | None:
    """Return the cache that is there already, or None.

    Raises
    ------
    CacheMismatchError : it was made from something else.
    """
    if not path.exists():
        return None
    expected = {name: getattr(made_from, name) for name in DECISIVE}
    cache = FeatureCache(path)
    if cache.provenance.views and made_from.views:
        expected["views"] = made_from.views
    cache.expect("delete it or choose another --cache-dir", templates=dataset.templates, **expected)
    return cache


def refuse_other_dataset(existing: FeatureCache, stamps: dict[str, str]) -> None:
    """Keep the cache of another folder of the same name from being replaced by this one's."""
    files = existing.files()
    if not any(stamps.get(path) == stamp for path, stamp in files):
        raise CacheMismatchError(
            existing.path,
            {"images": (f"{files[0][0]} and {len(files) - 1} more", "at least one of them unchanged")},
            "it seems to be of another folder of that name, or every file has changed: pass a --name or delete it",
        )


def refuse_absent(plan: Plan) -> None:
    """Raise DatasetError naming the first image that is not there, and what lists it."""
    absent = [item for _, item in plan.needed if plan.stamps[item.path] == ABSENT]
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        listed = f" ({absent[0].where})" if absent[0].where else ""
        raise DatasetError(
            f"data set {plan.dataset.name!r}: {absent[0].path}{listed}{more} not found below "
            f"{plan.dataset.source.location}; unpack the images again (`taskres datasets verify` lists all that lack), "
            "or pass --skip-unreadable"
        )


def _draws(dataset: Dataset, names: set[SplitName]) -> dict[SplitName, FewShotSplit]:
    """Return splits drawn from the lists as they are now; none where there is nothing to train on."""
    if dataset.test_only:
        return {}
    train, val = labels_of(dataset.train), labels_of(dataset.val)
    return {(shots, seed): sample_few_shot(train, val, shots, seed) for shots, seed in sorted(names)}


def _needed_items(dataset: Dataset, draws: dict[SplitName, FewShotSplit]) -> tuple[tuple[str, Item], ...]:
    train = sorted({position for draw in draws.values() for position in draw.train})
    val = sorted({position for draw in draws.values() for position in draw.val})
    return (
        *(("train", dataset.train[position]) for position in train),
        *(("val", dataset.val[position]) for position in val),
        *(("test", item) for item in dataset.test),
    )


def _rows(items: Sequence[Item], positions: Sequence[int], row_of: dict[str, int]) -> np.ndarray:
    drawn = (items[position].path for position in positions)
    return np.array([row_of[path] for path in drawn if path in row_of], np.int64)
