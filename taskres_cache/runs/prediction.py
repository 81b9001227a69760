"""Predictions of a run's classifier for new images, with the run's own encoder and calibrated probabilities.

Axes: N images, B images of a block, C classes, K predicted classes per image, D embedding.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from taskres_cache.datasets.named_files import NamedFiles
from taskres_cache.encoders.backbone import Backbone
from taskres_cache.encoders.decoding import WantedImage
from taskres_cache.encoders.encoding import (
    BLOCK_ROWS,
    EncodedBlock,
    EncodingOptions,
    encoded,
    in_blocks,
    without_needless_workers,
)
from taskres_cache.encoders.views import CENTER
from taskres_cache.errors import OptionError
from taskres_cache.runs.classifier import Classifier
from taskres_cache.runs.several.ensemble import Ensemble
from taskres_cache.system.progress import Progress, default_progress

OVERFLOW = "its features are NaN or infinite; try --precision fp32"


@dataclass(frozen=True)
class PredictOptions(EncodingOptions):
    """How images are predicted. `batch_size` and `workers` are keyword-only.

    Parameters
    ----------
    top_k : int, optional
        Classes per image, most probable first; all classes if there are fewer.
    batch_size : int, optional
        Images per batch. Defaults to 16 per core on a CPU, and to what fits into memory on a GPU.
    workers : int, optional
        Decoding processes. Defaults to one per core, and to none if all images fit into one batch.

    Raises
    ------
    OptionError
        A value is out of range.
    """

    top_k: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k < 1:
            raise OptionError(f"top-k must be positive, got {self.top_k}")


class Prediction(NamedTuple):
    """The top classes of an image, most probable first, with calibrated probabilities from 0 to 1."""

    path: str
    classnames: tuple[str, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class PredictedImages:
    """The predictions for a number of images. Iterating yields one `Prediction` per image.

    Parameters
    ----------
    classnames : tuple of str, C entries
        Class names of the classifier.
    paths : tuple of str, N entries
        Images that could be read, in the order of the request.
    classes : ndarray of shape (N, K), int32
        Indices into `classnames`, most probable first.
    probabilities : ndarray of shape (N, K), float32
        Calibrated probabilities from 0 to 1.
    unreadable : dict of str to str
        Path -> reason, of the images that could not be read.
    """

    classnames: tuple[str, ...]
    paths: tuple[str, ...]
    classes: np.ndarray
    probabilities: np.ndarray
    unreadable: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Prediction]:
        """Yield each image's prediction; probabilities are the shortest decimals that round to the same float32."""
        for path, classes, shares in zip(self.paths, self.classes, self.probabilities, strict=True):
            names = tuple(self.classnames[row] for row in classes.tolist())
            yield Prediction(path, names, tuple(float(str(share)) for share in shares))

    def counts(self) -> list[tuple[str, int]]:
        """Return (class name, images) of the classes predicted for at least one image, most frequent first."""
        counts = np.bincount(self.classes[:, 0], minlength=len(self.classnames))
        ranks = np.argsort(-counts, kind="stable")
        return [(self.classnames[row], int(counts[row])) for row in ranks.tolist() if counts[row]]


def predict_images(
    paths: Sequence[str],
    classifier: Classifier | Ensemble,
    backbone: Backbone,
    options: PredictOptions | None = None,
    progress: Progress | None = None,
) -> PredictedImages:
    """Predict the top classes of image files.

    Parameters
    ----------
    paths : sequence of str
        The image files; a repeated path is predicted once.
    classifier : Classifier or Ensemble
        The classifier of a run, or those of several.
    backbone : Backbone
        The run's own encoder, from `load_encoder`.
    options : PredictOptions, optional
        Number of classes per image, batch size, decoding processes.
    progress : Progress, optional
        Called after each block of images. Defaults to a progress bar on a terminal or in a notebook.

    Returns
    -------
    PredictedImages
        Predictions, and the reasons of the images that could not be read.

    Raises
    ------
    DecodingError
        A decoding process died, for example because it ran out of memory.
    """
    options = options or PredictOptions()
    images = [WantedImage(path, (CENTER,)) for path in dict.fromkeys(paths)]
    options = without_needless_workers(options, len(images), backbone)
    source = NamedFiles(Path(), classifier.provenance.preprocess.get("orientation", "exif"))
    predictor = _Predictor.of(classifier, options.top_k)
    parts = []
    with default_progress() if progress is None else nullcontext(progress) as shown:
        shown.begin("images", len(images), 0)
        with encoded(in_blocks(images, BLOCK_ROWS), source, backbone, options) as blocks:
            for block in blocks:
                parts.append(predictor.predicted(block))
                shown.advance(len(block.images) + len(block.unreadable))
    return predictor.joined(parts)


@dataclass(frozen=True)
class _Predictor:
    """Predicts the top K classes of one block of images after the other.

    It computes on the CPU while the encoder goes on: the product of a block with the classifier costs almost nothing.
    """

    classnames: tuple[str, ...]
    ensemble: Ensemble
    top_k: int

    @classmethod
    def of(cls, classifier: Classifier | Ensemble, top_k: int) -> "_Predictor":
        """Return the predictor of a run's classifier; K is at most the number of classes."""
        names = classifier.classnames
        ensemble = classifier if isinstance(classifier, Ensemble) else Ensemble((classifier,))
        return cls(names, ensemble, min(top_k, len(names)))

    def predicted(self, block: EncodedBlock) -> PredictedImages:
        """Return the predictions for a block; images whose features are not finite count as unreadable."""
        if not block.images:
            return replace(self.joined([]), unreadable=block.unreadable)
        classes, shares = self._top_classes(block)
        usable = np.isfinite(shares).all(axis=-1)  # (B,) one overflow makes all of an image's probabilities NaN
        paths = np.array([image.path for image in block.images], object)
        unreadable = block.unreadable | dict.fromkeys(paths[~usable].tolist(), OVERFLOW)
        return PredictedImages(self.classnames, tuple(paths[usable]), classes[usable], shares[usable], unreadable)

    def joined(self, parts: Sequence[PredictedImages]) -> PredictedImages:
        """Return the predictions for several blocks as one."""
        return PredictedImages(
            classnames=self.classnames,
            paths=tuple(path for part in parts for path in part.paths),
            classes=np.concatenate([np.empty((0, self.top_k), np.int32), *(part.classes for part in parts)]),
            probabilities=np.concatenate(
                [np.empty((0, self.top_k), np.float32), *(part.probabilities for part in parts)]
            ),
            unreadable={path: reason for part in parts for path, reason in part.unreadable.items()},
        )

    def _top_classes(self, block: EncodedBlock) -> tuple[np.ndarray, np.ndarray]:
        """Return indices (B, K) and probabilities (B, K) of the top classes of a block."""
        top = self.ensemble.probabilities(block.image_features, block.pre_projection).topk(self.top_k)
        return top.indices.int().numpy(), top.values.numpy()
