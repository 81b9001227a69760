"""Few-shot tasks from a cache: what a method may see of a split, and a digest of everything that went in.

Axes: N images, V views, C classes, T templates, D embedding, W size before the image projection.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property
from hashlib import sha256

import numpy as np
import torch

from taskres_cache.caches.contents import SplitName
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.datasets.sampling import images_per_class
from taskres_cache.errors import OptionError
from taskres_cache.methods.choice import MethodChoice
from taskres_cache.methods.few_shot import FewShotTask, ImageProjection, Images, Text, Views
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
        embeddings = cache.text_bases().embeddings if cache.has_text else None  # (C, T, D)
        self.text_sha256 = sha256(b"" if embeddings is None else np.ascontiguousarray(embeddings).data).hexdigest()
        if embeddings is None:
            self._text = Text.absent(len(cache.classnames), cache.dim)
        else:
            used = cache.text()
            self._text = Text(used.embeddings, used.labels)
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
        before = reads_pre_projection(self.cache, choice)
        val = self._images(split.val if choice.val == "few" else self.cache.rows("val"), before)
        return FewShotTask(
            train=self._images(split.train, before),
            text=self._text,
            logit_scale=self.cache.provenance.logit_scale,
            shots=images_per_class(name[0], len(split.train), len(self.cache.classnames)),
            seed=name[1],
            val=val if len(val) else None,
            views=self._views(split.train, choice, before) if choice.views else None,
            projection=self._projection if before else None,
            device=self._device,
        )

    def forget(self) -> None:
        """Free the images of the splits that were read."""
        self._read.clear()

    @cached_property
    def _projection(self) -> ImageProjection:
        """The last projection of the image tower."""
        stored = self.cache.image_projection()
        assert stored is not None  # `unsuited` refuses a cache without it
        return ImageProjection(stored.weights, stored.bias)

    def _images(self, rows: np.ndarray, before: bool) -> Images:
        """Return labelled images, read once for all methods of a split; with pre-projection features on request."""
        key = ("images", before, rows.tobytes())
        if key not in self._read:
            inputs = self.cache.pre_projection(rows) if before else None
            labels = self.cache.labels[rows].astype(np.int64)
            self._read[key] = Images(self.cache.image_features(rows), labels, inputs)
        images = self._read[key]
        assert isinstance(images, Images)
        return images

    def _views(self, rows: np.ndarray, choice: MethodChoice, before: bool) -> Views:
        """Return the first augmented views of training images, of the family that the method asks for."""
        family, count = choice.method.views, choice.views
        key = ("views", family, count, before, rows.tobytes())
        if key not in self._read:
            features = _filled(self.cache.augmented_pieces(rows, family), count, len(rows))
            before = before and self.cache.view_families[family].has_pre_projection
            pieces = self.cache.augmented_pre_projection_pieces(rows, family) if before else ()
            self._read[key] = Views(features, _filled(pieces, count, len(rows)) if before else None)
        views = self._read[key]
        assert isinstance(views, Views)
        return views


def _filled(pieces: Iterable[tuple[np.ndarray, np.ndarray]], views: int, count: int) -> np.ndarray:
    """Return the first views (V, N, D) of all images from pieces (n, V or more, D)."""
    filled: np.ndarray | None = None
    for positions, piece in pieces:
        if filled is None:
            filled = np.empty((views, count, piece.shape[2]), np.float32)
        filled[:, positions] = piece[:, :views].swapaxes(0, 1)
    assert filled is not None  # a split has at least one training image
    return filled


def reads_pre_projection(cache: FeatureCache, choice: MethodChoice) -> bool:
    """Return True if a method is given the input of the image tower's last projection.

    A method that can do without it is not given it if it uses views that are stored without it.
    """
    method = choice.method
    if method.reads == "features" or not cache.has_pre_projection:
        return False
    return choice.views == 0 or cache.view_families[method.views].has_pre_projection


def refuse_unsuited(cache: FeatureCache, choices: Sequence[MethodChoice]) -> None:
    """Raise OptionError if the cache does not have the text, the views or the features that a method needs."""
    for choice in choices:
        reason = unsuited(cache, choice)
        if reason:
            raise OptionError(f"method {choice.method.name}: {reason}")


def unsuited(cache: FeatureCache, choice: MethodChoice) -> str:
    """Return why a method cannot be fitted on a cache, with the remedy; empty if it can."""
    method, again = choice.method, "run the command that made the cache again with"
    if method.needs_text and not cache.has_text:
        return f"{cache.path} has no text features; use a method that needs none (taskres, auto, gda, linear-probe)"
    if method.reads == "pre_projection" and not cache.has_pre_projection:
        return (
            f"{cache.path} does not have the input of the image tower's last projection (features/pre_projection); add "
            f"it: {again} --pre-projection images"
        )
    stored = views_for(cache, method)
    if choice.views > stored:
        family = " --view-family narrow" if method.views == "narrow" else ""
        return (
            f"{cache.path} has {stored or 'no'} {method.views} views of its train images, expected {choice.views}; add "
            f"them: {again} --views {choice.views}{family}"
        )
    if method.reads == "pre_projection" and choice.views and not reads_pre_projection(cache, choice):
        return (
            f"the views of {cache.path} have no pre-projection; add it: {again} --pre-projection all, or pass --views 0"
        )
    return ""


def views_for(cache: FeatureCache, method: Method) -> int:
    """Return how many augmented views of a method's family a cache has."""
    family = cache.view_families.get(method.views)
    return 0 if family is None else family.views


def default_views(cache: FeatureCache, method: Method) -> int:
    """Return how many views a method uses by default: all of its family that have what it reads."""
    family = cache.view_families.get(method.views)
    without = method.reads == "pre_projection" and family is not None and not family.has_pre_projection
    return 0 if family is None or without else family.views


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
