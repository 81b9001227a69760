"""Training sets: normalised features, and building them from pieces."""

import numpy as np

from taskres_cache.methods.training_sets import TrainingSet
from taskres_cache.recipe import Recipe
from tests.by_hand import normalised
from tests.methods.task_residual.problems import few_shot_problem, fit_alone


def test_pieces_use_the_first_views_of_each_image() -> None:
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(20, 4, 12)).astype(np.float32), np.arange(20) % 5
    pieces = ((positions, features[positions]) for positions in np.array_split(rng.permutation(20), 3))
    training = TrainingSet.from_view_pieces(pieces, labels, 12, views=3)
    assert training.directions.shape == (3, 20, 12)
    assert np.allclose(training.lengths, np.linalg.norm(features[:, :3], axis=-1).T)
    assert np.allclose(training.directions, normalised(features[:, :3]).transpose(1, 0, 2), atol=1e-6)


def test_pieces_give_the_same_set_as_one_array() -> None:
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(20, 12)).astype(np.float32), np.arange(20) % 5
    order = rng.permutation(20)
    pieces = ((positions, features[positions]) for positions in np.array_split(order, 3))
    in_pieces, whole = TrainingSet.from_pieces(pieces, labels, 12), TrainingSet.from_features(features, labels)
    assert np.array_equal(in_pieces.directions, whole.directions)
    assert np.array_equal(in_pieces.lengths, whole.lengths)
    assert np.array_equal(in_pieces.labels, labels)


def test_a_fit_does_not_change_its_features() -> None:
    features = np.random.default_rng(0).normal(size=(20, 12))
    before = features.copy()
    training = TrainingSet.from_features(features, np.arange(20) % 5)
    directions = training.directions.copy()
    fit_alone(training, few_shot_problem(20)[1], Recipe(), epochs=1, seed=1)
    assert np.array_equal(features, before)
    assert np.array_equal(training.directions, directions)
    assert np.allclose(np.linalg.norm(directions, axis=-1), 1)
