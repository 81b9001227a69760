"""The inputs of a fit: the text classifier to start from, and the images of one split, never a test image.

The base is regular, enhanced on the training images, their class means, or from a file.

Axes: N images, V augmented views, C classes, T templates, D embedding, W width of the text tower.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch

from taskres_cache.caches.contents import PromptSet, SplitName, TextBases
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.soundness import unusable_row
from taskres_cache.errors import OptionError
from taskres_cache.heads.kinds import CosineHead
from taskres_cache.methods.task_residual.loop import tune_projections
from taskres_cache.methods.task_residual.task import Task
from taskres_cache.methods.training_sets import TrainingSet, ValidationSet, class_means
from taskres_cache.recipe import PROJECTION_EPOCHS, Recipe
from taskres_cache.runs.fitting.base_files import BaseFile


@dataclass(frozen=True)
class StartingBase:
    """The base that a residual starts from.

    Parameters
    ----------
    base : ndarray of shape (C, D)
        Un-normalised.
    projection : ndarray of shape (W, D), optional
        The projection that it was computed with; None if it is the checkpoint's.
    losses, kept_epochs, seconds : tuple of float, int, float
        Of the projection's tuning, as in `ProjectionFit`; empty and zero without tuning.
    """

    base: np.ndarray
    projection: np.ndarray | None = None
    losses: tuple[float, ...] = ()
    kept_epochs: int = 0
    seconds: float = 0.0


class Bases:
    """The bases of a cache, as recipes need them.

    Parameters
    ----------
    text : TextBases or None
        Text features of the cache; None if it has none.
    recipes : sequence of Recipe
        The recipes that need bases.
    file : BaseFile or None
        The base for recipes with base "file".
    logit_scale : float
        Multiplier s of the cosines.
    device : torch.device
        Where enhanced bases are tuned.
    prompts : PromptSet, optional
        The set of prompts that bases are computed from. Defaults to the templates of `text`.
    cache : FeatureCache, optional
        Where the images of class means come from; needed by recipes with base "means" and by caches without text.

    Raises
    ------
    OptionError
        A recipe needs text, or an enhanced base, and the cache does not have its inputs.
    WeightsError
        The base file does not fit the cache.
    """

    def __init__(
        self,
        text: TextBases | None,
        recipes: Sequence[Recipe],
        file: BaseFile | None,
        logit_scale: float,
        device: torch.device,
        prompts: PromptSet | None = None,
        cache: FeatureCache | None = None,
    ) -> None:
        _refuse_missing_text(text, recipes)
        used = text if prompts is None else prompts
        # One object each, so that fits can tell that they share it.
        self._regular = None if used is None else StartingBase(used.base)  # (C, D)
        self._means: dict[SplitName, StartingBase] = {}
        self._cache, self._logit_scale, self._device = cache, logit_scale, device
        self.text_sha256 = sha256(b"" if text is None else np.ascontiguousarray(text.embeddings).data).hexdigest()
        self.head = None if self.regular is None else CosineHead.of_arrays(self.regular, logit_scale)
        self._projection = None if text is None else text.projection
        self._pre_projection = None if used is None else used.base_inputs  # (C, W)
        self._file: StartingBase | None = None
        if file is not None:
            self._file = StartingBase(*file.base_for(self._pre_projection, *self.shape))
        self.file_name = None if file is None else str(file.path)

    @property
    def regular(self) -> np.ndarray | None:
        """The mean text feature (C, D) of each class; None for a cache without text."""
        return None if self._regular is None else self._regular.base

    @property
    def shape(self) -> tuple[int, int]:
        """C and D, the number of classes and the size of the embedding."""
        if self.regular is not None:
            return self.regular.shape[0], self.regular.shape[1]
        assert self._cache is not None
        return len(self._cache.classnames), self._cache.dim

    def sources(self, recipe: Recipe, name: SplitName) -> list[np.ndarray]:
        """Return the arrays that the base of a recipe is computed from, for a digest of the inputs of a fit."""
        regular = [] if self.regular is None else [self.regular]
        if recipe.base == "regular":
            return regular
        if recipe.base == "means":
            return [*regular, self._means_of(name).base]
        from_file = () if self._file is None or recipe.base != "file" else (self._file.base,)
        inputs = from_file or (self._pre_projection, self._projection)
        return [*regular, *(array for array in inputs if array is not None)]

    def of_tasks(self, tasks: Sequence[Task], names: Sequence[SplitName] = ()) -> list[StartingBase]:
        """Return the base of each task; tasks with the same images and recipe share an enhanced base.

        Parameters
        ----------
        tasks : sequence of Task
            What will be fitted.
        names : sequence of (int, int)
            Shots and seed of each task; needed by base "means".
        """
        wanted = {key: task for task in tasks if (key := _projection_key(task)) is not None}
        tuned = dict(zip(wanted, self._enhanced(list(wanted.values())), strict=True))
        return [
            self._means_of(names[place]) if task.recipe.base == "means" else self._of_task(task, tuned)
            for place, task in enumerate(tasks)
        ]

    def _means_of(self, name: SplitName) -> StartingBase:
        """Return the class means of the training images of a split; raises OptionError for a class without any."""
        if name not in self._means:
            assert self._cache is not None
            means = class_means(*self._cache.train(*name), len(self._cache.classnames))
            fault = unusable_row(means)
            if fault is not None:
                raise OptionError(
                    f"{self._cache.path}: class {self._cache.classnames[fault[0]]!r} has no mean image with {name[0]} "
                    f"shots and seed {name[1]} (it {fault[1]}); --base means needs train images of every class"
                )
            self._means[name] = StartingBase(means)
        return self._means[name]

    def _of_task(self, task: Task, tuned: dict[tuple[object, ...], StartingBase]) -> StartingBase:
        key = _projection_key(task)
        if key is not None:
            return tuned[key]
        if task.recipe.base == "regular" and self._regular is not None:
            return self._regular
        if self._file is None:
            raise OptionError("a recipe with base 'file' needs a base file; pass base_file")
        return self._file

    def _enhanced(self, tasks: Sequence[Task]) -> list[StartingBase]:
        """Return an enhanced base for each task, its projection tuned on the task's images."""
        if not tasks:
            return []
        assert self._pre_projection is not None
        assert self._projection is not None
        projections = [
            Task(task.training, task.recipe.for_projection(), PROJECTION_EPOCHS, task.seed, task.validation)
            for task in tasks
        ]
        fits = tune_projections(projections, self._pre_projection, self._projection, self._logit_scale, self._device)
        return [
            StartingBase(
                self._pre_projection @ fit.projection, fit.projection, fit.losses, fit.kept_epochs, fit.seconds
            )
            for fit in fits
        ]


def bases_of(
    cache: FeatureCache, recipes: Sequence[Recipe], device: torch.device, file: BaseFile | None = None
) -> Bases:
    """Return the bases of a cache, with or without text; parameters and errors are those of `Bases`."""
    text, prompts = (cache.text_bases(), cache.text()) if cache.has_text else (None, None)
    return Bases(text, recipes, file, cache.provenance.logit_scale, device, prompts, cache)


def _refuse_missing_text(text: TextBases | None, recipes: Sequence[Recipe]) -> None:
    """Raise OptionError if a base needs text, or the text tower's projection, and the cache has none."""
    bases = {recipe.base for recipe in recipes}
    if text is None and bases - {"means", "file"}:
        raise OptionError(
            f"this cache has no text features, which a base that is {min(bases - {'means', 'file'})} needs; use --base "
            "means, which starts from the mean image of each class"
        )
    if bases & {"enhanced", "enhanced-only"} and (text is None or text.projection is None):
        raise OptionError(
            "an enhanced base needs text/pre_projection and text/projection, and this cache has neither: its text "
            "tower does not end in a linear projection, or its features were imported; use --base regular"
        )


def _projection_key(task: Task) -> tuple[object, ...] | None:
    """Return the key of the projection that a task tunes; None if its base is not enhanced."""
    if task.recipe.base not in ("enhanced", "enhanced-only"):
        return None
    return id(task.training), task.seed, task.recipe.for_projection()


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
        Gives checkpoint, logit scale, classes, templates and test labels.
    text_sha256 : str
        SHA-256 of the text features of the templates, see `Bases.text_sha256`. It is the same for all sets of prompts
        of a cache, so that a table compares them.
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
