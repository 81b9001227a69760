"""Few-shot tasks from a cache: what a method may see of a split, and a digest of everything that went in.

Axes: N images, V views, C classes, T templates, D embedding, W size before the image projection.
"""

from collections.abc import Sequence
from hashlib import sha256

import numpy as np
import torch

from taskres_cache.caches.contents import SplitName
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.errors import OptionError
from taskres_cache.methods.choice import MethodChoice
from taskres_cache.methods.few_shot import FewShotTask, Images, Text, Views
from taskres_cache.methods.method import Method


class TaskReader:
    """Reads the few-shot tasks of a cache; text and the whole val partition are read once.

    Parameters
    ----------
    cache : FeatureCache
        Where the features come from.
    device : torch.device
        Where methods compute.
    """

    def __init__(self, cache: FeatureCache, device: torch.device) -> None:
        self.cache, self._device = cache, device
        embeddings = cache.text_bases().embeddings  # (C, T, D)
        self.text_sha256 = sha256(np.ascontiguousarray(embeddings).data).hexdigest()
        self._text = Text.from_templates(embeddings)
        self._read: dict[tuple[object, ...], Images | Views] = {}

    def task(self, name: SplitName, choice: MethodChoice) -> FewShotTask:
        """Return what a method may see of a split: training images, validation images, views, text.

        Parameters
        ----------
        name : (int, int)
            Shots and seed.
        choice : MethodChoice
            The method, with the views and validation images that it uses.
        """
        split = self.cache.split(*name)
        val_rows = split.val if choice.val == "few" else self.cache.rows("val")
        val = self._images(val_rows, choice)
        return FewShotTask(
            train=self._images(split.train, choice),
            text=self._text,
            logit_scale=self.cache.provenance.logit_scale,
            shots=name[0],
            seed=name[1],
            val=val if len(val) else None,
            views=self._views(split.train, choice) if choice.views else None,
            device=self._device,
        )

    def forget(self) -> None:
        """Free the images of the splits that were read."""
        self._read.clear()

    def _images(self, rows: np.ndarray, choice: MethodChoice) -> Images:
        """Return labelled images, read once for all methods of a split."""
        key = ("images", rows.tobytes())
        if key not in self._read:
            self._read[key] = Images(self.cache.image_features(rows), self.cache.labels[rows].astype(np.int64))
        images = self._read[key]
        assert isinstance(images, Images)
        return images

    def _views(self, rows: np.ndarray, choice: MethodChoice) -> Views:
        """Return the first augmented views of training images."""
        key = ("views", choice.method.views, choice.views, rows.tobytes())
        if key not in self._read:
            features = np.empty((choice.views, len(rows), self.cache.dim), np.float32)  # (V, N, D)
            for positions, piece in self.cache.augmented_pieces(rows):
                features[:, positions] = piece[:, : choice.views].swapaxes(0, 1)
            self._read[key] = Views(features)
        views = self._read[key]
        assert isinstance(views, Views)
        return views


def refuse_unsuited(cache: FeatureCache, choices: Sequence[MethodChoice]) -> None:
    """Raise OptionError if the cache does not have the augmented views or the features that a method needs."""
    for choice in choices:
        reason = unsuited(cache, choice)
        if reason:
            raise OptionError(f"method {choice.method.name}: {reason}")


def unsuited(cache: FeatureCache, choice: MethodChoice) -> str:
    """Return why a method cannot be fitted on a cache, with the remedy; empty if it can."""
    if choice.method.reads == "pre_projection" and not cache.has_pre_projection:
        return (
            f"{cache.path} does not have the input of the image tower's last projection (features/pre_projection); "
            "extract the data set again with a backbone that ends in a linear projection"
        )
    if choice.views > cache.views:
        return (
            f"{cache.path} has {cache.views or 'no'} augmented views of its train images, expected {choice.views}; add "
            f"them: run the command that made the cache again with --views {choice.views}"
        )
    return ""


def views_for(cache: FeatureCache, method: Method) -> int:
    """Return how many augmented views of a method's family a cache has."""
    return 0 if method.views == "none" else cache.views


def task_digest(cache: FeatureCache, task: FewShotTask, test_features: str) -> str:
    """Return the SHA-256 that identifies the inputs of a run: text, training, validation and test, with labels.

    Parameters
    ----------
    cache : FeatureCache
        Gives classes and test labels.
    task : FewShotTask
        What the method saw.
    test_features : str
        SHA-256 of the test features.
    """
    digest = sha256(repr((task.logit_scale, cache.classnames, test_features)).encode())
    parts = [*_arrays(task.train), *_arrays(task.val), *_arrays(task.views)]
    tower = () if task.projection is None else (task.projection.weights, task.projection.bias)
    for array in (task.text.features, task.text.labels, *parts, *tower, cache.labels[cache.rows("test")]):
        digest.update(b"none" if array is None else np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _arrays(images: Images | Views | None) -> tuple[np.ndarray | None, ...]:
    """Return the arrays of images or views, in a fixed order."""
    if images is None:
        return (None,)
    labels = images.labels if isinstance(images, Images) else None
    return images.image_features, labels, images.pre_projection
