"""What a fit may see: the few-shot images of its split, and the val images that may choose between fits or epochs.

Axes: N training images, V views of each, M validation images, D embedding.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from taskres_cache.heads import directions_and_lengths


@dataclass(frozen=True)
class TrainingSet:
    """The features a fit may see: directions (V, N, D), normalised once and for all, lengths (V, N), and labels (N,).

    Epoch e takes view e mod V: the paper's re-augmentation, which draws anew in each epoch, with V draws to go round.
    """

    directions: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, image_features: np.ndarray, labels: np.ndarray) -> "TrainingSet":
        """Return un-normalised features (N, D), which stay as they are, and labels as a training set of one view."""
        return cls.of_views(image_features[None], labels)

    @classmethod
    def of_views(cls, image_features: np.ndarray, labels: np.ndarray) -> "TrainingSet":
        """Return un-normalised features of views (V, N, D) and labels as a training set."""
        directions, lengths = _directions_and_lengths(image_features)
        return cls(directions, lengths, labels)

    @classmethod
    def read(cls, pieces: Iterable[tuple[np.ndarray, np.ndarray]], labels: np.ndarray, dim: int) -> "TrainingSet":
        """Return a training set of one view from pieces, positions and un-normalised features (.., D), none kept."""
        return cls.read_views(((positions, features[:, None]) for positions, features in pieces), labels, dim, 1)

    @classmethod
    def read_views(
        cls, pieces: Iterable[tuple[np.ndarray, np.ndarray]], labels: np.ndarray, dim: int, views: int
    ) -> "TrainingSet":
        """Return a training set of so many views from pieces, positions and un-normalised features (.., V, D)."""
        directions = np.empty((views, len(labels), dim), np.float32)
        lengths = np.empty((views, len(labels)), np.float32)
        for positions, features in pieces:
            taken = features[:, :views].swapaxes(0, 1)
            directions[:, positions], lengths[:, positions] = _directions_and_lengths(taken)
        return cls(directions, lengths, labels)


@dataclass(frozen=True)
class ValidationSet:
    """The features that may choose between fits or epochs: (M, D) un-normalised, and labels (M,)."""

    image_features: np.ndarray
    labels: np.ndarray


def _directions_and_lengths(image_features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    directions, lengths = directions_and_lengths(torch.from_numpy(image_features))
    return directions.numpy(), lengths.numpy()
