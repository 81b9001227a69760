"""A fitted run's classifier on new images: its own encoder, its own preprocessing, calibrated probabilities.

Axes: N images, B images of a block, C classes, K best of them, D embedding.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from taskres_cache.caches.provenance import Provenance
from taskres_cache.datasets.named_files import NamedFiles
from taskres_cache.encoders.backbone import Backbone
from taskres_cache.encoders.decoding import Decoding, WantedImage, decoded_batches
from taskres_cache.encoders.encoding import BLOCK_ROWS, EncodedBlock, encoded_blocks, in_blocks, lane_count, lanes
from taskres_cache.encoders.views import CENTER
from taskres_cache.errors import OptionError
from taskres_cache.heads import Head
from taskres_cache.runs.run import Classifier
from taskres_cache.system.devices import available_cores
from taskres_cache.system.progress import Progress, default_progress

OVERFLOW = "its features are NaN or infinite, as in too low a precision; try --precision fp32"


@dataclass(frozen=True)
class PredictOptions:
    """How images are predicted.

    Parameters
    ----------
    top_k : classes to tell of each image, best first; all of them where there are fewer.
    batch_size : images a batch; None is 16 for each core of a processor, and what fits on a graphics card.
    workers : decoding processes; None is one a core, and none for images that make a single batch.

    Raises
    ------
    OptionError : a value that cannot be used.
    """

    top_k: int = 5
    batch_size: int | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise OptionError(f"top-k must be positive, got {self.top_k}")
        if self.batch_size is not None and self.batch_size < 1:
            raise OptionError(f"batch-size must be positive, got {self.batch_size}")
        if self.workers is not None and self.workers < 0:
            raise OptionError(f"workers must not be negative, got {self.workers}")


class Prediction(NamedTuple):
    """An image's best classes, best first, with their calibrated probabilities from 0 to 1."""

    path: str
    classnames: tuple[str, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class PredictedImages:
    """What a classifier says of images; nothing of the images themselves.

    Parameters
    ----------
    classnames : (C,) of the classifier.
    paths : (N,) of the images that could be read, in the order in which they were asked for.
    classes : (N, K) int32 rows of the classifier, best first.
    probabilities : (N, K) float32 from 0 to 1, calibrated.
    unreadable : path -> why an image could not be read.
    """

    classnames: tuple[str, ...]
    paths: tuple[str, ...]
    classes: np.ndarray
    probabilities: np.ndarray
    unreadable: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Prediction]:
        """Yield each image's prediction; of a probability the shortest decimal that float32 reads back."""
        for path, classes, shares in zip(self.paths, self.classes, self.probabilities, strict=True):
            names = tuple(self.classnames[row] for row in classes.tolist())
            yield Prediction(path, names, tuple(float(str(share)) for share in shares))

    def counts(self) -> list[tuple[str, int]]:
        """Return each class with how many images it is the best for, the most first; classes without any left out."""
        counts = np.bincount(self.classes[:, 0], minlength=len(self.classnames))
        ranks = np.argsort(-counts, kind="stable")
        return [(self.classnames[row], int(counts[row])) for row in ranks.tolist() if counts[row]]


def predict_images(
    paths: Sequence[str],
    classifier: Classifier,
    backbone: Backbone,
    options: PredictOptions | None = None,
    progress: Progress | None = None,
) -> PredictedImages:
    """Return the best classes of image files, each file once; those that cannot be read are told with the reason.

    Parameters
    ----------
    paths : of the files.
    classifier : of a run.
    backbone : the run's own, of `load_encoder`.
    options : how to go about it.
    progress : told of every block.

    Raises
    ------
    DecodingError : a decoding process died, as of too little memory.
    """
    options = options or PredictOptions()
    images = [WantedImage(path, (CENTER,)) for path in dict.fromkeys(paths)]
    asked = _Asked.of(classifier, options.top_k)
    parts = []
    with (
        default_progress() if progress is None else nullcontext(progress) as shown,
        _encoded(images, classifier.provenance, backbone, options) as blocks,
    ):
        shown.begin("images", len(images), 0)
        for block in blocks:
            parts.append(asked.about(block))
            shown.advance(len(block.images) + len(block.unreadable))
    return asked.joined(parts)


@contextmanager
def _encoded(
    images: Sequence[WantedImage], source: Provenance, backbone: Backbone, options: PredictOptions
) -> Iterator[Iterator[EncodedBlock]]:
    """Yield an iterator over blocks of images that are decoded and encoded side by side, as stage one does."""
    size = options.batch_size or backbone.batch_that_fits(BLOCK_ROWS, lane_count(backbone))
    blocks = [in_blocks(block, size) for block in in_blocks(images, BLOCK_ROWS)]
    batches = [batch for block in blocks for batch in block]
    fitting = available_cores() if len(batches) > 1 else 0  # a process takes longer to start than a batch to decode
    workers = fitting if options.workers is None else options.workers
    files = NamedFiles(Path(), source.preprocess.get("orientation", "exif"))
    how = Decoding(files, backbone.framing, 0, workers, polite=backbone.device.type == "cpu")
    with decoded_batches(batches, how) as decoded, lanes(backbone) as threads:
        yield encoded_blocks(blocks, decoded, threads, backbone, size)


@dataclass(frozen=True)
class _Asked:
    """A classifier that is asked for the K best classes of one block of images after the other.

    That is done on the processor, beside the encoder: a block's product with the classifier is next to nothing.
    """

    classnames: tuple[str, ...]
    head: Head
    best: int

    @classmethod
    def of(cls, classifier: Classifier, top_k: int) -> "_Asked":
        """Return a run's classifier, which tells no more classes than it has."""
        names = classifier.classnames
        return cls(names, classifier.head, min(top_k, len(names)))

    def about(self, block: EncodedBlock) -> PredictedImages:
        """Return what the classifier says of a block; of features that mean nothing, that they do."""
        if not block.images:
            return replace(self.joined([]), unreadable=block.unreadable)
        classes, shares = self._best_of(block.image_features)
        usable = np.isfinite(shares).all(axis=-1)  # (B,) a single value that overflows makes every probability NaN
        paths = np.array([image.path for image in block.images], object)
        unreadable = block.unreadable | dict.fromkeys(paths[~usable].tolist(), OVERFLOW)
        return PredictedImages(self.classnames, tuple(paths[usable]), classes[usable], shares[usable], unreadable)

    def joined(self, parts: Sequence[PredictedImages]) -> PredictedImages:
        """Return what was said of several blocks as one."""
        return PredictedImages(
            classnames=self.classnames,
            paths=tuple(path for part in parts for path in part.paths),
            classes=np.concatenate([np.empty((0, self.best), np.int32), *(part.classes for part in parts)]),
            probabilities=np.concatenate(
                [np.empty((0, self.best), np.float32), *(part.probabilities for part in parts)]
            ),
            unreadable={path: reason for part in parts for path, reason in part.unreadable.items()},
        )

    def _best_of(self, image_features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return rows (B, K) and probabilities (B, K) of the best classes for un-normalised features (B, D)."""
        shares = self.head.probabilities(torch.from_numpy(image_features))  # (B, C)
        best = shares.topk(self.best)
        return best.indices.int().numpy(), best.values.numpy()
