"""Encoding the images and prompts that neither the existing cache nor a killed run has encoded.

Axes: C classes, T templates, D embedding, W width of the text tower.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter

import numpy as np

from taskres_cache.caches.contents import TextBases
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.datasets import Dataset
from taskres_cache.datasets.images import ImageSource
from taskres_cache.datasets.prompts import fill_templates
from taskres_cache.encoders.backbone import Backbone, TextFeatures
from taskres_cache.encoders.decoding import WantedImage
from taskres_cache.encoders.encoding import Block, EncodedBlock, EncodingOptions, Seconds, encoded, in_blocks
from taskres_cache.encoders.views import CENTER
from taskres_cache.errors import TaskresError, WeightsError
from taskres_cache.extraction.blocks import BlockFolder, read_rows
from taskres_cache.extraction.known_rows import EarlierWork, KnownRows, Rendering
from taskres_cache.system.progress import Progress

PROMPTS_PER_BLOCK = 64


@dataclass(frozen=True)
class EncodedShare:
    """What one rank has encoded of its share of the missing images.

    Parameters
    ----------
    images, views : int
        Center renderings and augmented views that were encoded.
    unreadable : dict of str to str
        Path -> reason, of the images that could not be read.
    seconds : Seconds
        Where the time went.
    failure : TaskresError or None
        Why the share is incomplete.
    """

    images: int = 0
    views: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    seconds: Seconds = field(default_factory=Seconds)
    failure: TaskresError | None = None

    def with_block(self, block: EncodedBlock, seconds: float) -> "EncodedShare":
        """Return the share with one more block, which took `seconds` to write."""
        centers = sum(CENTER in image.views for image in block.images)
        return EncodedShare(
            images=self.images + centers,
            views=self.views + len(block.image_features) - centers,
            unreadable=self.unreadable | block.unreadable,
            seconds=self.seconds + block.seconds + Seconds(write=seconds),
        )


@dataclass(frozen=True)
class ImageEncoding:
    """Encoding images into blocks on disk.

    Parameters
    ----------
    source : ImageSource
        Reads the images.
    stamps : mapping of str to str
        Path -> version of the file; a row counts for this version only.
    backbone : Backbone
        The frozen encoder.
    folder : BlockFolder
        Where the rows are written.
    views_seed : int
        Seed of the augmented views.
    options : EncodingOptions
        Batch size and decoding processes.
    """

    source: ImageSource
    stamps: Mapping[str, str]
    backbone: Backbone
    folder: BlockFolder
    views_seed: int
    options: EncodingOptions

    def encode(self, share: Sequence[Block], progress: Progress) -> EncodedShare:
        """Encode blocks of images and write each; errors are returned, not raised."""
        done = EncodedShare()
        try:
            if share:
                self.folder.prepare()
            with encoded(share, self.source, self.backbone, self.options, self.views_seed) as blocks:
                for block in blocks:
                    done = done.with_block(block, self._write(block))
                    progress.advance(len(block.images) + len(block.unreadable))
        except TaskresError as error:
            return replace(done, failure=error)
        return done

    def _write(self, block: EncodedBlock) -> float:
        """Write a block's rows; return the seconds that took."""
        started = perf_counter()
        renderings = [
            Rendering(image.path, self.stamps[image.path], view) for image in block.images for view in image.views
        ]
        with np.errstate(over="ignore"):
            features = block.image_features.astype(storage_dtype(self.backbone.precision))
        self._refuse_overflow([rendering.path for rendering in renderings], features)
        self.backbone.refuse_unit_length(features, "image")
        if renderings:
            self.folder.write([rendering.key(self.views_seed) for rendering in renderings], features)
        return perf_counter() - started

    def _refuse_overflow(self, paths: Sequence[str], features: np.ndarray) -> None:
        """Raise WeightsError naming the first image whose feature is NaN or infinite."""
        finite = np.isfinite(features).all(axis=-1)
        if not finite.all():
            raise WeightsError(
                f"{self.backbone.name} ({self.backbone.pretrained}) computes NaN or infinite features for "
                f"{paths[int(np.argmin(finite))]} in precision {self.backbone.precision}; use --precision fp32, or "
                "other weights"
            )


def missing_blocks(wanted: Mapping[str, Sequence[Rendering]], known: KnownRows, rows: int) -> list[Block]:
    """Return the missing renderings of the images in `wanted` (by path), in blocks of up to `rows` renderings.

    A block of which everything is missing is the same as in the first run: so are its batches, and so are the bits.
    """
    whole = [WantedImage(path, tuple(one.view for one in renderings)) for path, renderings in wanted.items()]
    missing = {
        path: WantedImage(path, tuple(one.view for one in renderings if one not in known))
        for path, renderings in wanted.items()
    }
    untouched = [block for block in in_blocks(whole, rows) if all(missing[image.path] == image for image in block)]
    inside = {image.path for block in untouched for image in block}
    others = [image for image in missing.values() if image.views and image.path not in inside]
    return [*untouched, *in_blocks(others, rows)]


def encode_prompts(dataset: Dataset, backbone: Backbone, earlier: EarlierWork, progress: Progress) -> TextBases:
    """Return the text features of all prompts of a data set.

    Blocks store the inputs of the text projection; the embeddings follow from them.
    """
    form = earlier.provenance.classnames_form
    prompts = fill_templates(dataset.templates, dataset.classnames, form)
    wanted = list(dict.fromkeys(prompt for row in prompts for prompt in row))
    blocks = earlier.text_blocks()
    places = blocks.places()
    known = dict(zip(places, read_rows(list(places.values())), strict=True)) | _known_prompts(earlier.cache, form)
    missing = [prompt for prompt in wanted if prompt not in known]
    if missing:
        backbone.refuse_text_not_raw(missing[:2])
    progress.begin(f"prompts of {dataset.name}", len(wanted), len(wanted) - len(missing))
    for start in range(0, len(missing), PROMPTS_PER_BLOCK):
        batch = missing[start : start + PROMPTS_PER_BLOCK]
        outputs = _tower_output(backbone.encode_texts(batch))
        blocks.write(batch, outputs)
        known.update(zip(batch, outputs, strict=True))
        progress.advance(len(batch))
    outputs = np.stack([np.stack([known[prompt] for prompt in row]) for row in prompts])  # (C, T, W), or (C, T, D)
    projection = backbone.projection
    if projection is None:
        return TextBases(dataset.templates, outputs)
    return TextBases(dataset.templates, outputs @ projection, outputs, projection)


def storage_dtype(precision: str) -> type[np.floating]:
    """Return the type that features are stored as: float32 if the encoder computed in fp32, else float16."""
    return np.float32 if precision == "fp32" else np.float16


def _known_prompts(cache: FeatureCache | None, form: str) -> dict[str, np.ndarray]:
    """Return prompt -> output of the text tower, from a cache."""
    if cache is None:
        return {}
    outputs = _tower_output(cache.text_bases())
    prompts = fill_templates(cache.templates, cache.classnames, form)
    return {prompt: outputs[c, t] for c, row in enumerate(prompts) for t, prompt in enumerate(row)}


def _tower_output(text: TextFeatures | TextBases) -> np.ndarray:
    """Return the inputs of the text projection, or the embeddings if there is no projection."""
    return text.embeddings if text.pre_projection is None else text.pre_projection
