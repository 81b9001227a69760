"""Stage one: which images the few-shot splits need, and the finished cache of them.

Axes: N images, C classes, D embedding.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from platform import python_version

import numpy as np

from taskres_cache.backbones import Backbone
from taskres_cache.blocks import discard_blocks
from taskres_cache.contents import CacheContents, Provenance, Split, SplitName, TextBases
from taskres_cache.datasets import (
    PAPER_SEEDS,
    PAPER_SHOTS,
    PARTITIONS,
    Dataset,
    FewShotSplit,
    Item,
    labels_of,
    refuse_unusable_splits,
    sample_few_shot,
    shortage_notes,
)
from taskres_cache.datasets.images import ABSENT
from taskres_cache.errors import CacheMismatchError, DatasetError, OptionError, UnreadableImagesError
from taskres_cache.gathering import Already, GatheredImages, Progress, Silent, gather_images, gather_text
from taskres_cache.prompts import fill_templates
from taskres_cache.store import FeatureCache, write_cache

LIBRARIES = ("taskres-cache", "torch", "torchvision", "open_clip_torch", "timm", "pillow", "numpy")
UNREADABLE = ("fail", "skip")

Wanted = dict[SplitName, FewShotSplit]


@dataclass(frozen=True)
class ExtractOptions:
    """What to extract.

    Parameters
    ----------
    shots, seeds : the few-shot splits, every shot count with every seed; those a cache has already stay.
    classnames_form : how class names stand in prompts, see `prompts.fill_templates`.
    batch_size, workers : see `encoding.encode_image_blocks`; neither is part of what a cache is made from.
    unreadable : "fail" once everything else is encoded, or "skip" and record what was left out.

    Raises
    ------
    OptionError : a value that cannot be used.
    """

    shots: tuple[int, ...] = PAPER_SHOTS
    seeds: tuple[int, ...] = PAPER_SEEDS
    classnames_form: str = "spaces"
    batch_size: int | None = None
    workers: int | None = None
    unreadable: str = "fail"

    def __post_init__(self) -> None:
        refuse_unusable_splits(self.shots, self.seeds)
        if self.batch_size is not None and self.batch_size < 1:
            raise OptionError(f"batch-size must be positive, got {self.batch_size}")
        if self.workers is not None and self.workers < 0:
            raise OptionError(f"workers must not be negative, got {self.workers}")
        if self.unreadable not in UNREADABLE:
            raise OptionError(f"unreadable must be one of {', '.join(UNREADABLE)}, got {self.unreadable!r}")


@dataclass(frozen=True)
class Extraction:
    """What stage one did.

    Parameters
    ----------
    path : the cache.
    images, encoded : images in the cache, and those of them that were encoded just now.
    changed : whether the file was written; False when nothing was missing.
    notes : what a user should be told.
    """

    path: Path
    images: int
    encoded: int
    changed: bool
    notes: tuple[str, ...]


def extract(
    dataset: Dataset, backbone: Backbone, options: ExtractOptions, path: Path, progress: Progress | None = None
) -> Extraction:
    """Bring the cache at `path` to hold the data set's splits, encoding only what neither it nor a killed run has.

    Raises
    ------
    DatasetError : an image that the splits need is not there, before anything is encoded (unless images that cannot be
        read are to be skipped).
    CacheMismatchError : the cache at `path` was made from another checkpoint, preprocessing or prompt set, or from
        another data set of the same name; it is left as it is.
    UnreadableImagesError : after all other images have been encoded; a second run takes those over.
    StorageError : the cache cannot be written.
    """
    progress = progress or Silent()
    fill_templates(dataset.templates, dataset.classnames, options.classnames_form)  # before hours of encoding
    made_from = provenance_of(dataset, backbone, options)
    existing = _existing_contents(path, dataset, made_from)
    wanted = _wanted_splits(dataset, options, existing)
    needed = _needed_items(dataset, wanted)
    stamps = {item.path: dataset.source.stamp(item.path) for _, item in needed}
    _refuse_other_dataset(path, existing, stamps)
    if options.unreadable == "fail":
        _refuse_absent(dataset, needed, stamps)

    parts = path.with_name(f"{path.name}.parts")
    already = Already(made_from, existing, parts)
    images = gather_images(dataset.source, stamps, backbone, already, options.batch_size, options.workers, progress)
    text = gather_text(dataset.templates, dataset.classnames, backbone, already, progress)
    if images.unreadable and (options.unreadable == "fail" or not images.rows):
        raise UnreadableImagesError(images.unreadable)

    contents = _assembled(dataset, made_from, wanted, needed, stamps, images, text)
    changed = existing is None or not _holds_the_same(existing, contents)
    if changed:
        write_cache(path, contents)
    discard_blocks(parts)
    notes = _notes(dataset, wanted, images.unreadable)
    return Extraction(path, len(contents.paths), images.encoded, changed, notes)


def provenance_of(dataset: Dataset, backbone: Backbone, options: ExtractOptions) -> Provenance:
    """Return what a cache of a data set and a backbone is made from."""
    return Provenance(
        dataset=dataset.name,
        backbone=backbone.name,
        pretrained=backbone.pretrained,
        model_config=backbone.model_config,
        weights_sha256=backbone.weights_sha256,
        logit_scale=backbone.logit_scale,
        preprocess={**backbone.preprocess, "orientation": dataset.source.orientation},
        precision=backbone.precision,
        classnames_form=options.classnames_form,
        split=dataset.split,
        recipe=dataset.recipe.as_dict(),
        versions={"python": python_version(), **{library: version(library) for library in LIBRARIES}},
    )


def _existing_contents(path: Path, dataset: Dataset, made_from: Provenance) -> CacheContents | None:
    """Return what the cache holds already; None when there is none, an error when it was made from something else."""
    if not path.exists():
        return None
    decisive = ("weights_sha256", "model_config", "preprocess", "precision", "classnames_form", "split")
    expected = {name: getattr(made_from, name) for name in decisive}
    cache = FeatureCache(path)
    cache.expect("delete it or choose another --cache-dir", templates=dataset.templates, **expected)
    return cache.contents()


def _refuse_other_dataset(path: Path, existing: CacheContents | None, stamps: dict[str, str]) -> None:
    """Keep the cache of another folder of the same name from being replaced by this one's."""
    if existing is None:
        return
    if not any(stamps.get(image) == stamp for image, stamp in zip(existing.paths, existing.stamps, strict=True)):
        raise CacheMismatchError(
            path,
            {"images": (f"{existing.paths[0]} and {len(existing.paths) - 1} more", "at least one of them unchanged")},
            "it seems to be of another folder of that name, or every file has changed: pass a --name or delete it",
        )


def _refuse_absent(dataset: Dataset, needed: list[tuple[str, Item]], stamps: dict[str, str]) -> None:
    """Raise DatasetError naming the first image that is not there, and what lists it."""
    absent = [item for _, item in needed if stamps[item.path] == ABSENT]
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        listed = f" ({absent[0].where})" if absent[0].where else ""
        raise DatasetError(
            f"data set {dataset.name!r}: {absent[0].path}{listed}{more} not found below {dataset.source.location}; "
            f"unpack the images again (`taskres datasets verify` lists all that lack), or pass --skip-unreadable"
        )


def _wanted_splits(dataset: Dataset, options: ExtractOptions, existing: CacheContents | None) -> Wanted:
    """Return every split that is asked for or in the cache, drawn from the lists as they are now."""
    if dataset.test_only:
        return {}
    asked = {(shots, seed) for shots in options.shots for seed in options.seeds}
    train, val = labels_of(dataset.train), labels_of(dataset.val)
    names = sorted(asked | set(existing.splits if existing else ()))
    return {(shots, seed): sample_few_shot(train, val, shots, seed) for shots, seed in names}


def _needed_items(dataset: Dataset, wanted: Wanted) -> list[tuple[str, Item]]:
    """Return (partition, item) of the union of all splits and the test part, each image once, in list order."""
    train = sorted({position for split in wanted.values() for position in split.train})
    val = sorted({position for split in wanted.values() for position in split.val})
    return [
        *(("train", dataset.train[position]) for position in train),
        *(("val", dataset.val[position]) for position in val),
        *(("test", item) for item in dataset.test),
    ]


def _assembled(
    dataset: Dataset,
    made_from: Provenance,
    wanted: Wanted,
    needed: list[tuple[str, Item]],
    stamps: dict[str, str],
    images: GatheredImages,
    text: TextBases,
) -> CacheContents:
    """Return the cache of all needed images that could be read, in their order."""
    kept = [(partition, item) for partition, item in needed if item.path in images.rows]
    row_of = {item.path: row for row, (_, item) in enumerate(kept)}
    return CacheContents(
        provenance=made_from,
        classnames=dataset.classnames,
        class_ids=dataset.class_ids,
        paths=tuple(row_of),
        stamps=tuple(stamps[path] for path in row_of),
        labels=np.array([item.label for _, item in kept], np.int32),
        partitions=np.array([PARTITIONS.index(partition) for partition, _ in kept], np.uint8),
        image_features=np.stack([images.rows[path] for path in row_of]),  # (N, D)
        text=text,
        splits={name: _rows_of_split(dataset, split, row_of) for name, split in wanted.items()},
        skipped=images.unreadable,
    )


def _rows_of_split(dataset: Dataset, split: FewShotSplit, row_of: dict[str, int]) -> Split:
    """Return the cache rows of a drawn split in the order of the draw, skipped images left out."""
    return Split(_rows(dataset.train, split.train, row_of), _rows(dataset.val, split.val, row_of))


def _rows(items: Sequence[Item], positions: Sequence[int], row_of: dict[str, int]) -> np.ndarray:
    drawn = (items[position].path for position in positions)
    return np.array([row_of[path] for path in drawn if path in row_of], np.int64)


def _holds_the_same(existing: CacheContents, contents: CacheContents) -> bool:
    """Return whether a cache holds all of the new contents already, the versions of libraries aside."""
    plain = all(
        getattr(existing, name) == getattr(contents, name)
        for name in ("classnames", "class_ids", "paths", "stamps", "skipped")
    )
    arrays = ("labels", "partitions", "image_features")
    return (
        plain
        and all(np.array_equal(getattr(existing, name), getattr(contents, name)) for name in arrays)
        and existing.splits.keys() == contents.splits.keys()
        and existing.provenance.recipe == contents.provenance.recipe
    )


def _notes(dataset: Dataset, names: Iterable[SplitName], unreadable: dict[str, str]) -> tuple[str, ...]:
    """Return what a user should be told: how the data set was read, classes short of images, skipped images."""
    shortages = shortage_notes(
        dataset.classnames, labels_of(dataset.train), max((shots for shots, _ in names), default=0)
    )
    skips = [f"skipped {path}: {reason}" for path, reason in unreadable.items()]
    return (*dataset.notes, *shortages, *skips)
