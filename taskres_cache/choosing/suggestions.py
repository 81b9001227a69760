"""Which images of a folder to label next, with a run's encoder and classifier, or with a model alone.

Axes: N images, M images of the cache, C classes, D embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.choosing.label_order import coverage_order, nearest_chosen, uncertainty_weights, without_nearly_equal
from taskres_cache.datasets.images import ON_WHITE
from taskres_cache.datasets.named_files import NamedFiles
from taskres_cache.encoders.backbone import Backbone
from taskres_cache.encoders.encoding import EncodedBlock, EncodingOptions, encoded_images
from taskres_cache.errors import OptionError, UnreadableImagesError
from taskres_cache.runs.classifier import Classifier
from taskres_cache.system.progress import Progress


@dataclass(frozen=True)
class Suggestion:
    """An image to label.

    Parameters
    ----------
    path : str
        The image.
    score : float
        By how much its label reduces the mean weighted distance of the images to their nearest labelled one.
    reason : str
        Why it was chosen.
    predicted : str
        Class that the run predicts; empty without a run.
    """

    path: str
    score: float
    reason: str
    predicted: str = ""


@dataclass(frozen=True)
class Suggestions:
    """Images to label, the most helpful first.

    Parameters
    ----------
    images : tuple of Suggestion
        The images.
    labelled : int
        Images of the folder that were left out because the cache has their label, or that of an equal image.
    unreadable : dict of str to str
        Path -> reason, of images that could not be read or encoded.
    """

    images: tuple[Suggestion, ...]
    labelled: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Known:
    """What a run knows.

    Parameters
    ----------
    classifier : Classifier
        The run's classifier.
    cache : FeatureCache
        Its cache: all of its images have labels.
    """

    classifier: Classifier
    cache: FeatureCache

    @property
    def training_rows(self) -> np.ndarray:
        """Rows of the images that the classifier was fitted on."""
        return self.cache.split(self.classifier.shots, self.classifier.seed).train


def suggest(
    paths: Sequence[str],
    count: int,
    backbone: Backbone,
    known: Known | None = None,
    options: EncodingOptions | None = None,
    progress: Progress | None = None,
) -> Suggestions:
    """Return the images whose labels help most, in that order.

    Parameters
    ----------
    paths : sequence of str
        Image files.
    count : int
        At most that many.
    backbone : Backbone
        The encoder; that of the run if there is one, from `load_encoder`.
    known : Known, optional
        The run and its cache. None before anything has a label.
    options : EncodingOptions, optional
        Batch size and decoding processes.
    progress : Progress, optional
        Called after each block of images. Defaults to a progress bar on a terminal or in a notebook.

    Raises
    ------
    OptionError
        `count` is not positive.
    UnreadableImagesError
        No image could be read.
    """
    if count < 1:
        raise OptionError(f"the number of images must be positive, got {count}")
    orientation = ON_WHITE if known is None else known.classifier.provenance.preprocess.get("orientation", "exif")
    source = NamedFiles(Path(), orientation)
    named = dict.fromkeys(paths)
    stamps: frozenset[str] = frozenset() if known is None else _stamps(known.cache)
    fresh = [path for path in named if source.stamp(path) not in stamps]
    if not fresh:
        return Suggestions((), len(named))
    block = encoded_images("images", fresh, source, backbone, options or EncodingOptions(), progress)
    if not block.images:
        raise UnreadableImagesError(block.unreadable)
    if not np.isfinite(block.image_features).all():
        raise OptionError("some image features are NaN or infinite; try --precision fp32")
    kept = np.arange(len(block.images)) if known is None else _unlike(block.image_features, known.cache)
    chosen = _chosen(block, kept, count, known)
    return Suggestions(chosen, len(named) - len(block.unreadable) - len(kept), block.unreadable)


def _stamps(cache: FeatureCache) -> frozenset[str]:
    return frozenset(stamp for _, stamp in cache.files()) - {"unknown"}


def _unlike(features: np.ndarray, cache: FeatureCache) -> np.ndarray:
    """Return the rows of images that are not nearly equal to an image of the cache: copies have other stamps."""
    return without_nearly_equal(features, cache.image_features(np.arange(len(cache.labels))))


def _chosen(block: EncodedBlock, kept: np.ndarray, count: int, known: Known | None) -> tuple[Suggestion, ...]:
    """Return the best of the images in the rows `kept`."""
    if not len(kept):
        return ()
    features, weights, names = block.image_features[kept], None, None
    labelled, margins = features[:0], None
    if known is not None:
        labelled = known.cache.image_features(known.training_rows)
        probabilities = _probabilities(block, kept, known.classifier)
        names = [known.classifier.classnames[row] for row in probabilities.argmax(axis=1)]
        weights = uncertainty_weights(probabilities, len(labelled))
        margins = weights if weights is None else 1 - weights
    order = coverage_order(features, count, labelled, weights)
    similar = np.bincount(nearest_chosen(features, order.rows), minlength=len(order.rows)) - 1
    return tuple(
        Suggestion(
            path=block.images[kept[row]].path,
            score=float(gain),
            reason=_reason(int(others), None if margins is None else float(margins[row])),
            predicted="" if names is None else names[row],
        )
        for row, gain, others in zip(order.rows.tolist(), order.gains, similar, strict=True)
    )


def _probabilities(block: EncodedBlock, kept: np.ndarray, classifier: Classifier) -> np.ndarray:
    """Return the probabilities (N, C) of some images of a block."""
    inputs = block.image_features if classifier.head.input == "features" else block.pre_projection
    assert inputs is not None  # `load_encoder` refuses another encoder than the run's
    probabilities: np.ndarray = classifier.head.probabilities(torch.from_numpy(inputs[kept])).numpy()
    return probabilities


def _reason(others: int, margin: float | None) -> str:
    images = f"nearest to {others} other image{'' if others == 1 else 's'}"
    return images if margin is None else f"{images}, margin {margin:.2f}"
