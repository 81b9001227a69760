"""The inputs of a fit: the training and validation images of one split, never a test image, and their digest.

Axes: N images, V augmented views, D embedding.
"""

from collections.abc import Sequence
from hashlib import sha256

import numpy as np

from taskres_cache.caches.contents import SplitName
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.errors import OptionError
from taskres_cache.methods.task_residual.task import Task
from taskres_cache.methods.training_sets import TrainingSet, ValidationSet
from taskres_cache.recipe import Recipe


def tasks_of_split(cache: FeatureCache, name: SplitName, recipes: Sequence[Recipe]) -> list[Task]:
    """Return one task per recipe on a split; recipes with the same views share a training set.

    Parameters
    ----------
    cache : FeatureCache
        Where the features come from.
    name : (int, int)
        Shots and seed.
    recipes : sequence of Recipe
        How to train.
    """
    uses = dict.fromkeys((recipe.views, recipe.view_use) for recipe in recipes)
    trainings = {use: _training_set(cache, name, *use) for use in uses}
    rows = cache.split(*name).val
    validation = ValidationSet(cache.image_features(rows), cache.labels[rows])
    return [
        Task(trainings[recipe.views, recipe.view_use], recipe, recipe.epochs_for(name[0]), name[1], validation)
        for recipe in recipes
    ]


def refuse_missing_views(cache: FeatureCache, recipes: Sequence[Recipe]) -> None:
    """Raise OptionError if a recipe needs more augmented views than the cache has."""
    most = max(recipe.views for recipe in recipes)
    if most > cache.views:
        raise OptionError(
            f"{cache.path} has {cache.views or 'no'} augmented views of its train images, expected {most}; add them: "
            f"run the command that made the cache again with --views {most}"
        )


def inputs_digest(cache: FeatureCache, bases: Sequence[np.ndarray], task: Task, test_features: str) -> str:
    """Return the SHA-256 that identifies the inputs of a run: text, training, validation and test, with labels.

    Parameters
    ----------
    cache : FeatureCache
        Gives classes, logit scale and test labels.
    bases : sequence of ndarray
        What the base is computed from, see `Bases.sources`.
    task : Task
        Gives training and validation images.
    test_features : str
        SHA-256 of the test features.
    """
    digest = sha256(repr((cache.provenance.logit_scale, cache.classnames, test_features)).encode())
    training, val = task.training, task.validation
    of_val = () if val is None else (val.image_features, val.labels)
    images = (training.directions, training.lengths, training.labels, *of_val, cache.labels[cache.rows("test")])
    for array in (*bases, *images):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def study_digest(cache: FeatureCache, text_sha256: str, test_features: str) -> str:
    """Return the SHA-256 of the inputs that all runs of one table share: all but the few-shot split and the recipe.

    Parameters
    ----------
    cache : FeatureCache
        Gives checkpoint, logit scale, classes, prompts and test labels.
    text_sha256 : str
        SHA-256 of the text features, see `Bases.text_sha256`.
    test_features : str
        SHA-256 of the test features.
    """
    names = (cache.classnames, cache.class_ids, cache.half, cache.templates)
    source = (cache.provenance.weights_sha256, cache.provenance.logit_scale)
    digest = sha256(repr((*source, *names, text_sha256, test_features)).encode())
    digest.update(np.ascontiguousarray(cache.labels[cache.rows("test")]).data)
    return digest.hexdigest()


def _training_set(cache: FeatureCache, name: SplitName, views: int, view_use: str) -> TrainingSet:
    """Return the train images of a split: the images themselves, their first augmented views, or the views' mean."""
    rows = cache.split(*name).train
    labels = cache.labels[rows]
    if views == 0:
        return TrainingSet.from_pieces(cache.pieces(rows), labels, cache.dim)
    pieces = cache.augmented_pieces(rows)
    if view_use == "walk":
        return TrainingSet.from_view_pieces(pieces, labels, cache.dim, views)
    means = ((positions, features[:, :views].mean(axis=1)) for positions, features in pieces)
    return TrainingSet.from_pieces(means, labels, cache.dim)
