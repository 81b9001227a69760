"""Stage two as a scikit-learn estimator: the same training loop and recipe, on features in memory.

Axes: N images, C classes, T templates, D embedding.
"""

from __future__ import annotations  # so that help() speaks of ArrayLike by its name

import warnings
from collections.abc import Iterator
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_array, check_random_state, check_scalar, gen_batches
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from taskres_cache.caches.contents import regular_base
from taskres_cache.errors import EstimatorError, OptionError, RunError
from taskres_cache.heads import Head
from taskres_cache.methods.task_residual.loop import fit_residuals
from taskres_cache.methods.task_residual.task import FitTask
from taskres_cache.methods.training_sets import TrainingSet
from taskres_cache.recipe import Recipe, Residual
from taskres_cache.runs.finding import METRICS_FILE
from taskres_cache.runs.run import Classifier, read_classifier, read_metrics
from taskres_cache.system.devices import choose_device

PIECE = 4096  # images whose logits are computed at once
AS_TENSORS_NEED: dict[str, Any] = {"dtype": np.float32, "order": "C", "force_writeable": True}


class TaskResClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier by cosine whose weights are `text_features + alpha * residual`; the residual is what is trained.

    Parameters
    ----------
    text_features : (C, D) or (C, T, D) un-normalised, a row for each class in the order of the sorted classes; of T
        templates the mean is taken. None takes the mean of each class's training features, which needs no text.
    alpha : weight of the residual. What it does follows the size of the base's coordinates: the paper's 0.5 is right
        for about 0.3 a coordinate, as OpenAI's text features have.
    lr : peak rate of Adam.
    epochs : passes over the training images. None is the paper's rule, 100 up to 4 shots and 200 from 8 on, where
        shots are the images of the largest class: in a few-shot split every class has that many, or all it has.
    batch_size : images a step.
    weight_decay : L2 decay, added to the gradient.
    residual : what is trained: "text", "image" (one row, added to every image before it is normalised) or "both".
    logit_scale : the multiplier of the cosines; a checkpoint has its own, `FeatureCache.provenance.logit_scale`.
    random_state : of the order of the images; an int is the seed itself, as `taskres fit --seeds` takes it.
    device : to compute on: "auto", "cpu", "cuda", "mps".

    Attributes
    ----------
    classes_ : (C,) sorted.
    n_features_in_ : D.
    text_features_ : (C, D) float32, un-normalised: the base.
    residual_ : (C, D) float32; zero where the image side alone is trained.
    image_residual_ : (D,) float32, or None where the text side alone is trained.
    alpha_, logit_scale_ : as they were when it was fitted.
    temperature_ : by which logits are divided to become probabilities; 1 after `fit`, which sees no val images.
    loss_curve_ : the mean loss of each epoch; an estimator from a run has none.

    Notes
    -----
    Images `X` (N, D) are un-normalised features of the encoder that made `text_features`; everything is computed in
    float32. An image of zeros has no direction: `fit` leaves it out and warns, and its logits are 0, each class as
    probable as the others. Source: Yu et al., CVPR 2023.
    """

    def __init__(
        self,
        text_features: ArrayLike | None = None,
        *,
        alpha: float = 0.5,
        lr: float = 2e-3,
        epochs: int | None = None,
        batch_size: int = 256,
        weight_decay: float = 5e-4,
        residual: Residual = "text",
        logit_scale: float = 100.0,
        random_state: int | np.random.RandomState | None = 0,
        device: str = "auto",
    ) -> None:
        self.text_features = text_features
        self.alpha = alpha
        self.lr = lr
        self.epochs = epochs
        self.batch_size = batch_size
        self.weight_decay = weight_decay
        self.residual = residual
        self.logit_scale = logit_scale
        self.random_state = random_state
        self.device = device

    @classmethod
    def from_run(cls, folder: str | Path) -> Self:
        """Return the classifier of a run, fitted, its temperature included; raises RunError where there is none.

        Its classes are the class names, sorted, and so are the rows of all that it holds. Its parameters are those that
        the run was fitted with, or came to where it chose; text_features is its base.
        """
        run, folder = read_classifier(Path(folder)), Path(folder)
        names = np.array(run.classnames)
        order = np.argsort(names, kind="stable")  # (C,)
        estimator = cls(run.base[order], **_parameters(run, folder))
        estimator.classes_, estimator.n_features_in_ = names[order], run.base.shape[1]
        estimator.text_features_, estimator.residual_ = run.base[order], run.residual[order]
        estimator.image_residual_, estimator.alpha_ = run.image_residual, run.alpha
        estimator.logit_scale_, estimator.temperature_ = run.provenance.logit_scale, run.temperature
        return estimator

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Train the residual on image features (N, D), un-normalised, and what they are (N,), and return the estimator.

        Raises
        ------
        ValueError : a parameter that cannot be used, a single class, no image with a direction, or text_features of
            other classes, of another width or without direction.
        FitError : the loss became NaN or infinite.
        """
        image_features, y = validate_data(self, X, y, **AS_TENSORS_NEED)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise EstimatorError(f"y has 1 class, {self.classes_.tolist()[0]!r}; expected at least 2 to tell apart")
        image_features, labels = _with_direction(image_features, labels)
        base, recipe = self._base(image_features, labels), self._recipe()
        epochs = recipe.epochs_for(int(np.bincount(labels).max()))
        training = TrainingSet.from_features(image_features, labels)
        task = FitTask(training, recipe, epochs, _seed(self.random_state), base=base)
        (fit,) = fit_residuals([task], self.logit_scale, choose_device(self.device))
        self.text_features_, self.residual_, self.image_residual_ = base, fit.residual, fit.image_residual
        self.alpha_, self.logit_scale_, self.temperature_ = fit.alpha, self.logit_scale, 1.0
        self.loss_curve_ = fit.losses
        return self

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Return the class (N,) of each image."""
        places = [cosines.argmax(dim=-1).cpu().numpy() for cosines in self._cosines(X)]
        classes: np.ndarray = self.classes_[np.concatenate(places)]
        return classes

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Return the probability (N, C) of each class, calibrated where the temperature of a run is known."""
        tempered = (self.logit_scale_ / self.temperature_ * cosines for cosines in self._cosines(X))
        return np.concatenate([piece.softmax(dim=-1).cpu().numpy() for piece in tempered])

    def decision_function(self, X: ArrayLike) -> np.ndarray:
        """Return the logits (N, C), without temperature; of two classes the second's less the first's (N,)."""
        found = np.concatenate([(self.logit_scale_ * cosines).cpu().numpy() for cosines in self._cosines(X)])
        return found if len(self.classes_) > 2 else found[:, 1] - found[:, 0]

    def _cosines(self, X: ArrayLike) -> Iterator[Tensor]:
        """Yield the cosines (n, C) of one piece of the images after another; 0 for an image without direction."""
        check_is_fitted(self)
        image_features = validate_data(self, X, reset=False, **AS_TENSORS_NEED)
        device = choose_device(self.device)
        head = Head.of_arrays(
            self.text_features_, self.logit_scale_, self.residual_, self.image_residual_, self.alpha_
        ).to(device)
        for rows in gen_batches(len(image_features), PIECE):
            images = torch.from_numpy(image_features[rows]).to(device)
            yield head.cosines(images).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)  # (n, C)

    def _base(self, image_features: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return the base (C, D) that the parameters say, an array of its own."""
        shape = len(self.classes_), image_features.shape[1]
        base = _class_means(image_features, labels, shape[0]) if self.text_features is None else self._regular(shape)
        directed = _has_direction(base)
        if not directed.all():
            name = "the mean of the images" if self.text_features is None else "the row of text_features"
            unusable = self.classes_.tolist()[directed.argmin()]
            raise EstimatorError(f"{name} of class {unusable!r} has no direction: it is all zero, or beyond float32")
        return base

    def _regular(self, shape: tuple[int, int]) -> np.ndarray:
        """Return text_features as (C, D)."""
        need = {**AS_TENSORS_NEED, "allow_nd": True, "copy": True}
        text: np.ndarray = check_array(self.text_features, input_name="text_features", **need)
        base = regular_base(text) if text.ndim == 3 else text
        if base.shape != shape:
            raise EstimatorError(
                f"text_features has shape {text.shape}, expected {shape} or ({shape[0]}, T, {shape[1]}): a row for "
                "each class of y in sorted order, as wide as X"
            )
        return base

    def _recipe(self) -> Recipe:
        """Return the parameters as a recipe; raises what scikit-learn's users expect of one that cannot be used."""
        for name in ("alpha", "lr", "weight_decay", "logit_scale"):
            check_scalar(getattr(self, name), name, Real)
        for name in ("batch_size", *(() if self.epochs is None else ("epochs",))):
            check_scalar(getattr(self, name), name, Integral)
        if not 0 < self.logit_scale < float("inf"):
            raise EstimatorError(f"logit_scale must be a positive number, got {self.logit_scale}")
        names = ("alpha", "lr", "epochs", "batch_size", "weight_decay", "residual")
        try:
            return Recipe(**{name: getattr(self, name) for name in names})
        except OptionError as error:
            raise EstimatorError(str(error)) from error


def _parameters(run: Classifier, folder: Path) -> dict[str, Any]:
    """Return the parameters, beside text_features, of an estimator that was fitted as a run was."""
    recipe, lr, weight_decay = run.recipe, run.recipe.lr, run.recipe.weight_decay
    if recipe.lrs or recipe.weight_decays:
        chosen = read_metrics(folder if folder.is_dir() else folder.parent).chosen
        if chosen is None:
            raise RunError(f"{folder / METRICS_FILE} does not say what was chosen; fit the run again")
        lr, weight_decay = chosen.lr, chosen.weight_decay
    same = {name: getattr(recipe, name) for name in ("epochs", "batch_size", "residual")}
    how = {"alpha": run.alpha, "lr": lr, "weight_decay": weight_decay}
    return {**how, **same, "logit_scale": run.provenance.logit_scale, "random_state": run.seed}


def _class_means(image_features: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Return the mean (C, D) of the images of each class, un-normalised as they are; zero for a class without any."""
    means = np.zeros((classes, image_features.shape[1]), np.float32)
    for label in np.unique(labels):
        means[label] = image_features[labels == label].mean(axis=0, dtype=np.float64)
    return means


def _with_direction(image_features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the images that have a direction, with their labels; a warning names the first of the others."""
    directed = _has_direction(image_features)
    if directed.all():
        return image_features, labels
    if not directed.any():
        raise EstimatorError("every row of X is zero, or beyond float32, and has no direction to learn from")
    count, first = len(directed) - directed.sum(), directed.argmin()
    warnings.warn(f"{count} rows of X, row {first} first, have no direction and are left out", stacklevel=3)
    return image_features[directed], labels[directed]


def _has_direction(features: np.ndarray) -> np.ndarray:
    """Return whether each row (.., D) has a length that is neither zero nor infinite in float32."""
    squares = np.einsum("nd,nd->n", features, features)  # without a second array of the features' size
    directed: np.ndarray = (squares > 0) & np.isfinite(squares)
    return directed


def _seed(random_state: int | np.random.RandomState | None) -> int:
    """Return the seed of a fit: an int is the seed itself, a generator draws one."""
    generator = check_random_state(random_state)
    if isinstance(random_state, int | np.integer):
        return int(random_state)
    return int(generator.randint(np.iinfo(np.int32).max))
