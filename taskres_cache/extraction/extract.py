"""Stage one: encode a data set with a frozen encoder into a cache, by one process or by many."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import numpy as np

from taskres_cache.caches.contents import DESCRIPTIONS, CacheContents, ImageProjection, SplitName, cache_path
from taskres_cache.caches.drawing import drawing_of
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.hdf5 import write_cache
from taskres_cache.caches.provenance import Provenance
from taskres_cache.datasets import Dataset, labels_of, shortage_notes
from taskres_cache.datasets.images import ON_WHITE, ImageSource, PackedSource
from taskres_cache.encoders.backbone import PRECISIONS, Backbone, have_unit_length
from taskres_cache.encoders.encoding import BLOCK_ROWS, Block, Seconds
from taskres_cache.encoders.views import WIDE, view_recipe
from taskres_cache.errors import CacheMismatchError, RankError, UnreadableImagesError
from taskres_cache.extraction.assembly import Encoded, assembled, has_same_text, is_up_to_date
from taskres_cache.extraction.blocks import discard_blocks
from taskres_cache.extraction.copies import note_on_equal_features, without_copies
from taskres_cache.extraction.encode_missing import (
    EncodedShare,
    ImageEncoding,
    encode_descriptions,
    encode_prompts,
    missing_blocks,
    wants_input,
)
from taskres_cache.extraction.known_rows import EarlierWork, KnownRows, Rendering
from taskres_cache.extraction.lock import exclusive_lock
from taskres_cache.extraction.options import Extraction, ExtractOptions
from taskres_cache.extraction.planning import (
    Plan,
    existing_cache,
    has_classes_of,
    plan_cache,
    refuse_absent,
    refuse_other_dataset,
    refuse_undecodable_folder,
    refuse_undone_corrections,
    wanted_pre_projection,
    with_cached_text,
)
from taskres_cache.extraction.prompt_check import checked_text
from taskres_cache.extraction.ranks import Ranks
from taskres_cache.system.files import discard_leftovers, refuse_special
from taskres_cache.system.progress import Progress, Silent, default_progress

__all__ = ["ExtractOptions", "Extraction", "extract", "provenance_of"]

LIBRARIES = ("taskres-cache", "torch", "torchvision", "open_clip_torch", "timm", "pillow", "numpy")


def extract(
    dataset: Dataset,
    backbone: Backbone,
    options: ExtractOptions | None = None,
    path: str | Path | None = None,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
) -> Extraction:
    """Encode the images and prompts of a data set's few-shot splits into a cache.

    Only what is missing is encoded: a call after a killed one continues where that stopped, and more shots, seeds or
    views cost only their own images. The cache stores un-normalised features: image features (N, D) and text features
    (C, T, D), for N images, C classes, T templates and D dimensions.

    Parameters
    ----------
    dataset : Dataset
        The images, class names and templates, from `load_dataset`.
    backbone : Backbone
        The frozen encoder, from `load_backbone`.
    options : ExtractOptions, optional
        What to extract. Defaults to the paper's shots and seeds, and all images of data that is not known by name.
    path : str or Path, optional
        The cache file. Defaults to `cache/<backbone>-<tag>/<data set>.h5`, where the commands look for it.
    progress : Progress, optional
        Called after each block of images. Defaults to a progress bar on a terminal or in a notebook.
    ranks : Ranks, optional
        The processes that share the work, from `joined_ranks`. Defaults to this process alone.

    Returns
    -------
    Extraction
        The path of the cache, what was encoded, and where the time went.

    Raises
    ------
    DatasetError
        An image that the splits need is missing. Raised before anything is encoded, unless unreadable images are
        skipped.
    CacheMismatchError
        The cache at `path` was made with another checkpoint, preprocessing or prompt set, or from another data set of
        the same name. It is not changed.
    BusyError
        Another process is making that cache.
    UnreadableImagesError
        Some images could not be read. All others are encoded; a second call reuses them.
    OptionError
        A template is invalid, a prompt is so long that its class name is cut off, or corrected labels of the cache are
        missing in the data set.
    WeightsError
        The encoder computes NaN or infinite features.
    DecodingError
        A decoding process died. Finished blocks are kept.
    StorageError
        The cache cannot be written.
    RankError
        Another rank failed. Finished blocks are kept.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from taskres_cache import FeatureCache, extract, load_backbone, load_dataset
    >>> from taskres_cache.extraction.extract import ExtractOptions
    >>> digits = load_dataset("digits")
    >>> backbone = load_backbone("glyph-clip", "bundled", device="cpu")
    >>> with TemporaryDirectory() as folder:
    ...     done = extract(digits, backbone, ExtractOptions(shots=(1,), seeds=(1,)), Path(folder) / "digits.h5")
    ...     features, labels = FeatureCache(done.path).test()
    >>> done.encoded, features.shape, labels.shape
    (379, (359, 64), (359,))
    """
    options, ranks = options or ExtractOptions(), ranks or Ranks()
    path = path or cache_path(Path("cache"), backbone.name, backbone.pretrained, dataset.name)
    refuse_undecodable_folder(dataset)
    dataset = with_cached_text(dataset, Path(path))
    text_notes = checked_text(dataset, backbone, options.classnames_form)  # raises before hours of encoding
    with ExitStack() as until_done:
        if progress is None:
            progress = until_done.enter_context(default_progress()) if ranks.first else Silent()
        job = _Job(dataset, backbone, options, Path(path), ranks, progress)
        lock_notes = ranks.agreed(lambda: until_done.enter_context(exclusive_lock(job.path)))
        work = ranks.agreed(lambda: job.planned.work)
        shares = ranks.gathered(job.encode_share(work))
        finished = ranks.agreed(lambda: job.finish(shares))
    return replace(finished, notes=(*lock_notes, *text_notes, *finished.notes))


@dataclass(frozen=True)
class _Work:
    """What every rank needs: the inputs of the rows, the missing blocks, and how many images are finished."""

    provenance: Provenance
    pre_projection: str
    blocks: Sequence[Block]
    stamps: dict[str, str]
    finished: int


@dataclass(frozen=True)
class _Planned:
    """What the first rank plans: the contents of the cache, what earlier runs finished, and the remaining work."""

    plan: Plan
    earlier: EarlierWork
    notes: tuple[str, ...]
    work: _Work


@dataclass(frozen=True)
class _Job:
    """One extraction on one rank. The first rank also plans it and assembles the cache."""

    dataset: Dataset
    backbone: Backbone
    options: ExtractOptions
    path: Path
    ranks: Ranks
    progress: Progress

    @property
    def parts(self) -> Path:
        return self.path.with_name(f"{self.path.name}.parts")

    @cached_property
    def planned(self) -> _Planned:
        """The plan, after checking that it can be carried out. Nothing is encoded yet."""
        discard_leftovers(self.path)
        options, provenance = self.options, self._provenance_as_cached()
        existing = existing_cache(self.path, self.dataset, provenance)
        if existing and not options.undo_corrections:
            refuse_undone_corrections(existing, self.dataset)
        if existing and existing.views:
            provenance = replace(provenance, views=existing.provenance.views)
        asked = (options.shots, options.seeds, options.val_per_class)
        drawing = drawing_of(self.dataset.name, *asked, existing.provenance if existing else None)
        provenance = drawing.recorded_in(provenance)
        dataset, copies = without_copies(self.dataset)
        plan = plan_cache(dataset, drawing, options.requested_views, existing)
        if existing:
            refuse_other_dataset(existing, plan.stamps)
            _refuse_normalised(existing)
        if options.unreadable == "fail":
            refuse_absent(plan)
        earlier = EarlierWork(provenance, existing, self.parts)
        has_projection = self.backbone.image_projection is not None
        inputs = wanted_pre_projection(options.pre_projection, existing, has_projection)
        blocks = missing_blocks(plan.renderings(), _is_known(earlier, inputs), BLOCK_ROWS)
        if blocks:
            refuse_special(self.path)
        stamps = {image.path: plan.stamps[image.path] for block in blocks for image in block}
        work = _Work(provenance, inputs, blocks, stamps, len(plan.needed) - len(stamps))
        notes = (*copies, *drawing.notes, *self._notes_on_parts(existing, has_projection))
        return _Planned(plan, earlier, notes, work)

    def encode_share(self, work: _Work) -> EncodedShare:
        """Encode this rank's share of the missing blocks."""
        ranks, backbone = self.ranks, replace(self.backbone, precision=work.provenance.precision)
        source = self._source_as_cached(work.provenance)
        own = provenance_of(replace(self.dataset, source=source), backbone, self.options)
        _refuse_other_encoder(own, work.provenance, ranks)
        share = work.blocks[ranks.number :: ranks.count]
        earlier = EarlierWork(work.provenance, None, self.parts)
        encoding = ImageEncoding(
            source=source,
            stamps=work.stamps,
            backbone=backbone,
            folder=earlier.image_blocks(),
            inputs_folder=earlier.image_blocks("pre_projection"),
            pre_projection=work.pre_projection,
            options=self.options,
        )
        part = f", part {ranks.number + 1} of {ranks.count}" if ranks.count > 1 else ""
        images = sum(len(block) for block in share)
        self.progress.begin(f"images of {self.dataset.name}{part}", work.finished + images, work.finished)
        return encoding.encode(share, self.progress)

    def finish(self, shares: Sequence[EncodedShare]) -> Extraction:
        """Assemble the cache; raises the failure of any rank."""
        _raise_failures(shares)
        plan, earlier = self.planned.plan, self.planned.earlier
        unreadable = {path: reason for share in shares for path, reason in share.unreadable.items()}
        text = encode_prompts(plan.dataset, self.backbone, earlier, self.progress)
        descriptions = encode_descriptions(plan.dataset, self.backbone, earlier, self.progress)
        if unreadable and (self.options.unreadable == "fail" or len(unreadable) == len(plan.needed)):
            raise UnreadableImagesError(unreadable)

        projection, inputs = self.backbone.image_projection, self.planned.work.pre_projection
        encoded = Encoded(earlier, text, descriptions, ImageProjection(*projection) if projection else None, inputs)
        contents = assembled(plan, encoded, unreadable)
        images, views = sum(share.images for share in shares), sum(share.views for share in shares)
        changed = images + views > 0 or earlier.cache is None or not is_up_to_date(earlier.cache, contents)
        same = note_on_equal_features(contents.paths, contents.image_features) if changed else ()
        if changed:
            same += _note_on_text(earlier.cache, contents)
            write_cache(self.path, contents)
        discard_blocks(self.parts)
        notes = (*_notes(plan.dataset, plan.draws, unreadable), *self.planned.notes, *same)
        seconds = sum((share.seconds for share in shares), Seconds())
        return Extraction(self.path, len(contents.paths), images, plan.views, views, changed, seconds, notes)

    def _notes_on_parts(self, existing: FeatureCache | None, has_projection: bool) -> tuple[str, ...]:
        """Return notes on pre-projections that the tower does not have, and on named prompts that are left out."""
        asked = self.options.pre_projection or ("none" if existing else "images")
        notes = []
        if asked != "none" and not has_projection:
            notes.append(f"{self.backbone.name} does not end in a linear projection: no pre-projections are stored")
        if existing and not has_classes_of(existing, self.dataset):
            again = "because the classes have changed; add them again"
            given = () if self.dataset.prompts is None else (DESCRIPTIONS,)
            lost = [name for name in existing.named_sets if name not in given]
            notes += [f"the prompts {name!r} are left out, {again}" for name in lost]
            if existing.shown_names and self.dataset.shown_names is None:
                notes.append(f"the names of the classes in prompts are left out, {again}")
        return tuple(notes)

    def _provenance_as_cached(self) -> Provenance:
        """Return the inputs of the rows; an automatic precision and the reading of images follow the existing cache."""
        provenance = provenance_of(self.dataset, self.backbone, self.options)
        if not self.path.exists():
            return provenance
        cached = FeatureCache(self.path).provenance
        if provenance.preprocess["orientation"] == ON_WHITE and cached.preprocess.get("orientation") == "exif":
            provenance = replace(provenance, preprocess={**provenance.preprocess, "orientation": "exif"})
        if not self.backbone.adapts:
            return provenance
        precision = cached.precision if cached.precision in PRECISIONS else self.backbone.precision
        return replace(provenance, precision=precision)

    def _source_as_cached(self, provenance: Provenance) -> ImageSource:
        """Return the images, read as those of an existing cache: earlier versions had black for transparent parts."""
        source: Any = self.dataset.source
        orientation = provenance.preprocess["orientation"]
        if source.orientation == orientation or orientation != "exif":
            return source  # type: ignore[no-any-return]
        return replace(source, orientation=orientation)  # type: ignore[no-any-return]


def _is_known(earlier: EarlierWork, pre_projection: str) -> Callable[[Rendering], bool]:
    """Return what tells whether a rendering needs no encoding: all its rows are in the cache or in blocks."""
    features, inputs = KnownRows(earlier), KnownRows(earlier, "pre_projection")
    return lambda one: one in features and (not wants_input(one, pre_projection) or one in inputs)


def provenance_of(dataset: Dataset, backbone: Backbone, options: ExtractOptions) -> Provenance:
    """Return the inputs of a cache of a data set and a backbone."""
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
        views=view_recipe(options.views_seed) if options.views and options.view_family == WIDE else {},
        recipe=dataset.recipe.deviations(),
        versions={"python": python_version(), **{library: version(library) for library in LIBRARIES}},
        corrections=dataset.corrections.as_plain(),
        images_folder=_reference(dataset.source),
    )


def _reference(source: ImageSource) -> str:
    """Return the text with which images are found again; empty if they are bundled or in memory."""
    if isinstance(source, PackedSource):
        return source.reference
    return str(source.location.absolute()) if source.location.is_dir() else ""


def _note_on_text(cache: FeatureCache | None, contents: CacheContents) -> tuple[str, ...]:
    if cache is None or cache.classnames != contents.classnames or has_same_text(cache, contents):
        return ()
    return ("the cache had other text for its classes, which is replaced; runs that were fitted on it are kept",)


def _refuse_other_encoder(own: Provenance, agreed: Provenance, ranks: Ranks) -> None:
    """Raise RankError on a rank whose encoder or data set differs from the first rank's: its rows would not count."""
    for name in ("weights_sha256", "model_config", "preprocess", "split"):
        if getattr(own, name) != getattr(agreed, name):
            raise RankError(
                f"rank {ranks.number} has {name} {getattr(own, name)!r}, rank 0 has {getattr(agreed, name)!r}; "
                "start all ranks with the same command, checkpoint and data set"
            )


def _refuse_normalised(existing: FeatureCache) -> None:
    """Raise CacheMismatchError for a cache of normalised features; earlier versions made those with CoCa models."""
    first = np.arange(min(BLOCK_ROWS, len(existing.labels)))
    if have_unit_length(existing.stored("features/center", first)):
        raise CacheMismatchError(
            existing.path,
            {"image features": ("normalised", "un-normalised")},
            "delete it or choose another --cache-dir",
        )


def _raise_failures(shares: Sequence[EncodedShare]) -> None:
    """Raise the failure of the first rank that did not finish its share."""
    for number, failure in enumerate(share.failure for share in shares):
        if failure is not None and number == 0:
            raise failure
        if failure is not None:
            raise RankError(f"rank {number}: {failure}")


def _notes(dataset: Dataset, splits: Iterable[SplitName], unreadable: dict[str, str]) -> tuple[str, ...]:
    """Return notes on how the data set was read, classes with too few images, and skipped images."""
    shortages = shortage_notes(dataset.classnames, labels_of(dataset.train), (shots for shots, _ in splits))
    skips = [f"skipped {path}: {reason}" for path, reason in unreadable.items()]
    return (*dataset.notes, *shortages, *skips)
