"""What a method may see: the training images of one few-shot split, its validation images, and text. No test feature.

Features are un-normalised, as the encoders return them. Their floating type is used for all computation, so that tests
can run a method in float64.

Axes: N images, V views, C classes, P prompts, D embedding, W size before a projection.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from taskres_cache.errors import OptionError


@dataclass(frozen=True)
class Images:
    """Labelled images.

    Parameters
    ----------
    image_features : ndarray of shape (N, D)
        Un-normalised.
    labels : ndarray of shape (N,), int64
        Positions of the classes.
    pre_projection : ndarray of shape (N, W), optional
        Input of the image tower's last projection: `image_features = pre_projection @ weights + bias`.
    """

    image_features: np.ndarray
    labels: np.ndarray
    pre_projection: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Views:
    """Augmented views of the training images, in the order of the images.

    Parameters
    ----------
    image_features : ndarray of shape (V, N, D)
        Un-normalised.
    pre_projection : ndarray of shape (V, N, W), optional
        As in `Images`.
    """

    image_features: np.ndarray
    pre_projection: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.image_features)


@dataclass(frozen=True)
class ImageProjection:
    """The last linear projection of the image tower.

    Parameters
    ----------
    weights : ndarray of shape (W, D)
        The projection.
    bias : ndarray of shape (D,), optional
        Added after it.
    """

    weights: np.ndarray
    bias: np.ndarray | None = None


@dataclass(frozen=True)
class Text:
    """Text features of any number of prompts per class.

    Parameters
    ----------
    features : ndarray of shape (P, D)
        Un-normalised, grouped by class in label order.
    labels : ndarray of shape (P,), int64
        The class of each prompt; every class has at least one, except in `Text.absent`.
    without_prompts : int
        C of a cache without text; 0 if there are prompts.
    """

    features: np.ndarray
    labels: np.ndarray
    without_prompts: int = 0

    @classmethod
    def absent(cls, classes: int, dim: int) -> "Text":
        """Build the text of a cache without text features, which methods with `needs_text=False` can do without."""
        return cls(np.zeros((0, dim), np.float32), np.zeros(0, np.int64), classes)

    @property
    def is_absent(self) -> bool:
        """Whether there are no prompts at all."""
        return len(self.labels) == 0

    @classmethod
    def from_templates(cls, embeddings: np.ndarray) -> "Text":
        """Build the text of embeddings (C, T, D) that have the same number of templates per class."""
        classes, templates, dim = embeddings.shape
        return cls(embeddings.reshape(-1, dim), np.repeat(np.arange(classes), templates))

    @cached_property
    def classes(self) -> int:
        """C, the number of classes."""
        return self.without_prompts or int(self.labels.max()) + 1

    @cached_property
    def base(self) -> np.ndarray:
        """The mean text feature (C, D) of each class, un-normalised: the base of TaskRes and CLAP."""
        self._refuse_absent()
        return _class_means(self.features, self.labels, self.classes)

    @cached_property
    def ensemble(self) -> np.ndarray:
        """The normalised mean (C, D) of the normalised text features of each class: the text of Tip-Adapter and GDA."""
        self._refuse_absent()
        return unit(_class_means(unit(self.features), self.labels, self.classes))

    def _refuse_absent(self) -> None:
        if self.is_absent:
            raise OptionError("this method reads text features, and the cache has none; set needs_text=True")


@dataclass(frozen=True)
class FewShotTask:
    """One few-shot split.

    Parameters
    ----------
    train : Images
        The training images, with the model's own preprocessing.
    text : Text
        The prompts of the classes; `text.is_absent` in a cache without text.
    logit_scale : float
        Multiplier of the cosines; 100 for OpenAI's models.
    shots, seed : int
        Training images per class, and the seed for everything random.
    val : Images, optional
        Validation images, the only ones that may choose anything; None if there are none.
    views : Views, optional
        Augmented views of the training images, of the family that the method asks for; None if the cache has none.
    projection : ImageProjection, optional
        Present together with `pre_projection` of the images.
    device : torch.device
        Where to compute.
    """

    train: Images
    text: Text
    logit_scale: float
    shots: int
    seed: int
    val: Images | None = None
    views: Views | None = None
    projection: ImageProjection | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def classes(self) -> int:
        """C, the number of classes."""
        return self.text.classes

    @property
    def augmented(self) -> Views:
        """The augmented views; the images themselves as the only view if there are none."""
        if self.views is not None:
            return self.views
        pre_projection = self.train.pre_projection
        return Views(self.train.image_features[None], None if pre_projection is None else pre_projection[None])

    def chosen_by_val(self) -> Images:
        """Return the validation images; raises OptionError without any."""
        if self.val is None or len(self.val) == 0:
            raise OptionError("this method chooses by validation images, and the split has none")
        return self.val


def unit(features: np.ndarray) -> np.ndarray:
    """Return features (..., D) divided by their length."""
    directions: np.ndarray = features / np.linalg.norm(features, axis=-1, keepdims=True)
    return directions


def _class_means(features: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Return the mean (C, D) of the rows of each class."""
    counts = np.bincount(labels, minlength=classes)
    if len(features) == classes * counts[0] and (labels == np.repeat(np.arange(classes), counts[0])).all():
        means: np.ndarray = features.reshape(classes, counts[0], -1).mean(axis=1)  # the same bits as for templates
        return means
    return np.stack([features[labels == label].mean(axis=0) for label in range(classes)])
