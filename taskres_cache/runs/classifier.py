"""A fitted classifier with everything needed to use it: a task residual, or the head of another method.

Axes: C classes, D embedding, W width of the text tower.
"""

from dataclasses import dataclass, replace

import numpy as np

from taskres_cache.caches.contents import DEFAULT_PROMPTS
from taskres_cache.caches.provenance import Provenance
from taskres_cache.heads.head import Head
from taskres_cache.heads.kinds import CosineHead
from taskres_cache.methods.choice import MethodRecord
from taskres_cache.recipe import Recipe
from taskres_cache.runs.finding import method_of_set


@dataclass(frozen=True, kw_only=True)
class _Described:
    """What all classifiers record, see `ResidualClassifier`."""

    classnames: tuple[str, ...]
    templates: tuple[str, ...]
    shots: int
    seed: int
    provenance: Provenance
    class_ids: tuple[str, ...] | None = None
    half: str = "all"
    prompts: str = DEFAULT_PROMPTS


@dataclass(frozen=True, kw_only=True)
class ResidualClassifier(_Described):
    """A fitted task residual.

    Parameters
    ----------
    base, residual : ndarray of shape (C, D), float32
        Un-normalised. The residual is zero if only the image side was trained.
    alpha : float
        The weights are `base + alpha * residual`.
    recipe : Recipe
        How the residual was trained.
    image_residual : ndarray of shape (D,), float32, optional
        `alpha * image_residual` is added to every image feature before normalising; None if not trained.
    projection : ndarray of shape (W, D), float32, optional
        The tuned text projection of the base; None if it is the checkpoint's.
    temperature : float, default 1
        Divides the logits; fitted on the validation images of the split.
    classnames : tuple of str
        One per class, in the order of the head's classes.
    templates : tuple of str
        Prompt templates of the text features; empty for another set of prompts than `default`.
    shots, seed : int
        The few-shot split.
    provenance : Provenance
        Where the features came from; its `logit_scale` multiplies cosines.
    class_ids : tuple of str, optional
        Identifiers that match classes across data sets; None to match by name.
    half : {"all", "base", "new"}
        The classes of the data set that were used.
    prompts : str
        The cache's set of prompts whose text features were used.
    """

    base: np.ndarray
    residual: np.ndarray
    alpha: float
    recipe: Recipe
    image_residual: np.ndarray | None = None
    projection: np.ndarray | None = None
    temperature: float = 1.0

    @property
    def head(self) -> CosineHead:
        """The model: weights, image shift, logit scale and temperature."""
        scale = self.provenance.logit_scale
        return CosineHead.of_arrays(self.base, scale, self.residual, self.image_residual, self.alpha, self.temperature)

    @property
    def how(self) -> Recipe:
        """How it was trained."""
        return self.recipe

    @property
    def method(self) -> str:
        """Name of the method, which differs between recipes and sets of prompts that differ."""
        return method_of_set(self.recipe.method_name(), self.prompts)

    def calibrated(self, temperature: float) -> "ResidualClassifier":
        """Return the classifier with another temperature."""
        return replace(self, temperature=temperature)


@dataclass(frozen=True, kw_only=True)
class MethodClassifier(_Described):
    """The head that a method other than the task residual has fitted.

    Parameters
    ----------
    fitted : Head
        The classifier, with its temperature.
    record : MethodRecord
        The method and its options.
    method : str
        Name of the method, which differs between options and sets of prompts that differ.
    classnames : tuple of str
        One per class, in the order of the head's classes.
    templates : tuple of str
        Prompt templates of the text features; empty for another set of prompts than `default`.
    shots, seed : int
        The few-shot split.
    provenance : Provenance
        Where the features came from; its `logit_scale` multiplies cosines.
    class_ids : tuple of str, optional
        Identifiers that match classes across data sets; None to match by name.
    half : {"all", "base", "new"}
        The classes of the data set that were used.
    prompts : str
        The cache's set of prompts whose text features were used.
    """

    fitted: Head
    record: MethodRecord
    method: str

    @property
    def head(self) -> Head:
        """The model."""
        return self.fitted

    @property
    def how(self) -> MethodRecord:
        """How it was trained."""
        return self.record

    @property
    def temperature(self) -> float:
        """Divides the logits; fitted on the validation images of the split."""
        return self.fitted.temperature

    def calibrated(self, temperature: float) -> "MethodClassifier":
        """Return the classifier with another temperature."""
        return replace(self, fitted=replace(self.fitted, temperature=temperature))


Classifier = ResidualClassifier | MethodClassifier
