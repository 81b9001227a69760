"""The features that a fit may see: few-shot training images, and validation images that choose fits or epochs.

Axes: N training images, V views of each, M validation images, D embedding.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from taskres_cache.heads.formulas import directions_and_lengths


@dataclass(frozen=True)
class TrainingSet:
    """The training images of a fit, normalised once.

    Parameters
    ----------
    directions : ndarray of shape (V, N, D), float32
        Normalised image features. Epoch e uses view e mod V, in place of the paper's new augmentation per epoch.
    lengths : ndarray of shape (V, N), float32
        Lengths before normalising.
    labels : ndarray of shape (N,)
        Positions of the classes.
    """

    directions: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray

    @classmethod
    def from_features(cls, image_features: np.ndarray, labels: np.ndarray) -> "TrainingSet":
        """Build a training set of one view from un-normalised features (N, D), which are not changed."""
        return cls.from_views(image_features[None], labels)

    @classmethod
    def from_views(cls, image_features: np.ndarray, labels: np.ndarray) -> "TrainingSet":
        """Build a training set from un-normalised features of views (V, N, D)."""
        directions, lengths = _directions_and_lengths(image_features)
        return cls(directions, lengths, labels)

    @classmethod
    def from_pieces(
        cls, pieces: Iterable[tuple[np.ndarray, np.ndarray]], labels: np.ndarray, dim: int
    ) -> "TrainingSet":
        """Build a training set of one view from pieces of positions and un-normalised features (.., D)."""
        with_views = ((positions, features[:, None]) for positions, features in pieces)
        return cls.from_view_pieces(with_views, labels, dim, 1)

    @classmethod
    def from_view_pieces(
        cls, pieces: Iterable[tuple[np.ndarray, np.ndarray]], labels: np.ndarray, dim: int, views: int
    ) -> "TrainingSet":
        """Build a training set from pieces, so that only one piece is in memory next to the result.

        Parameters
        ----------
        pieces : iterable of (ndarray, ndarray)
            Positions and un-normalised features (.., V or more, D) of some images.
        labels : ndarray of shape (N,)
            Positions of the classes.
        dim : int
            D, the size of the embedding.
        views : int
            V; further views of the pieces are ignored.
        """
        directions = np.empty((views, len(labels), dim), np.float32)
        lengths = np.empty((views, len(labels)), np.float32)
        for positions, features in pieces:
            first_views = features[:, :views].swapaxes(0, 1)
            directions[:, positions], lengths[:, positions] = _directions_and_lengths(first_views)
        return cls(directions, lengths, labels)


@dataclass(frozen=True)
class ValidationSet:
    """The validation images, which choose between fits or epochs.

    Parameters
    ----------
    image_features : ndarray of shape (M, D), float32
        Un-normalised.
    labels : ndarray of shape (M,)
        Positions of the classes.
    """

    image_features: np.ndarray
    labels: np.ndarray


def class_means(image_features: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Return the mean (C, D) of the un-normalised images (N, D) of each class: the base where there is no text.

    A class without images gets zeros, which have no direction: callers refuse it.
    """
    means = np.zeros((classes, image_features.shape[1]), np.float32)
    for label in np.unique(labels):
        means[label] = image_features[labels == label].mean(axis=0, dtype=np.float64)
    return means


def _directions_and_lengths(image_features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    directions, lengths = directions_and_lengths(torch.from_numpy(image_features))
    return directions.numpy(), lengths.numpy()
