"""A classifier with its encoder in memory: pictures in any form in, classes and probabilities out.

Axes: N pictures, C classes, D embedding, I width of the image tower.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

import numpy as np

from taskres_cache.datasets.images import Orientation
from taskres_cache.encoders.backbone import Backbone
from taskres_cache.encoders.encoding import default_batch_size
from taskres_cache.errors import PictureError
from taskres_cache.runs.classifier import Classifier
from taskres_cache.runs.live.batching import Batcher, Encoded, Features
from taskres_cache.runs.live.pictures import Picture, name_of, opened, pictures_in
from taskres_cache.runs.live.predictions import Predictions
from taskres_cache.runs.several.ensemble import Ensemble
from taskres_cache.system.devices import available_cores

OVERFLOW = "its features are NaN or infinite; load the run with precision='fp32'"
AHEAD = 4  # batches that are decoded before their turn, so that an iterator of many pictures needs little memory


class Predictor:
    """Predicts pictures with one encoder in memory; any number of threads may use it at the same time.

    Parameters
    ----------
    classifier : Classifier or Ensemble
        The classifier of a run, or those of several.
    backbone : Backbone
        Its encoder, from `load_encoder`.
    batch_size : int, optional
        Pictures per batch at most.
    """

    def __init__(self, classifier: Classifier | Ensemble, backbone: Backbone, batch_size: int | None = None) -> None:
        self.classifier, self.backbone = classifier, backbone
        self._ensemble = classifier if isinstance(classifier, Ensemble) else Ensemble((classifier,))
        self._size = batch_size or default_batch_size(backbone)
        self._batcher = Batcher(self._encoded, self._size)
        self._decoders: ThreadPoolExecutor | None = None
        self._lock = Lock()
        self._orientation: Orientation = classifier.provenance.preprocess.get("orientation", "exif")

    def predict(self, pictures: Picture | Iterable[Picture], with_features: bool = False) -> Predictions:
        """Predict the classes of one picture or many.

        Parameters
        ----------
        pictures : picture, or iterable of pictures
            Paths, bytes, binary files, PIL images, arrays or tensors (H, W, 3), uint8, in any mixture.
        with_features : bool
            Whether to return the image features as well.

        Returns
        -------
        Predictions
            In the order of the pictures. One of many that cannot be read has an error, no label, and a warning.

        Raises
        ------
        PictureError
            A single picture cannot be read.
        """
        names, found, errors = self._features(pictures)
        shares = np.full((len(names), len(self.classifier.classnames)), np.nan, np.float32)
        rows = [row for row in range(len(names)) if row not in errors]
        if rows:
            shares[rows] = self.probabilities([found[row] for row in rows])
        errors |= {row: OVERFLOW for row in rows if not np.isfinite(shares[row]).all()}
        shares[list(errors)] = np.nan
        features = self._stacked(found, len(names)) if with_features else None
        return Predictions(self.classifier.classnames, names, shares, errors, features)

    def embed(self, pictures: Picture | Iterable[Picture]) -> np.ndarray:
        """Return the un-normalised image features (N, D), float32, of one picture or many.

        Raises
        ------
        PictureError
            A picture cannot be read.
        """
        names, found, errors = self._features(pictures)
        if errors:
            row, reason = next(iter(errors.items()))
            more = f" and {len(errors) - 1} more pictures" if len(errors) > 1 else ""
            raise PictureError(f"{names[row]}: {reason}{more}; leave it out")
        return self._stacked(found, len(names))

    def submit(self, picture: Picture) -> "Future[Features]":
        """Decode a picture in this thread and return its future features; PictureError is raised at once."""
        framed = np.asarray(self.backbone.framing(opened(picture, self._orientation)))
        return self._batcher.submit(framed)

    def probabilities(self, found: Sequence[Features]) -> np.ndarray:
        """Return calibrated probabilities (N, C), float32, of pictures that are encoded; NaN after an overflow."""
        image_features = np.stack([one.image_features for one in found])
        inputs = [one.pre_projection for one in found if one.pre_projection is not None]
        shares: np.ndarray = self._ensemble.probabilities(image_features, np.stack(inputs) if inputs else None).numpy()
        return shares

    def close(self) -> None:
        """End the threads; they start again when needed."""
        self._batcher.close()
        with self._lock:
            if self._decoders is not None:
                self._decoders.shutdown(wait=False)
            self._decoders = None

    def _features(
        self, given: Picture | Iterable[Picture]
    ) -> tuple[tuple[str, ...], dict[int, Features], dict[int, str]]:
        """Return the name of each picture, and by position its features or the reason why it could not be read."""
        pictures, single = pictures_in(given)
        names = tuple(name_of(picture, row) for row, picture in enumerate(pictures))
        found: dict[int, Features] = {}
        errors: dict[int, str] = {}
        for row, future in self._submitted(pictures):
            try:
                found[row] = future.result()
            except PictureError as error:
                errors[row] = str(error)
        if single and errors:
            raise PictureError(f"{names[0]}: {errors[0]}")
        if errors:
            first = next(iter(errors))
            more = f" and {len(errors) - 1} more" if len(errors) > 1 else ""
            warnings.warn(f"could not read {names[first]} ({errors[first]}){more}", stacklevel=4)
        return names, found, errors

    def _submitted(self, pictures: Sequence[Picture]) -> Iterator[tuple[int, "Future[Features]"]]:
        """Yield position and future features of each picture; a few batches are under way at a time."""
        if len(pictures) == 1:  # a thread more would only add to the latency
            yield 0, self._submit(pictures[0])
            return
        pool = self._pool()
        under_way: list[tuple[int, Future[Future[Features]]]] = []
        for row, picture in enumerate(pictures):
            under_way.append((row, pool.submit(self._submit, picture)))
            if len(under_way) > AHEAD * self._size:
                first, future = under_way.pop(0)
                yield first, future.result()
        for row, future in under_way:
            yield row, future.result()

    def _submit(self, picture: Picture) -> "Future[Features]":
        """Decode and frame a picture, and return its future features."""
        failed: Future[Features] = Future()
        try:
            return self.submit(picture)
        except PictureError as error:
            failed.set_exception(error)
            return failed

    def _encoded(self, pixels: np.ndarray) -> Encoded:
        """Return features and inputs of framed pictures (B, H, W, 3)."""
        return self.backbone.encode_images_with_inputs(self.backbone.on_device(pixels))

    def _pool(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._decoders is None:
                self._decoders = ThreadPoolExecutor(available_cores(), "taskres-decoder")
            return self._decoders

    def _stacked(self, found: dict[int, Features], count: int) -> np.ndarray:
        """Return features (N, D) by position; NaN where there are none."""
        width = len(next(iter(found.values())).image_features) if found else 0
        stacked = np.full((count, width), np.nan, np.float32)
        for row, features in found.items():
            stacked[row] = features.image_features
        return stacked
