"""Which images a data set's few-shot splits need, and which existing cache may be extended.

Axes: N images, M train images, V augmented views.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from taskres_cache.caches.contents import DESCRIPTIONS, Split, SplitName
from taskres_cache.caches.drawing import Drawing
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.provenance import Provenance
from taskres_cache.datasets import Dataset, FewShotSplit, Item, labels_of, sample_few_shot
from taskres_cache.datasets.images import ABSENT
from taskres_cache.encoders.views import CENTER, FAMILIES, WIDE, View, view_recipe
from taskres_cache.errors import CacheMismatchError, DatasetError, OptionError
from taskres_cache.extraction.known_rows import Rendering

SHUFFLED = "60/20/20 of each class, seed "  # the split of a folder by earlier versions
PRE_PROJECTIONS = ("none", "images", "all")  # ascending: a cache keeps what it has
SHOWN = 5  # missing images in a message
DECISIVE = ("weights_sha256", "model_config", "preprocess", "precision", "classnames_form", "split")


class PlannedViews(NamedTuple):
    """Augmented views of one family: how they are made, and how many per train image."""

    settings: dict[str, Any]
    views: int


@dataclass(frozen=True)
class Plan:
    """What a cache will contain.

    Parameters
    ----------
    dataset : Dataset
        The images.
    draws : dict of (int, int) to FewShotSplit
        (shots, seed) -> positions in the data set's lists, of every split that is requested or in the existing cache.
    needed : tuple of (str, Item)
        Partition and item of each image of the splits and the test partition, once, in list order.
    stamps : dict of str to str
        Path -> a text that changes when the file changes.
    families : dict of str to PlannedViews
        Augmented views of the train images, by family.
    """

    dataset: Dataset
    draws: dict[SplitName, FewShotSplit]
    needed: tuple[tuple[str, Item], ...]
    stamps: dict[str, str]
    families: dict[str, PlannedViews]

    @property
    def views(self) -> int:
        """Augmented views per train image, of all families."""
        return sum(family.views for family in self.families.values())

    def renderings(self) -> dict[str, tuple[Rendering, ...]]:
        """Return path -> the renderings to encode."""
        views = {"train": (CENTER, *(view for name in self.families for view in self.views_of(name)))}
        return {
            item.path: tuple(self._rendering(item, view) for view in views.get(partition, (CENTER,)))
            for partition, item in self.needed
        }

    def renderings_of(self, items: Sequence[Item], family: str) -> list[Rendering]:
        """Return the renderings of one family, image by image."""
        return [self._rendering(item, view) for item in items for view in self.views_of(family)]

    def views_of(self, family: str) -> tuple[View, ...]:
        """Return the views of a family, in order."""
        planned = self.families[family]
        return tuple(View(family, int(planned.settings.get("seed", 0)), number) for number in range(planned.views))

    def _rendering(self, item: Item, view: View) -> Rendering:
        return Rendering(item.path, self.stamps[item.path], view)

    def splits(self, row_of: dict[str, int]) -> dict[SplitName, Split]:
        """Return the cache rows of every split in the order of the draw, without images that have no row."""
        train, val = self.dataset.train, self.dataset.val
        return {
            name: Split(_rows(train, draw.train, row_of), _rows(val, draw.val, row_of))
            for name, draw in self.draws.items()
        }


def plan_cache(
    dataset: Dataset, drawing: Drawing, views: Mapping[str, PlannedViews], existing: FeatureCache | None
) -> Plan:
    """Return what a cache will contain, with the splits and views of the existing one.

    Raises
    ------
    CacheMismatchError
        Views of the existing cache were made in another way.
    """
    draws = _draws(dataset, drawing.names.union(existing.splits if existing else ()), drawing.val_per_class)
    needed = _needed_items(dataset, draws)
    stamps = {item.path: dataset.source.stamp(item.path) for _, item in needed}
    return Plan(dataset, draws, needed, stamps, _all_families(views, existing))


def wanted_pre_projection(asked: str | None, existing: FeatureCache | None, has_projection: bool) -> str:
    """Return which pre-projections a cache will have: `none`, `images` or `all`; it keeps what it has."""
    if not has_projection:
        return "none"
    has = "none" if existing else asked or "images"
    if existing and existing.has_pre_projection:
        of_views = any(facts.has_pre_projection for facts in existing.view_families.values())
        has = "all" if of_views else "images"
    return max(has, asked or has, key=PRE_PROJECTIONS.index)


def _all_families(views: Mapping[str, PlannedViews], existing: FeatureCache | None) -> dict[str, PlannedViews]:
    """Return requested and existing families; the wide one, which has the place of format 1, first."""
    families = dict(views)
    for name, facts in existing.view_families.items() if existing else ():
        expected = views[name].settings if name in views else _made_here(name, facts.settings)
        if existing is not None and name != WIDE and facts.settings != expected:
            raise CacheMismatchError(
                existing.path,
                {f"views of family {name}": (facts.settings, expected)},
                "delete it or choose another --cache-dir",
            )
        families[name] = PlannedViews(facts.settings, max(facts.views, views[name].views if name in views else 0))
    return dict(sorted(families.items(), key=lambda family: family[0] != WIDE))


def _made_here(family: str, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the settings that this version uses for a family and its seed; None for a family that it does not make."""
    return view_recipe(int(settings.get("seed", 0)), family) if family in FAMILIES else None


def existing_cache(path: Path, dataset: Dataset, provenance: Provenance) -> FeatureCache | None:
    """Return the existing cache, or None.

    Raises
    ------
    CacheMismatchError
        It was made from other inputs.
    """
    if not path.exists():
        return None
    expected = {name: getattr(provenance, name) for name in DECISIVE}
    cache = FeatureCache(path)
    if cache.provenance.views and provenance.views:
        expected["views"] = provenance.views
    remedy = "delete it or choose another --cache-dir"
    if cache.provenance.split.startswith(SHUFFLED) and dataset.split != cache.provenance.split:
        remedy = (
            "an older version split it in a way that moved images when others came; it stays usable, but to add to it, "
            "make a new one with --name or --cache-dir"
        )
    elif cache.templates != dataset.templates:
        remedy += "; to add the templates as a set of prompts, pass --prompts-name NAME too"
    cache.expect(remedy, templates=dataset.templates, **expected)
    return cache


def with_cached_text(dataset: Dataset, path: Path) -> Dataset:
    """Return a data set with names and prompts of its existing cache, unless it has own ones or other classes."""
    if dataset.shown_names is not None or not path.is_file():
        return dataset
    cache = FeatureCache(path)
    if not has_classes_of(cache, dataset):
        return dataset
    prompts = cache.text(DESCRIPTIONS).by_class() if DESCRIPTIONS in cache.prompt_sets else None
    return replace(dataset, shown_names=cache.shown_names, prompts=prompts)


def has_classes_of(cache: FeatureCache, dataset: Dataset) -> bool:
    """Return True if a cache has the classes of a data set, so that its names and prompts are still theirs."""
    return (cache.classnames, cache.class_ids) == (dataset.classnames, dataset.class_ids)


def refuse_other_dataset(existing: FeatureCache, stamps: dict[str, str]) -> None:
    """Raise CacheMismatchError if no image is unchanged: the cache may belong to another folder of the same name."""
    files = existing.files()
    if not any(stamps.get(path) == stamp for path, stamp in files):
        raise CacheMismatchError(
            existing.path,
            {"images": (f"{files[0][0]} and {len(files) - 1} more", "at least one unchanged file")},
            "it may belong to another folder of the same name, or every file has changed: pass --name, or delete it",
        )


def refuse_undone_corrections(existing: FeatureCache, dataset: Dataset) -> None:
    """Raise OptionError if the existing cache has corrected labels that the data set does not have: work would be lost.

    Corrections of images that no longer exist do not count.
    """
    corrections, paths = existing.corrections, {item.path for items in dataset.partitions.values() for item in items}
    undone = [one for one in corrections.changes if one.path in paths and one.path not in dataset.corrections.paths]
    if undone:
        files = " and ".join(name for name, _ in corrections.files) or "a file"
        first = f"{undone[0].path} ({undone[0].original!r} to {undone[0].label or '-'!r})"
        raise OptionError(
            f"{existing.path} has {len(corrections.changes)} corrected labels of {files}, and this would undo "
            f"{len(undone)} of them, such as {first}; pass --labels FILE with these images, --labels keep to keep "
            "those of the cache, or --labels none to undo them"
        )


def refuse_absent(plan: Plan) -> None:
    """Raise DatasetError naming the first missing images, and where they are listed."""
    absent = [item for _, item in plan.needed if plan.stamps[item.path] == ABSENT]
    if absent:
        first = ", ".join(f"{item.path} ({item.where})" if item.where else item.path for item in absent[:SHOWN])
        more = f" and {len(absent) - SHOWN} more" if len(absent) > SHOWN else ""
        raise DatasetError(
            f"data set {plan.dataset.name!r}: {first}{more} not found below {plan.dataset.source.location}; put the "
            "images there (`taskres datasets verify` lists all missing ones), or pass --skip-unreadable"
        )


def refuse_undecodable_folder(dataset: Dataset) -> None:
    """Raise DatasetError if the folder's path is not UTF-8, which a cache records; `Dataset` checks the names in it."""
    location = str(dataset.source.location)
    try:
        location.encode()
    except UnicodeEncodeError:
        raise DatasetError(
            f"data set {dataset.name!r}: the folder {location!a} is not UTF-8, which a cache cannot record; rename the "
            "folder, or pass a relative path without that name"
        ) from None


def _draws(dataset: Dataset, names: set[SplitName], val_per_class: int) -> dict[SplitName, FewShotSplit]:
    """Return splits drawn from the current lists; none if the data set has no train images."""
    if dataset.test_only:
        return {}
    train, val = labels_of(dataset.train), labels_of(dataset.val)
    return {name: sample_few_shot(train, val, *name, val_per_class) for name in sorted(names)}


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
