"""What all heads have: logits, probabilities, a score, and tensors that can be stored.

Axes: N images, C classes, D embedding.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar, Literal, Self, get_args, get_type_hints

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

Reads = Literal["features", "pre_projection"]


@dataclass(frozen=True)
class Axes:
    """The axes of a tensor of a head, one letter each; `C` is that of the classes."""

    letters: str


@dataclass(frozen=True)
class Head(ABC):
    """A classifier, ready to use: a few tensors and numbers that give logits.

    Parameters
    ----------
    temperature : float, default 1
        Divides the logits to calibrate probabilities. It never changes the ranking of classes.
    """

    kind: ClassVar[str]
    temperature: float = field(default=1.0, kw_only=True)

    @abstractmethod
    def logits(self, image_features: Tensor) -> Tensor:
        """Return the logits (N, C), without the temperature, of what the head reads (see `reads`), un-normalised."""

    @property
    def input(self) -> Reads:
        """What the head reads: image features, or the input of the image tower's last projection."""
        return "features"

    @property
    @abstractmethod
    def width(self) -> int:
        """Size of the vectors that the head reads."""

    @property
    def classes(self) -> int:
        """C, the number of classes."""
        named = self._tensors()
        return next(int(named[name].shape[axes.index("C")]) for name, axes in self.axes().items() if "C" in axes)

    @property
    def scale(self) -> float:
        """The factor of `scores` in the logits."""
        return 1.0

    def scores(self, image_features: Tensor) -> Tensor:
        """Return `logits / scale` (N, C), which rank the classes; cosines for a cosine head."""
        return self.logits(image_features)

    def probabilities(self, image_features: Tensor) -> Tensor:
        """Return calibrated probabilities (N, C)."""
        return (self.logits(image_features) / self.temperature).softmax(dim=-1)

    def score(self, image_features: Tensor, labels: Tensor) -> tuple[float, float]:
        """Return accuracy in percent and the negative mean cross-entropy on labelled images (N, D), (N,).

        Fits and epochs are ranked by this pair on validation images: accuracy first, then the lower loss.
        """
        return pairs_on_host([self.correct_and_loss(image_features, labels)], [len(labels)])[0]

    def correct_and_loss(self, image_features: Tensor, labels: Tensor) -> Tensor:
        """Return the number of correct predictions and the mean cross-entropy (2,), without waiting for the device."""
        loss = cross_entropy(self.logits(image_features), labels)
        correct = (self.scores(image_features).argmax(dim=-1) == labels).sum()
        return torch.stack([correct.to(loss.dtype), loss])

    def to(self, target: torch.device | torch.dtype) -> Self:
        """Return the head on a device, or in a floating type."""
        moves = {name: tensor for name, tensor in self._tensors().items() if _takes(tensor, target)}
        return replace(self, **{name: tensor.to(target) for name, tensor in moves.items()})  # type: ignore[arg-type]

    def of_classes(self, rows: np.ndarray) -> Self:
        """Return the head of some of the classes, given by their rows, in that order."""
        named, chosen = self._tensors(), torch.from_numpy(rows)
        kept = {
            name: named[name].index_select(axes.index("C"), chosen.to(named[name].device))
            for name, axes in self.axes().items()
            if "C" in axes
        }
        return replace(self, **kept)  # type: ignore[arg-type]

    def with_text(self, text_features: Tensor) -> "Head | None":
        """Return the head for other classes, given by their text features (C, D); None if it knows single classes."""
        return None

    @classmethod
    def axes(cls) -> dict[str, str]:
        """Return the axes of each tensor that a head of this kind may hold."""
        hints = get_type_hints(cls, include_extras=True)
        found = {name: [mark for mark in get_args(hint) if isinstance(mark, Axes)] for name, hint in hints.items()}
        return {name: marks[0].letters for name, marks in found.items() if marks}

    def tensors(self) -> dict[str, np.ndarray]:
        """Return the tensors by name, as they are stored."""
        return {name: tensor.numpy() for name, tensor in self._tensors().items()}

    def settings(self) -> dict[str, float | str]:
        """Return the numbers and words by name, as they are stored; without the temperature."""
        others = {*self.axes(), "temperature"}
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name not in others}

    def shared_key(self) -> tuple[object, ...]:
        """Return a key that is equal for heads that share all tensors and settings."""
        tensors = ((name, tensor.data_ptr(), tensor.shape) for name, tensor in self._tensors().items())
        return (self.kind, *tensors, *self.settings().items(), self.temperature)

    def _tensors(self) -> dict[str, Tensor]:
        """Return each tensor that is present."""
        named = {name: getattr(self, name) for name in self.axes()}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


def share_correct(logits: Tensor, labels: Tensor) -> float:
    """Return the share of correct predictions of logits (N, C) with labels (N,)."""
    return int((logits.argmax(dim=1) == labels).sum()) / len(labels)  # no float64, which MPS does not have


def pairs_on_host(measured: Sequence[Tensor], counts: Sequence[int]) -> list[tuple[float, float]]:
    """Return what `Head.score` returns for several heads; the device is waited for once.

    Parameters
    ----------
    measured : sequence of Tensor of shape (2,)
        What `Head.correct_and_loss` returned.
    counts : sequence of int
        Numbers of images.
    """
    pairs = torch.stack(list(measured)).tolist()
    return [(100.0 * correct / count, -loss) for (correct, loss), count in zip(pairs, counts, strict=True)]


def _takes(tensor: Tensor, target: torch.device | torch.dtype) -> bool:
    """Return True if a tensor moves: all to another device, only floating ones to another type."""
    return isinstance(target, torch.device) or tensor.is_floating_point()
