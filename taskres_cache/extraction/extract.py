"""Stage one: from a data set and a frozen encoder to the finished cache, by one process or by many.

Axes: N images, M train images, V augmented views, C classes, D embedding.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from platform import python_version

import numpy as np

from taskres_cache.caches.contents import CacheContents, SplitName, TextBases
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.hdf5 import write_cache
from taskres_cache.caches.provenance import Provenance
from taskres_cache.datasets import (
    PAPER_SEEDS,
    PAPER_SHOTS,
    PARTITIONS,
    Dataset,
    labels_of,
    refuse_unusable_splits,
    shortage_notes,
)
from taskres_cache.datasets.prompts import fill_templates
from taskres_cache.encoders.backbone import PRECISIONS, Backbone
from taskres_cache.encoders.encoding import BLOCK_ROWS, Block, Seconds
from taskres_cache.encoders.views import view_recipe
from taskres_cache.errors import OptionError, RankError, UnreadableImagesError
from taskres_cache.extraction.blocks import discard_blocks
from taskres_cache.extraction.encode_missing import Encoder, Gathered, encode_missing, gather_text, missing_blocks
from taskres_cache.extraction.known_rows import Already, KnownRows, LazyRows, Rendering
from taskres_cache.extraction.lock import exclusive_lock
from taskres_cache.extraction.planning import Plan, existing_cache, plan_cache, refuse_absent, refuse_other_dataset
from taskres_cache.extraction.ranks import Ranks
from taskres_cache.system.files import discard_leftovers
from taskres_cache.system.progress import Progress, Silent, default_progress

LIBRARIES = ("taskres-cache", "torch", "torchvision", "open_clip_torch", "timm", "pillow", "numpy")
UNREADABLE = ("fail", "skip")


@dataclass(frozen=True)
class ExtractOptions:
    """What to extract.

    Parameters
    ----------
    shots, seeds : the few-shot splits, every shot count with every seed; those a cache has already stay.
    classnames_form : how class names stand in prompts, see `prompts.fill_templates`.
    views, views_seed : augmented views of each train image, and the seed that they are drawn with; those a cache has
        already stay.
    batch_size, workers : see `gathering.Encoder`; neither is part of what a cache is made from.
    unreadable : "fail" once everything else is encoded, or "skip" and record what was left out.

    Raises
    ------
    OptionError : a value that cannot be used.
    """

    shots: tuple[int, ...] = PAPER_SHOTS
    seeds: tuple[int, ...] = PAPER_SEEDS
    classnames_form: str = "spaces"
    views: int = 0
    views_seed: int = 0
    batch_size: int | None = None
    workers: int | None = None
    unreadable: str = "fail"

    def __post_init__(self) -> None:
        refuse_unusable_splits(self.shots, self.seeds)
        if self.views < 0:
            raise OptionError(f"views must not be negative, got {self.views}")
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
    views, views_encoded : augmented views of each train image, and how many were encoded just now, of all images.
    changed : whether the file was written; False when nothing was missing.
    seconds : where the time of encoding went, summed over processes.
    notes : what a user should be told.
    """

    path: Path
    images: int
    encoded: int
    views: int
    views_encoded: int
    changed: bool
    seconds: Seconds
    notes: tuple[str, ...]


def extract(
    dataset: Dataset,
    backbone: Backbone,
    options: ExtractOptions,
    path: Path,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
) -> Extraction:
    """Bring the cache at `path` to hold the data set's splits, encoding only what neither it nor a killed run has.

    Of several ranks, the first plans and assembles, and each encodes its share of the blocks.

    Raises
    ------
    DatasetError : an image that the splits need is not there, before anything is encoded (unless images that cannot be
        read are to be skipped).
    CacheMismatchError : the cache at `path` was made from another checkpoint, preprocessing or prompt set, or from
        another data set of the same name; it is left as it is.
    BusyError : another process is making that cache.
    UnreadableImagesError : after all other images have been encoded; a second run takes those over.
    StorageError : the cache cannot be written.
    RankError : another rank cannot go on; what is finished is kept.
    """
    ranks = ranks or Ranks()
    parts = path.with_name(f"{path.name}.parts")
    fill_templates(dataset.templates, dataset.classnames, options.classnames_form)  # before hours of encoding
    planned: list[_Planned] = []  # of the first rank; the others have no need of more than their work

    def plan() -> _Work:
        planned.append(_planned(dataset, backbone, options, path, parts))
        return planned[0].work

    with ExitStack() as until_done:
        if progress is None:
            progress = until_done.enter_context(default_progress()) if ranks.first else Silent()
        lock_notes = ranks.agreed(lambda: until_done.enter_context(exclusive_lock(path)))
        work = ranks.agreed(plan)
        backbone = replace(backbone, precision=work.made_from.precision)
        _refuse_other_encoder(provenance_of(dataset, backbone, options), work.made_from, ranks)
        done = ranks.gathered(_encode_share(dataset, backbone, options, work, parts, ranks, progress))
        finished = ranks.agreed(lambda: _finish(planned[0], backbone, options, path, parts, done, progress))
    return replace(finished, notes=(*lock_notes, *finished.notes))


@dataclass(frozen=True)
class _Work:
    """What every rank has to know: what to encode, as what, and how many images there are already."""

    made_from: Provenance
    blocks: Sequence[Block]
    stamps: dict[str, str]
    there: int

    @property
    def views_seed(self) -> int:
        return int(self.made_from.views.get("seed", 0))


@dataclass(frozen=True)
class _Planned:
    """What the first rank knows beside: what the cache is to hold, and what there is already."""

    plan: Plan
    already: Already
    work: _Work


def _planned(dataset: Dataset, backbone: Backbone, options: ExtractOptions, path: Path, parts: Path) -> _Planned:
    """Return what there is to do, after checking that it can be done; nothing has been encoded yet."""
    discard_leftovers(path)
    made_from = provenance_of(dataset, backbone, options)
    if backbone.adapts and path.exists():
        cached = FeatureCache(path).provenance.precision
        made_from = replace(made_from, precision=cached if cached in PRECISIONS else backbone.precision)
    existing = existing_cache(path, dataset, made_from)
    if existing and existing.views:
        made_from = replace(made_from, views=existing.provenance.views)
    plan = plan_cache(dataset, {(k, s) for k in options.shots for s in options.seeds}, options.views, existing)
    if existing:
        refuse_other_dataset(existing, plan.stamps)
    if options.unreadable == "fail":
        refuse_absent(plan)
    already = Already(made_from, existing, parts)
    blocks = missing_blocks(plan.renderings(), KnownRows(already), BLOCK_ROWS)
    stamps = {image.path: plan.stamps[image.path] for block in blocks for image in block}
    return _Planned(plan, already, _Work(made_from, blocks, stamps, len(plan.needed) - len(stamps)))


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
        views=view_recipe(options.views_seed) if options.views else {},
        recipe=dataset.recipe.deviations(),
        versions={"python": python_version(), **{library: version(library) for library in LIBRARIES}},
        images_folder=str(dataset.source.location) if dataset.source.location.is_dir() else "",
    )


def _refuse_other_encoder(own: Provenance, agreed: Provenance, ranks: Ranks) -> None:
    """Raise RankError on a rank whose encoder is not the first one's: its rows would count for nothing."""
    for name in ("weights_sha256", "model_config", "preprocess", "split"):
        if getattr(own, name) != getattr(agreed, name):
            raise RankError(
                f"rank {ranks.number} has {name} {getattr(own, name)!r}, rank 0 {getattr(agreed, name)!r}; "
                "start all ranks with the same command, checkpoint and data set"
            )


def _encode_share(
    dataset: Dataset,
    backbone: Backbone,
    options: ExtractOptions,
    work: _Work,
    parts: Path,
    ranks: Ranks,
    progress: Progress,
) -> Gathered:
    """Encode what falls to this rank of what is missing: every so manieth block."""
    share = work.blocks[ranks.number :: ranks.count]
    kept = Already(work.made_from, None, parts).image_blocks()
    encoder = Encoder(dataset.source, backbone, kept, work.views_seed, options.batch_size, options.workers)
    part = f", part {ranks.number + 1} of {ranks.count}" if ranks.count > 1 else ""
    images = sum(len(block) for block in share)
    progress.begin(f"images of {dataset.name}{part}", work.there + images, work.there)
    return encode_missing(share, work.stamps, encoder, progress)


def _finish(
    planned: _Planned,
    backbone: Backbone,
    options: ExtractOptions,
    path: Path,
    parts: Path,
    done: Sequence[Gathered],
    progress: Progress,
) -> Extraction:
    """Assemble the cache from all that is there now; raises what went wrong on any rank."""
    _refuse_failures(done)
    plan, already = planned.plan, planned.already
    unreadable = {path: reason for one in done for path, reason in one.unreadable.items()}
    text = gather_text(plan.dataset.templates, plan.dataset.classnames, backbone, already, progress)
    if unreadable and (options.unreadable == "fail" or len(unreadable) == len(plan.needed)):
        raise UnreadableImagesError(unreadable)

    contents = _assembled(plan, already, unreadable, text)
    images, views = sum(one.images for one in done), sum(one.views for one in done)
    changed = images + views > 0 or already.existing is None or not _holds_the_same(already.existing, contents)
    if changed:
        write_cache(path, contents)
    discard_blocks(parts)
    notes, seconds = _notes(plan.dataset, plan.draws, unreadable), sum((one.seconds for one in done), Seconds())
    return Extraction(path, len(contents.paths), images, plan.views, views, changed, seconds, notes)


def _refuse_failures(done: Sequence[Gathered]) -> None:
    """Raise why a rank could not finish its share."""
    for number, failure in enumerate(one.failure for one in done):
        if failure is not None and number == 0:
            raise failure
        if failure is not None:
            raise RankError(f"rank {number}: {failure}")


def _assembled(plan: Plan, already: Already, unreadable: dict[str, str], text: TextBases) -> CacheContents:
    """Return the cache of all needed images that could be read, in their order; features are read as it is written."""
    dataset, known, wanted = plan.dataset, KnownRows(already), plan.renderings()
    kept = [(partition, item) for partition, item in plan.needed if item.path not in unreadable]
    row_of = {item.path: row for row, (_, item) in enumerate(kept)}
    centers = [wanted[path][0] for path in row_of]
    train = [row for row, (partition, _) in enumerate(kept) if partition == "train"]
    views = [rendering for row in train for rendering in wanted[kept[row][1].path][1:]]
    sample = known.read(centers[:1])  # (1, D)
    return CacheContents(
        provenance=already.made_from,
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


def _lazy(known: KnownRows, renderings: Sequence[Rendering], sample: np.ndarray, *shape: int) -> LazyRows:
    return LazyRows(known, renderings, (*shape, sample.shape[1]), sample.dtype)


def _holds_the_same(existing: FeatureCache, contents: CacheContents) -> bool:
    """Return whether a cache holds all of the new contents already, the versions of libraries aside.

    Features need not be compared: those of the same file under the same stamp were taken over.
    """
    splits = existing.splits.keys() == contents.splits.keys() and all(
        np.array_equal(getattr(existing.splits[name], part), getattr(split, part))
        for name, split in contents.splits.items()
        for part in ("train", "val")
    )
    augmented = contents.augmented_rows if contents.augmented_rows is not None else np.zeros(0, np.int64)
    return (
        splits
        and existing.files() == list(zip(contents.paths, contents.stamps, strict=True))
        and all(getattr(existing, name) == getattr(contents, name) for name in ("classnames", "class_ids", "skipped"))
        and all(np.array_equal(getattr(existing, name), getattr(contents, name)) for name in ("labels", "partitions"))
        and np.array_equal(existing.augmented_rows, augmented)
        and existing.views == (contents.augmented.shape[1] if contents.augmented is not None else 0)
        and existing.provenance.recipe == contents.provenance.recipe
    )


def _notes(dataset: Dataset, names: Iterable[SplitName], unreadable: dict[str, str]) -> tuple[str, ...]:
    """Return what a user should be told: how the data set was read, classes short of images, skipped images."""
    shortages = shortage_notes(
        dataset.classnames, labels_of(dataset.train), max((shots for shots, _ in names), default=0)
    )
    skips = [f"skipped {path}: {reason}" for path, reason in unreadable.items()]
    return (*dataset.notes, *shortages, *skips)
