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
from taskres_cache.errors import OptionError, TaskresError, WeightsError
from taskres_cache.extraction.blocks import BlockFolder, read_rows
from taskres_cache.extraction.known_rows import EarlierWork, Rendering
from taskres_cache.system.progress import Progress

PROMPTS_PER_BLOCK = 64
ROWS_AT_ONCE = 4096  # of finished blocks


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
    prompts = fill_templates(dataset.templates, dataset.names_in_prompts, earlier.provenance.classnames_form)
    flat = tower_outputs([prompt for row in prompts for prompt in row], dataset.name, backbone, earlier, progress)
    outputs = flat.reshape(len(prompts), len(dataset.templates), -1)  # (C, T, W), or (C, T, D)
    projection = backbone.projection
    if projection is None:
        return TextBases(dataset.templates, outputs)
    return TextBases(dataset.templates, outputs @ projection, outputs, projection)


def encode_descriptions(
    dataset: Dataset, backbone: Backbone, earlier: EarlierWork, progress: Progress
) -> PromptSet | None:
    """Return the text features of a data set's own prompts; None for one of templates alone."""
    prompts = dataset.sentences(earlier.provenance.classnames_form)
    if prompts is None:
        return None
    return encode_prompt_set(*flat_prompts(prompts, dataset.classnames), dataset.name, backbone, earlier, progress)


def encode_prompt_set(
    texts: Sequence[str], labels: np.ndarray, name: str, backbone: Backbone, earlier: EarlierWork, progress: Progress
) -> PromptSet:
    """Return the text features of complete sentences (P,) with their classes (P,)."""
    outputs, projection = tower_outputs(texts, name, backbone, earlier, progress), backbone.projection
    if projection is None:
        return PromptSet(tuple(texts), labels, outputs)
    return PromptSet(tuple(texts), labels, outputs @ projection, outputs)


def flat_prompts(prompts: Sequence[Sequence[str]], classnames: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Return all prompts (P,) and their classes (P,), int64, with duplicates within a class once.

    Raises
    ------
    OptionError
        A class has no prompt or an empty one, or there are prompts for another number of classes.
    """
    if len(prompts) != len(classnames):
        raise OptionError(f"prompts of {len(prompts)} classes, expected those of the cache's {len(classnames)} classes")
    unique = [tuple(dict.fromkeys(of_class)) for of_class in prompts]
    for classname, of_class in zip(classnames, unique, strict=True):
        if not of_class or not all(text.strip() for text in of_class):
            raise OptionError(
                f"class {classname!r} has no prompt or an empty one; give at least one sentence per class"
            )
    labels = np.repeat(np.arange(len(unique)), [len(of_class) for of_class in unique])
    return tuple(text for of_class in unique for text in of_class), labels


def is_same_set(one: PromptSet, texts: tuple[str, ...], labels: np.ndarray) -> bool:
    """Return True if a set has exactly these prompts."""
    return one.texts == texts and np.array_equal(one.labels, labels)


def tower_outputs(
    prompts: Sequence[str], name: str, backbone: Backbone, earlier: EarlierWork, progress: Progress
) -> np.ndarray:
    """Return the outputs of the text tower (P, W): inputs of its projection, or the embeddings (P, D) without one.

    Only prompts that neither the cache nor finished blocks have are encoded. Each block is written when it is done and
    not kept in memory. Blocks are the same in a call that continues a killed one: so are their batches, and the bits.
    """
    wanted, cached = list(dict.fromkeys(prompts)), _cached_prompts(earlier.cache)
    missing = [prompt for prompt in wanted if prompt not in cached]
    blocks = earlier.text_blocks()
    finished = blocks.places()
    starts = range(0, len(missing), PROMPTS_PER_BLOCK)
    batches = [missing[start : start + PROMPTS_PER_BLOCK] for start in starts]
    unfinished = [batch for batch in batches if any(prompt not in finished for prompt in batch)]
    if unfinished:
        backbone.refuse_text_not_raw(unfinished[0][:2])
    progress.begin(f"prompts of {name}", len(wanted), len(wanted) - sum(map(len, unfinished)))
    for batch in unfinished:
        blocks.write(batch, _tower_output(backbone.encode_texts(batch)))
        progress.advance(len(batch))
    return _gathered(prompts, cached, earlier)


def storage_dtype(precision: str) -> type[np.floating]:
    """Return the type that features are stored as: float32 if the encoder computed in fp32, else float16."""
    return np.float32 if precision == "fp32" else np.float16


def _cached_prompts(cache: FeatureCache | None) -> dict[str, str]:
    """Return prompt -> a set of a cache that has it."""
    sets = {name: cache.text(name).texts for name in cache.prompt_sets} if cache else {}
    return {text: name for name, texts in sets.items() for text in texts}


def _gathered(prompts: Sequence[str], cached: Mapping[str, str], earlier: EarlierWork) -> np.ndarray:
    """Return the rows (P, W) of prompts that are in sets of the cache or in blocks, with few others in memory."""
    places = earlier.text_blocks().places()
    by_source: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        by_source.setdefault(cached.get(prompt, ""), []).append(row)
    outputs: np.ndarray | None = None
    for source, rows in by_source.items():
        step = ROWS_AT_ONCE if source == "" else len(rows)
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            if earlier.cache is not None and source:
                read = _rows_of_set(earlier.cache, source, [prompts[row] for row in some])
            else:
                read = read_rows([places[prompts[row]] for row in some])
            outputs = np.empty((len(prompts), read.shape[1]), np.float32) if outputs is None else outputs
            outputs[some] = read
    assert outputs is not None  # every data set has prompts
    return outputs


def _rows_of_set(cache: FeatureCache, name: str, prompts: Sequence[str]) -> np.ndarray:
    """Return the tower's outputs of some prompts of a set of a cache."""
    stored = cache.text(name)
    row_of = {text: row for row, text in enumerate(stored.texts)}
    return _tower_output(stored)[[row_of[prompt] for prompt in prompts]]


def _tower_output(text: TextFeatures | PromptSet) -> np.ndarray:
    """Return the inputs of the text projection, or the embeddings if there is no projection."""
    return text.embeddings if text.pre_projection is None else text.pre_projection
