"""Import embeddings from elsewhere: arrays in, cache out.

Axes: N images of a partition, C classes, T templates, D embedding.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from taskres_cache.caches.contents import CacheContents, Split, SplitName, TextBases, cache_path
from taskres_cache.caches.drawing import Drawing, drawing_of
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.foreign.arrays import (
    image_features,
    labels_of,
    logit_scale,
    refuse_classes,
    refuse_repeated,
    repeated_rows,
    strings,
    templates,
    text_features,
)
from taskres_cache.caches.foreign.extras import (
    parts_of_version_2,
    prompt_sets,
    refuse_missing_text,
    with_text_projection,
)
from taskres_cache.caches.foreign.labels import with_numbered_labels
from taskres_cache.caches.foreign.npz import REQUIRED, refuse_unknown
from taskres_cache.caches.foreign.partitions import Divided, divided
from taskres_cache.caches.hdf5 import write_cache
from taskres_cache.caches.provenance import UNKNOWN, Provenance
from taskres_cache.caches.soundness import ZeroShot, zero_shot_of
from taskres_cache.datasets import (
    PAPER_SEEDS,
    PAPER_SHOTS,
    PARTITIONS,
    refuse_unusable_splits,
    sample_few_shot,
    shortage_notes,
)
from taskres_cache.errors import ArraysError, OptionError
from taskres_cache.system.names import shown, unsafe_name


@dataclass(frozen=True)
class ImportOptions:
    """Names and few-shot splits of imported arrays.

    Parameters
    ----------
    name : str
        Name of the data set.
    backbone, pretrained : str
        Free names for the model and checkpoint behind the features; they are part of the cache's path.
    shots, seeds : tuple of int, optional
        Few-shot splits to draw, by default those of `ExtractOptions`.
    val_per_class : int, optional
        Most validation images per class of a split, as in `ExtractOptions`.
    split_seed : int
        Seed with which test and val are drawn, if there are no test images.

    Raises
    ------
    OptionError
        A shot count is not positive, there is no shot count or seed, or a name cannot be part of a path.
    """

    name: str
    backbone: str = "imported"
    pretrained: str = "arrays"
    shots: tuple[int, ...] | None = None
    seeds: tuple[int, ...] = PAPER_SEEDS
    val_per_class: int | None = None
    split_seed: int = 0

    def __post_init__(self) -> None:
        refuse_unusable_splits(PAPER_SHOTS if self.shots is None else self.shots, self.seeds)
        for option in ("name", "backbone", "pretrained"):
            fault = unsafe_name(getattr(self, option))
            if fault is not None:
                raise OptionError(
                    f"{option} {shown(getattr(self, option))} {fault}; expected a plain name, as part of a path"
                )


@dataclass(frozen=True)
class Import:
    """Result of an import.

    Parameters
    ----------
    path : Path
        The cache file.
    images, classes : int
        Their numbers.
    zero_shot : ZeroShot
        Accuracy of the text features and the size of all features, which show most mistakes in the arrays.
    notes : tuple of str
        Notes for the user, such as classes with fewer images than shots.
    """

    path: Path
    images: int
    classes: int
    zero_shot: ZeroShot
    notes: tuple[str, ...]


def import_contents(arrays: Mapping[str, np.ndarray], options: ImportOptions, cache_dir: Path) -> Import:
    """Check arrays and write them as a cache.

    An earlier import with the same name is replaced, and its splits are drawn again together with the requested ones.
    An extracted cache is never replaced, because it took compute to make.

    Parameters
    ----------
    arrays : mapping of str to ndarray
        See `contents_of_arrays`.
    options : ImportOptions
        Names and few-shot splits.
    cache_dir : Path
        Folder of all caches.

    Returns
    -------
    Import
        The cache file, its counts and notes.

    Raises
    ------
    ArraysError
        See `contents_of_arrays`.
    CacheMismatchError
        An extracted cache already has this path.
    """
    path = cache_path(cache_dir, options.backbone, options.pretrained, options.name)
    earlier = FeatureCache(path) if path.exists() else None
    if earlier is not None:
        earlier.expect("choose another --name", weights_sha256=UNKNOWN)
    parts = partitions_of(arrays, options.split_seed)
    contents = contents_of_arrays(parts.arrays, options, earlier, parts.split)
    notes = (*parts.notes, *_drawing(options, earlier).notes, *_notes(contents, earlier))
    write_cache(path, contents)
    return Import(path, len(contents.paths), len(contents.classnames), zero_shot_of(contents), notes)


def partitions_of(arrays: Mapping[str, np.ndarray], seed: int = 0) -> Divided:
    """Return arrays by partition, with labels as positions in the class names; see `divided` for what may be left out.

    Raises
    ------
    ArraysError
        See `with_numbered_labels` and `divided`.
    """
    refuse_unknown(arrays)
    return divided(with_numbered_labels(arrays), seed)


def contents_of_arrays(
    arrays: Mapping[str, np.ndarray],
    options: ImportOptions,
    earlier: FeatureCache | None = None,
    split: str | None = None,
) -> CacheContents:
    """Check that arrays agree with each other and return them as the contents of a cache.

    Parameters
    ----------
    arrays : mapping of str to ndarray
        `{train,val,test}_features` (N, D), floating point, normalised or not; `{train,val,test}_labels` (N,), integers
        or class names. Optional: the val arrays, `text_features` (C, D) or (C, T, D) with `classnames` (C,),
        `{train,val,test}_paths` (N,), `templates` (T,). Without test images, or with `features`, `labels` and
        optionally `split` and `paths` instead of partitions, see `divided`. Also optional: `class_ids` (C,), with which
        class names may repeat, and `logit_scale`, the multiplier (default 100); and for methods that need them:
        `{train,val,test}_pre_projection` (N, I) with `image_projection` (I, D) and `image_projection_bias` (D,);
        `train_views` and `train_views_narrow` (N, V, D), each with its `..._pre_projection` (N, V, I);
        `text_pre_projection` (C, T, W) with `text_projection` (W, D); and sets of prompts, `prompts_NAME_texts` and
        `prompts_NAME_labels` (P,), `prompts_NAME_features` (P, D) and, with a text projection,
        `prompts_NAME_pre_projection` (P, W).
    options : ImportOptions
        Names and few-shot splits.
    earlier : FeatureCache, optional
        An earlier import, whose splits are drawn as well.
    split : str, optional
        How the partitions were made, of arrays that are divided already.

    Raises
    ------
    ArraysError
        An array is missing or unknown, types or shapes do not match, a label is out of range, a class has no training
        image, features are NaN, infinite, all zero or all equal, the test images are training images, or
        pre-projections times their projection are not the features.
    """
    parts = partitions_of(arrays, options.split_seed)
    arrays, split = parts.arrays, split or parts.split
    missing = [name for name in REQUIRED if name not in arrays]
    if missing:
        raise ArraysError(
            f"missing arrays: {', '.join(missing)}; expected {', '.join(REQUIRED)}, or features and labels, and "
            "optionally those of val and test"
        )
    present = [partition for partition in PARTITIONS if {f"{partition}_features", f"{partition}_labels"} & set(arrays)]
    classnames = strings("classnames", arrays["classnames"])
    class_ids = strings("class_ids", arrays["class_ids"]) if "class_ids" in arrays else None
    refuse_missing_text(arrays)
    text = _text(arrays, len(classnames))
    labels = {partition: labels_of(arrays, partition, len(classnames)) for partition in present}
    reference = "train_features" if text is None else "text_features"
    dim = arrays["train_features"].shape[-1:] if text is None else text.embeddings.shape[2:]
    features = {
        partition: image_features(arrays, partition, labels[partition], dim, reference) for partition in present
    }
    refuse_classes(classnames, class_ids, labels["train"])
    refuse_repeated(features)
    sizes = [len(labels[partition]) for partition in present]
    drawing = _drawing(options, earlier)
    return CacheContents(
        provenance=drawing.recorded_in(_provenance(options, logit_scale(arrays), split)),
        classnames=classnames,
        paths=_paths(arrays, {partition: len(labels[partition]) for partition in present}),
        stamps=("imported",) * sum(sizes),
        labels=np.concatenate([labels[partition] for partition in present]),
        partitions=np.repeat([PARTITIONS.index(partition) for partition in present], sizes).astype(np.uint8),
        image_features=np.concatenate([features[partition] for partition in present]),
        text=text,
        splits=_splits(labels, drawing, drawing.names.union(earlier.splits if earlier else ())),
        class_ids=class_ids,
        prompts={} if text is None else prompt_sets(arrays, classnames, text),
        **parts_of_version_2(arrays, features),
    )


def _paths(arrays: Mapping[str, np.ndarray], counts: Mapping[str, int]) -> tuple[str, ...]:
    """Return a path for each image: as given, or partition and row."""
    found: list[str] = []
    for partition, count in counts.items():
        name = f"{partition}_paths"
        paths = strings(name, arrays[name]) if name in arrays else tuple(f"{partition}/{row}" for row in range(count))
        if len(paths) != count:
            raise ArraysError(f"{name} has length {len(paths)}, expected {count}: one per label in {partition}_labels")
        found += paths
    twice, times = Counter(found).most_common(1)[0]
    if times > 1:
        raise ArraysError(f"path {shown(twice)} occurs {times} times; give each image its own, and to one partition")
    return tuple(found)


def _text(arrays: Mapping[str, np.ndarray], classes: int) -> TextBases | None:
    """Return the text features; None if none are given."""
    if "text_features" not in arrays:
        return None
    embeddings = text_features(arrays, classes)  # (C, T, D)
    return with_text_projection(arrays, TextBases(templates(arrays, embeddings.shape[1]), embeddings))


def _notes(contents: CacheContents, earlier: FeatureCache | None) -> tuple[str, ...]:
    """Return notes on short classes, images in two partitions, and an earlier import that is replaced."""
    parts = {name: contents.partitions == number for number, name in enumerate(PARTITIONS)}
    features = np.asarray(contents.image_features[:])
    repeated = repeated_rows({name: features[rows] for name, rows in parts.items() if rows.any()})
    train = contents.labels[parts["train"]].tolist()
    notes = [*shortage_notes(contents.classnames, train, (shots for shots, _ in contents.splits))]
    notes += [
        f"{count} rows of {part}_features are also in train_features" for part, count in repeated.items() if count
    ]
    if earlier is not None and not _same_images(earlier, contents):
        notes.append(f"the import with this name had other images or features and is replaced: {earlier.path}")
    return tuple(notes)


def _same_images(earlier: FeatureCache, contents: CacheContents) -> bool:
    same = earlier.shapes["features/center"] == contents.image_features.shape
    rows = np.arange(len(contents.labels))
    return same and all(
        np.array_equal(one, other)
        for one, other in (
            (earlier.labels, contents.labels),
            (earlier.partitions, contents.partitions),
            (earlier.stored("features/center", rows), contents.image_features[:]),
        )
    )


def _drawing(options: ImportOptions, earlier: FeatureCache | None) -> Drawing:
    """Return how to draw the splits; an earlier import keeps its validation images unless asked otherwise."""
    existing = earlier.provenance if earlier else None
    return drawing_of(options.name, options.shots, options.seeds, options.val_per_class, existing)


def _splits(labels: Mapping[str, np.ndarray], drawing: Drawing, names: Iterable[SplitName]) -> dict[SplitName, Split]:
    """Return the few-shot splits as rows of the cache, in which val follows train."""
    train, val = labels["train"].tolist(), labels["val"].tolist() if "val" in labels else []
    drawn = {name: sample_few_shot(train, val, *name, drawing.val_per_class) for name in sorted(names)}
    return {
        name: Split(np.array(split.train, np.int64), np.array(split.val, np.int64) + len(train))
        for name, split in drawn.items()
    }


def _provenance(options: ImportOptions, logit_scale: float, split: str) -> Provenance:
    unknown: dict[str, Any] = {"weights_sha256": UNKNOWN, "precision": UNKNOWN, "classnames_form": UNKNOWN}
    versions = {name: version(name) for name in ("taskres-cache", "numpy")}
    return Provenance(
        options.name,
        options.backbone,
        options.pretrained,
        options.backbone,
        logit_scale=logit_scale,
        preprocess={},
        split=split,
        versions=versions,
        **unknown,
    )
