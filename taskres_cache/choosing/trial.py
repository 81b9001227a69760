"""Try models on a sample of a user's images, and rank them by cross-validated accuracy.

Axes: N images of the sample, C classes, D embedding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from taskres_cache.choosing.cross_validation import Correct, cross_validated, paired_difference, wilson_interval
from taskres_cache.choosing.sample import Sample
from taskres_cache.datasets import Dataset
from taskres_cache.datasets.prompts import fill_templates
from taskres_cache.encoders.backbone import Backbone
from taskres_cache.encoders.catalogue import has_own_config
from taskres_cache.encoders.encoding import EncodingOptions, encoded_images, lane_count
from taskres_cache.encoders.loading import load_backbone
from taskres_cache.errors import FitError, OptionError, TaskresError, UnreadableImagesError
from taskres_cache.methods.few_shot import Images, Text
from taskres_cache.system.progress import Progress


@dataclass(frozen=True)
class Tried:
    """One model on the sample.

    Parameters
    ----------
    name, pretrained : str
        Model and tag.
    dim : int
        D, the embedding size.
    correct : Correct
        Which images of the sample are classified correctly, of those that could be read (N).
    images_per_second : float
        Of the encoder alone, without decoding.
    unreadable : dict of str to str
        Path -> reason, of images that could not be read: the same for every model.
    """

    name: str
    pretrained: str
    dim: int
    correct: Correct
    images_per_second: float
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """N, the number of images."""
        return len(self.correct.adapted)

    @property
    def accuracy(self) -> float:
        """Cross-validated accuracy in percent."""
        return 100.0 * float(self.correct.adapted.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy, for other images of the same kind."""
        return wilson_interval(int(self.correct.adapted.sum()), self.images)

    @property
    def zero_shot_accuracy(self) -> float:
        """Accuracy of the text features alone, in percent."""
        return 100.0 * float(self.correct.zero_shot.mean())

    def behind(self, best: "Tried") -> tuple[float, float]:
        """Return the accuracy minus that of another model, and half of the 95 % interval of this difference."""
        return paired_difference(self.correct.adapted, best.correct.adapted)


@dataclass(frozen=True)
class Failed:
    """A model that could not be tried, and why."""

    model: str
    reason: str


def try_models(
    models: Sequence[str],
    dataset: Dataset,
    sample: Sample,
    device: str = "auto",
    precision: str = "auto",
    options: EncodingOptions | None = None,
    progress: Progress | None = None,
) -> Iterator[Tried | Failed]:
    """Encode a sample with each model, and yield its cross-validated accuracy. Nothing is written to disk.

    Parameters
    ----------
    models : sequence of str
        `MODEL`, `MODEL:TAG`, `MODEL:FILE`, `hf-hub:OWNER/MODEL` or `local-dir:FOLDER`.
    dataset : Dataset
        Where the sample comes from; its templates make the prompts.
    sample : Sample
        From `stratified_sample`.
    device, precision : str, optional
        See `load_backbone`.
    options : EncodingOptions, optional
        Batch size and decoding processes.
    progress : Progress, optional
        Called after each block of images. Defaults to a progress bar on a terminal or in a notebook.

    Yields
    ------
    Tried or Failed
        One per model, in their order; a model that could not be loaded does not stop the others.
    """
    for model in models:
        try:
            backbone = load_backbone(*named_checkpoint(model), device, precision)
            yield _tried(backbone, dataset, sample, options or EncodingOptions(), progress)
        except TaskresError as error:
            yield Failed(model, error.lines[0])


def ranked(tried: Sequence[Tried]) -> list[Tried]:
    """Return models by accuracy, the best first; of equally accurate ones the faster."""
    return sorted(tried, key=lambda one: (-one.accuracy, -one.images_per_second))


def named_checkpoint(model: str) -> tuple[str, str | None]:
    """Return model and tag or file of `MODEL:TAG`; None if it names no tag.

    Raises
    ------
    OptionError
        The model or the tag is empty.
    """
    if has_own_config(model):
        return model, None
    name, colon, pretrained = model.partition(":")
    if not name or (colon and not pretrained):
        raise OptionError(f"{model!r} names no model; pass MODEL, MODEL:TAG or MODEL:FILE")
    return name, pretrained or None


def _tried(
    backbone: Backbone, dataset: Dataset, sample: Sample, options: EncodingOptions, progress: Progress | None
) -> Tried:
    """Return the result of one model."""
    text, what = _text(backbone, dataset, sample), f"{backbone.name} {backbone.pretrained}"
    block = encoded_images(what, sample.paths, dataset.source, backbone, options, progress)
    if not block.images:
        raise UnreadableImagesError(block.unreadable)
    backbone.refuse_unit_length(block.image_features, "image")
    if not np.isfinite(block.image_features).all():
        raise FitError("some features are NaN or infinite; try --precision fp32")
    labels = dict(zip(sample.paths, sample.labels, strict=True))
    images = Images(block.image_features, np.array([labels[image.path] for image in block.images]))
    correct = cross_validated(images, text, backbone.logit_scale)
    rate = len(images) * lane_count(backbone) / max(block.seconds.encode, 1e-9)
    return Tried(backbone.name, backbone.pretrained, images.image_features.shape[1], correct, rate, block.unreadable)


def _text(backbone: Backbone, dataset: Dataset, sample: Sample) -> Text:
    """Return the text features of the sample's classes."""
    rows = fill_templates(dataset.templates, sample.classnames)  # (C, T)
    backbone.refuse_text_not_raw([row[0] for row in rows[:2]])
    return Text.from_templates(np.stack([backbone.encode_texts(row).embeddings for row in rows]))
