"""The text classifiers that a residual starts from: regular, enhanced on the training images, or from a file.

Axes: C classes, T templates, D embedding, W width of the text tower.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch

from taskres_cache.caches.contents import TextBases, regular_base
from taskres_cache.errors import OptionError
from taskres_cache.heads import Head
from taskres_cache.methods.task_residual.loop import tune_projections
from taskres_cache.methods.task_residual.task import Task
from taskres_cache.recipe import PROJECTION_EPOCHS, Recipe
from taskres_cache.runs.base_files import BaseFile


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
    text : TextBases
        Text features of the cache.
    recipes : sequence of Recipe
        The recipes that need bases.
    file : BaseFile or None
        The base for recipes with base "file".
    logit_scale : float
        Multiplier s of the cosines.
    device : torch.device
        Where enhanced bases are tuned.

    Raises
    ------
    OptionError
        A recipe needs an enhanced base, and the cache does not have its inputs.
    WeightsError
        The base file does not fit the cache.
    """

    def __init__(
        self,
        text: TextBases,
        recipes: Sequence[Recipe],
        file: BaseFile | None,
        logit_scale: float,
        device: torch.device,
    ) -> None:
        self.regular = regular_base(text.embeddings)  # (C, D)
        self.text_sha256 = sha256(np.ascontiguousarray(text.embeddings).data).hexdigest()
        self.head = Head.of_arrays(self.regular, logit_scale)
        self._logit_scale, self._device = logit_scale, device
        self._regular = StartingBase(self.regular)  # one object, so that fits can tell that they share it
        self._projection = text.projection
        self._pre_projection = None if text.pre_projection is None else text.pre_projection.mean(axis=1)  # (C, W)
        self._file: StartingBase | None = None
        if file is not None:
            self._file = StartingBase(*file.base_for(self._pre_projection, len(self.regular), self.dim))
        self.file_name = None if file is None else str(file.path)
        if any(recipe.base in ("enhanced", "enhanced-only") for recipe in recipes) and text.projection is None:
            raise OptionError(
                "an enhanced base needs text/pre_projection and text/projection, and this cache has neither: its text "
                "tower does not end in a linear projection, or its features were imported; use --base regular"
            )

    @property
    def dim(self) -> int:
        """D, the size of the embedding."""
        return int(self.regular.shape[1])

    def sources(self, recipe: Recipe) -> list[np.ndarray]:
        """Return the arrays that the base of a recipe is computed from, for a digest of the inputs of a fit."""
        if recipe.base == "regular":
            return [self.regular]
        from_file = () if self._file is None or recipe.base != "file" else (self._file.base,)
        inputs = from_file or (self._pre_projection, self._projection)
        return [self.regular, *(array for array in inputs if array is not None)]

    def of_tasks(self, tasks: Sequence[Task]) -> list[StartingBase]:
        """Return the base of each task; tasks with the same images and recipe share an enhanced base."""
        wanted = {key: task for task in tasks if (key := _projection_key(task)) is not None}
        tuned = dict(zip(wanted, self._enhanced(list(wanted.values())), strict=True))
        return [self._of_task(task, tuned) for task in tasks]

    def _of_task(self, task: Task, tuned: dict[tuple[object, ...], StartingBase]) -> StartingBase:
        key = _projection_key(task)
        if key is not None:
            return tuned[key]
        if task.recipe.base == "regular":
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


def _projection_key(task: Task) -> tuple[object, ...] | None:
    """Return the key of the projection that a task tunes; None if its base is not enhanced."""
    if task.recipe.base not in ("enhanced", "enhanced-only"):
        return None
    return id(task.training), task.seed, task.recipe.for_projection()
