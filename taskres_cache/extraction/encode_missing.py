"""Encoding the images and prompts that neither the existing cache nor a killed run has encoded.

Axes: C classes, T templates, D embedding, W width of the text tower.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter

import numpy as np

from taskres_cache.caches.contents import PromptSet, TextBases
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
from taskres_cache.extraction.known_rows import EarlierWork, Rendering
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
    folder, inputs_folder : BlockFolder
        Where image features and the inputs of the image projection are written.
    pre_projection : {"none", "images", "all"}
        Of which renderings the inputs are written.
    options : EncodingOptions
        Batch size and decoding processes.
    """

    source: ImageSource
    stamps: Mapping[str, str]
    backbone: Backbone
    folder: BlockFolder
    inputs_folder: BlockFolder
    pre_projection: str
    options: EncodingOptions

    def encode(self, share: Sequence[Block], progress: Progress) -> EncodedShare:
        """Encode blocks of images and write each; errors are returned, not raised."""
        done = EncodedShare()
        try:
            if share:
                self.folder.prepare()
            with encoded(share, self.source, self.backbone, self.options) as blocks:
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
        features = self._as_stored(block.image_features, renderings)
        self.backbone.refuse_unit_length(features, "image")
        if renderings:
            self._write_inputs(block, renderings)  # first, so that a row whose feature is there has its input
            self.folder.write([rendering.key for rendering in renderings], features)
        return perf_counter() - started

    def _write_inputs(self, block: EncodedBlock, renderings: Sequence[Rendering]) -> None:
        """Write the inputs of the image projection of the renderings for which they are wanted."""
        numbers = [number for number, one in enumerate(renderings) if wants_input(one, self.pre_projection)]
        if numbers and block.pre_projection is not None:
            chosen = [renderings[number] for number in numbers]
            inputs = self._as_stored(block.pre_projection[numbers], chosen)
            self.inputs_folder.write([rendering.key for rendering in chosen], inputs)

    def _as_stored(self, features: np.ndarray, renderings: Sequence[Rendering]) -> np.ndarray:
        """Return rows in the stored type; raises WeightsError naming the first image with a NaN or infinite value."""
        with np.errstate(over="ignore"):
            stored: np.ndarray = features.astype(storage_dtype(self.backbone.precision))
        finite = np.isfinite(stored).all(axis=-1)
        if not finite.all():
            raise WeightsError(
                f"{self.backbone.name} ({self.backbone.pretrained}) computes NaN or infinite features for "
                f"{renderings[int(np.argmin(finite))].path} in precision {self.backbone.precision}; use --precision "
                "fp32, or other weights"
            )
        return stored


def wants_input(rendering: Rendering, pre_projection: str) -> bool:
    """Return True if the input of the image projection is stored for a rendering."""
    return pre_projection == "all" or (pre_projection == "images" and rendering.view == CENTER)


def missing_blocks(
    wanted: Mapping[str, Sequence[Rendering]], is_known: Callable[[Rendering], bool], rows: int
) -> list[Block]:
    """Return the missing renderings of the images in `wanted` (by path), in blocks of up to `rows` renderings.

    A block of which everything is missing is the same as in the first run: so are its batches, and so are the bits.
    """
    whole = [WantedImage(path, tuple(one.view for one in renderings)) for path, renderings in wanted.items()]
    missing = {
        path: WantedImage(path, tuple(one.view for one in renderings if not is_known(one)))
        for path, renderings in wanted.items()
    }
    untouched = [block for block in in_blocks(whole, rows) if all(missing[image.path] == image for image in block)]
    inside = {image.path for block in untouched for image in block}
    others = [image for image in missing.values() if image.views and image.path not in inside]
    return [*untouched, *in_blocks(others, rows)]


def encode_prompts(dataset: Dataset, backbone: Backbone, earlier: EarlierWork, progress: Progress) -> TextBases:
    """Return the text features of all prompts of a data set: its templates, filled with class names."""
    prompts = fill_templates(dataset.templates, dataset.classnames, earlier.provenance.classnames_form)
    known = tower_outputs([prompt for row in prompts for prompt in row], dataset.name, backbone, earlier, progress)
    outputs = np.stack([np.stack([known[prompt] for prompt in row]) for row in prompts])  # (C, T, W), or (C, T, D)
    projection = backbone.projection
    if projection is None:
        return TextBases(dataset.templates, outputs)
    return TextBases(dataset.templates, outputs @ projection, outputs, projection)


def tower_outputs(
    prompts: Sequence[str], name: str, backbone: Backbone, earlier: EarlierWork, progress: Progress
) -> dict[str, np.ndarray]:
    """Return prompt -> output of the text tower: the input of its projection, or the embedding without one.

    Only prompts that neither the cache nor finished blocks have are encoded.
    """
    wanted = list(dict.fromkeys(prompts))
    blocks = earlier.text_blocks()
    places = blocks.places()
    known = dict(zip(places, read_rows(list(places.values())), strict=True)) | _known_prompts(earlier.cache)
    missing = [prompt for prompt in wanted if prompt not in known]
    if missing:
        backbone.refuse_text_not_raw(missing[:2])
    progress.begin(f"prompts of {name}", len(wanted), len(wanted) - len(missing))
    for start in range(0, len(missing), PROMPTS_PER_BLOCK):
        batch = missing[start : start + PROMPTS_PER_BLOCK]
        outputs = _tower_output(backbone.encode_texts(batch))
        blocks.write(batch, outputs)
        known.update(zip(batch, outputs, strict=True))
        progress.advance(len(batch))
    return known


def storage_dtype(precision: str) -> type[np.floating]:
    """Return the type that features are stored as: float32 if the encoder computed in fp32, else float16."""
    return np.float32 if precision == "fp32" else np.float16


def _known_prompts(cache: FeatureCache | None) -> dict[str, np.ndarray]:
    """Return prompt -> output of the text tower, from all sets of prompts of a cache."""
    sets = [cache.text(name) for name in cache.prompt_sets] if cache else []
    return {text: row for one in sets for text, row in zip(one.texts, _tower_output(one), strict=True)}


def _tower_output(text: TextFeatures | PromptSet) -> np.ndarray:
    """Return the inputs of the text projection, or the embeddings if there is no projection."""
    return text.embeddings if text.pre_projection is None else text.pre_projection
