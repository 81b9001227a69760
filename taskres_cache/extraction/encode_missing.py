"""Encoding what is missing, of images and of prompts; what a cache or a killed run has is taken over.

Axes: C classes, T templates, D embedding, W width of the text tower.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from time import perf_counter

import numpy as np

from taskres_cache.caches.contents import TextBases
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.datasets.images import ImageSource
from taskres_cache.datasets.prompts import fill_templates
from taskres_cache.encoders.backbone import Backbone, TextFeatures
from taskres_cache.encoders.decoding import Decoding, WantedImage, decoded_batches
from taskres_cache.encoders.encoding import (
    BLOCK_ROWS,
    Block,
    EncodedBlock,
    Seconds,
    encoded_blocks,
    in_blocks,
    lane_count,
    lanes,
)
from taskres_cache.encoders.views import CENTER
from taskres_cache.errors import TaskresError, WeightsError
from taskres_cache.extraction.blocks import BlockFolder, read_rows
from taskres_cache.extraction.known_rows import Already, KnownRows, Rendering
from taskres_cache.system.devices import available_cores
from taskres_cache.system.progress import Progress

PROMPTS_PER_BLOCK = 64


@dataclass(frozen=True)
class Gathered:
    """What a rank did of its share of the missing images.

    Parameters
    ----------
    images, views : center renderings and augmented views that were encoded.
    unreadable : path -> why an image could not be read.
    seconds : where the time went.
    failure : why the share was not finished; None when it was.
    """

    images: int = 0
    views: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    seconds: Seconds = field(default_factory=Seconds)
    failure: TaskresError | None = None


@dataclass(frozen=True)
class Encoder:
    """How missing images become rows of blocks.

    Parameters
    ----------
    source : where images come from.
    backbone : the frozen encoder.
    blocks : where rows go.
    views_seed : of augmented views.
    batch_size : renderings a batch; None is 16 for each core of a processor, and what fits on a graphics card.
    workers : decoding processes; None is one a core, which leave a processor that encodes as well to the encoder.
    """

    source: ImageSource
    backbone: Backbone
    blocks: BlockFolder
    views_seed: int
    batch_size: int | None = None
    workers: int | None = None


def missing_blocks(wanted: Mapping[str, Sequence[Rendering]], known: KnownRows, rows: int) -> list[Block]:
    """Return what is missing of the images, `wanted` by path, in blocks of up to so many renderings.

    A block of which all is missing is what it was in the first run: its batches are the same, and so are the bits.
    """
    whole = [WantedImage(path, tuple(one.view for one in renderings)) for path, renderings in wanted.items()]
    lacking = {
        path: WantedImage(path, tuple(one.view for one in renderings if one not in known))
        for path, renderings in wanted.items()
    }
    untouched = [block for block in in_blocks(whole, rows) if all(lacking[image.path] == image for image in block)]
    inside = {image.path for block in untouched for image in block}
    others = [image for image in lacking.values() if image.views and image.path not in inside]
    return [*untouched, *in_blocks(others, rows)]


def encode_missing(share: Sequence[Block], stamps: Mapping[str, str], encoder: Encoder, progress: Progress) -> Gathered:
    """Encode some blocks of images and keep each; what goes wrong is part of what is returned.

    Parameters
    ----------
    share : of the missing images.
    stamps : by path; a path with another stamp is another image.
    encoder : how to go about it.
    progress : told of every block.
    """
    done = Gathered()
    try:
        if share:
            encoder.blocks.prepare()
        with _encoded_share(share, encoder) as encoded:
            for block in encoded:
                seconds = _keep(block, stamps, encoder)
                done = _added(done, block, seconds)
                progress.advance(len(block.images) + len(block.unreadable))
    except TaskresError as error:
        return replace(done, failure=error)
    return done


@contextmanager
def _encoded_share(share: Sequence[Block], encoder: Encoder) -> Iterator[Iterator[EncodedBlock]]:
    """Yield an iterator over blocks that are decoded and encoded side by side."""
    if not share:
        yield iter(())
        return
    backbone = encoder.backbone
    size = encoder.batch_size or backbone.batch_that_fits(BLOCK_ROWS, lane_count(backbone))
    workers = available_cores() if encoder.workers is None else encoder.workers
    on_cpu = backbone.device.type == "cpu"
    how = Decoding(encoder.source, backbone.framing, encoder.views_seed, workers, polite=on_cpu)
    batches = [in_blocks(block, size) for block in share]
    with decoded_batches([batch for block in batches for batch in block], how) as decoded, lanes(backbone) as threads:
        yield encoded_blocks(batches, decoded, threads, backbone, size)


def _keep(block: EncodedBlock, stamps: Mapping[str, str], encoder: Encoder) -> float:
    """Write a block's rows; return the seconds that took."""
    started = perf_counter()
    renderings = [Rendering(image.path, stamps[image.path], view) for image in block.images for view in image.views]
    with np.errstate(over="ignore"):
        features = block.image_features.astype(storage_dtype(encoder.backbone.precision))
    _refuse_unusable([rendering.path for rendering in renderings], features, encoder.backbone)
    if renderings:
        encoder.blocks.write([rendering.key(encoder.views_seed) for rendering in renderings], features)
    return perf_counter() - started


def _added(done: Gathered, block: EncodedBlock, seconds: float) -> Gathered:
    """Return what has been done with one more block."""
    centers = sum(CENTER in image.views for image in block.images)
    return Gathered(
        images=done.images + centers,
        views=done.views + len(block.image_features) - centers,
        unreadable=done.unreadable | block.unreadable,
        seconds=done.seconds + block.seconds + Seconds(write=seconds),
    )


def gather_text(
    templates: Sequence[str], classnames: Sequence[str], backbone: Backbone, already: Already, progress: Progress
) -> TextBases:
    """Return the text bases; blocks keep what the projection is fed, and the embeddings follow from it."""
    form = already.made_from.classnames_form
    prompts = fill_templates(templates, classnames, form)
    wanted = list(dict.fromkeys(prompt for row in prompts for prompt in row))
    blocks = already.text_blocks()
    places = blocks.places()
    known = dict(zip(places, read_rows(list(places.values())), strict=True)) | _known_prompts(already.existing, form)
    missing = [prompt for prompt in wanted if prompt not in known]
    progress.begin(f"prompts of {already.made_from.dataset}", len(wanted), len(wanted) - len(missing))
    for start in range(0, len(missing), PROMPTS_PER_BLOCK):
        batch = missing[start : start + PROMPTS_PER_BLOCK]
        outputs = _tower_output(backbone.encode_texts(batch))
        blocks.write(batch, outputs)
        known.update(zip(batch, outputs, strict=True))
        progress.advance(len(batch))
    outputs = np.stack([np.stack([known[prompt] for prompt in row]) for row in prompts])  # (C, T, W), or (C, T, D)
    projection = backbone.projection
    if projection is None:
        return TextBases(tuple(templates), outputs)
    return TextBases(tuple(templates), outputs @ projection, outputs, projection)


def _refuse_unusable(paths: Sequence[str], features: np.ndarray, backbone: Backbone) -> None:
    """Raise WeightsError naming the first image whose feature is NaN or infinite, as in too low a precision."""
    finite = np.isfinite(features).all(axis=-1)
    if not finite.all():
        raise WeightsError(
            f"{backbone.name} ({backbone.pretrained}) makes NaN or infinite of {paths[int(np.argmin(finite))]} "
            f"in precision {backbone.precision}; use --precision fp32, or other weights"
        )


def storage_dtype(precision: str) -> type[np.floating]:
    """Return what features are stored as: float32 where the encoder computed in it, else float16."""
    return np.float32 if precision == "fp32" else np.float16


def _known_prompts(existing: FeatureCache | None, form: str) -> dict[str, np.ndarray]:
    """Return prompt -> what the text tower made of it, from a cache."""
    if existing is None:
        return {}
    outputs = _tower_output(existing.text_bases())
    prompts = fill_templates(existing.templates, existing.classnames, form)
    return {prompt: outputs[c, t] for c, row in enumerate(prompts) for t, prompt in enumerate(row)}


def _tower_output(text: TextFeatures | TextBases) -> np.ndarray:
    """Return what the projection is fed, or the embeddings of towers that have none."""
    return text.embeddings if text.pre_projection is None else text.pre_projection
