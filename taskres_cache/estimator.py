"""Stage two as a scikit-learn estimator: the same training loop and recipe, for features in memory.

Axes: N images, C classes, T templates, D embedding.
"""

from __future__ import annotations  # keeps the name ArrayLike in signatures that help() shows

import warnings
from collections.abc import Iterator
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils import check_array, check_random_state, check_scalar, gen_batches
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from taskres_cache.caches.contents import regular_base
from taskres_cache.errors import EstimatorError, OptionError, RunError
from taskres_cache.heads.head import Head
from taskres_cache.heads.kinds import CosineHead
from taskres_cache.methods.task_residual.loop import fit_residuals
from taskres_cache.methods.task_residual.task import FitTask
from taskres_cache.methods.training_sets import TrainingSet, class_means
from taskres_cache.recipe import Recipe, Residual
from taskres_cache.runs.classifier import MethodClassifier, ResidualClassifier
from taskres_cache.runs.finding import METRICS_FILE
from taskres_cache.runs.run import read_classifier, read_metrics
from taskres_cache.system.devices import choose_device

CHUNK = 4096  # images per call of the head
ARRAY_CHECKS: dict[str, Any] = {"dtype": np.float32, "order": "C", "force_writeable": True}


class TaskResClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Cosine classifier with weights `text_features + alpha * residual`, of which the residual is trained.

    Parameters
    ----------
    text_features : array-like of shape (C, D) or (C, T, D), optional
        Un-normalised, classes in the order of `classnames`; the mean over templates is used. None for the mean of the
        training features of each class, which needs no text.
    classnames : array-like of shape (C,), optional
        The class of each row of text_features; labels are names, or positions in it. None for the sorted labels.
    alpha : float, default 0.5
        Weight of the residual. Its effect depends on the size of the base's coordinates: the paper's 0.5 is right for
        about 0.3 per coordinate, as in OpenAI's text features.
    lr : float, default 2e-3
        Peak learning rate of Adam.
    epochs : int, optional
        Passes over the training images. None for the paper's rule: 100 up to 4 shots, 200 from 8 shots on, where shots
        are the images of the largest class.
    batch_size : int, default 256
        Images per step.
    weight_decay : float, default 5e-4
        L2 weight decay, added to the gradient.
    residual : {"text", "image", "both"}, default "text"
        What is trained; "image" is one row, added to all image features before they are normalised.
    logit_scale : float, default 100.0
        Multiplier of the cosines; that of a checkpoint is `FeatureCache.provenance.logit_scale`.
    random_state : int, RandomState or None, default 0
        Seed of the order of the images; an int is the seed itself, as in `taskres fit --seeds`.
    device : str, default "auto"
        "auto", "cpu", "cuda" or "mps".

    Attributes
    ----------
    classes_ : ndarray of shape (C,)
        Sorted labels.
    classnames_ : ndarray of shape (C,) or None
        Class names in the order of their positions; None without `classnames`.
    n_features_in_ : int
        D.
    head_ : Head
        The classifier, for classes in the order of `classes_`.
    text_features_ : ndarray of shape (C, D), float32
        The base, un-normalised.
    residual_ : ndarray of shape (C, D), float32
        Zero if only the image side is trained.
    image_residual_ : ndarray of shape (D,), float32, or None
        None if only the text side is trained.
    alpha_, logit_scale_ : float
        As used in the fit.
    temperature_ : float
        Divides the logits of probabilities; 1 after `fit`, which has no validation images.
    loss_curve_ : tuple of float
        Mean loss of each epoch; missing in an estimator made from a run.

    Notes
    -----
    `X` (N, D) holds un-normalised image features of the encoder that made `text_features`. All computations are in
    float32. A row of zeros has no direction: `fit` leaves it out with a warning, and it gets equal probabilities for
    all classes. Source: Yu et al., Task Residual for Tuning Vision-Language Models, CVPR 2023.

    Examples
    --------
    >>> from taskres_cache import FeatureCache, TaskResClassifier
    >>> cache = FeatureCache("cache/glyph-clip-bundled/digits.h5")
    >>> scale = cache.provenance.logit_scale
    >>> classifier = TaskResClassifier(cache.text_features, alpha=2.0, logit_scale=scale, random_state=1)
    >>> classifier.fit(*cache.train(shots=16, seed=1)).score(*cache.test())
    0.9805...
    """

    def __init__(
        self,
        text_features: ArrayLike | None = None,
        *,
        classnames: ArrayLike | None = None,
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
        self.classnames = classnames
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
        """Return a run as a fitted estimator, with its temperature.

        Classes are the class names, sorted; `score` also takes positions, as a cache has them. Parameters are those
        that the run used or chose; text_features is its base. A run of another method predicts with its own head.

        Parameters
        ----------
        folder : str or Path
            A run folder, or its `classifier.safetensors`.

        Raises
        ------
        RunError
            There is no run, or it is damaged.

        Examples
        --------
        >>> from taskres_cache import TaskResClassifier
        >>> folder = "runs/glyph-clip-bundled/digits/taskres-regular-alpha2/shots_16/seed_1"
        >>> TaskResClassifier.from_run(folder).get_params()["alpha"]
        2.0
        """
        run, folder = read_classifier(Path(folder)), Path(folder)
        names = np.array(run.classnames)
        order = np.argsort(names, kind="stable")  # (C,)
        if isinstance(run, MethodClassifier):
            scale, seed = run.provenance.logit_scale, run.seed
            estimator = cls(None, classnames=run.classnames, logit_scale=scale, random_state=seed)
        else:
            estimator = cls(run.base, classnames=run.classnames, **_parameters(run, folder))
            estimator.text_features_, estimator.residual_ = run.base[order], run.residual[order]
            estimator.image_residual_, estimator.alpha_ = run.image_residual, run.alpha
        estimator.classnames_, estimator.rows_ = names, order
        estimator.classes_, estimator.n_features_in_ = names[order], run.head.width
        estimator.head_ = run.head.of_classes(order)
        estimator.logit_scale_, estimator.temperature_ = run.provenance.logit_scale, run.temperature
        return estimator

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Train the residual.

        Parameters
        ----------
        X : array-like of shape (N, D)
            Un-normalised image features.
        y : array-like of shape (N,)
            Labels; with `classnames`, names or positions in it.

        Returns
        -------
        TaskResClassifier
            The estimator itself.

        Raises
        ------
        ValueError
            A parameter is invalid, there is only one class, no image has a direction, or text_features has other
            classes, another width or a row without direction, or a label is not in classnames.
        FitError
            The loss became NaN or infinite.
        """
        image_features, y = validate_data(self, X, y, **ARRAY_CHECKS)
        check_classification_targets(y)
        labels = self._numbered(np.asarray(y))
        if len(self.classes_) < 2:
            raise EstimatorError(f"y has 1 class, {self.classes_.tolist()[0]!r}; expected at least 2")
        image_features, labels = _drop_zero_rows(image_features, labels)
        base, recipe = self._base(image_features, labels), self._recipe()
        epochs = recipe.epochs_for(int(np.bincount(labels).max()))
        training = TrainingSet.from_features(image_features, labels)
        task = FitTask(training, recipe, epochs, _seed(self.random_state), base=base)
        (fit,) = fit_residuals([task], self.logit_scale, choose_device(self.device))
        self.text_features_, self.residual_, self.image_residual_ = base, fit.residual, fit.image_residual
        self.alpha_, self.logit_scale_, self.temperature_ = fit.alpha, self.logit_scale, 1.0
        self.head_: Head = CosineHead.of_arrays(base, self.logit_scale, fit.residual, fit.image_residual, fit.alpha)
        self.loss_curve_ = fit.losses
        return self

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Return the predicted class (N,) of each image."""
        columns = self._columns(X)
        classes: np.ndarray = self.classes_[columns]
        return classes

    def score(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Return the accuracy from 0 to 1; with `classnames`, labels are names or positions, whatever `fit` was given.

        Raises
        ------
        ValueError
            A label is not in `classnames`.
        """
        labels, columns = np.asarray(y), self._columns(X)
        if self.classnames_ is None or self.rows_ is None or _are_integers(labels) == _are_integers(self.classes_):
            return float(accuracy_score(labels, self.classes_[columns], sample_weight=sample_weight))
        positions = labels if _are_integers(labels) else _positions(labels, self.classnames_)
        _refuse_positions_beyond(positions, len(self.classnames_))
        return float(accuracy_score(positions, self.rows_[columns], sample_weight=sample_weight))

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Return the probabilities (N, C); they are calibrated if the estimator is made from a run."""
        check_is_fitted(self)
        logits = (self.head_.scale / self.temperature_ * scores for scores in self._scores(X))
        return np.concatenate([chunk.softmax(dim=-1).cpu().numpy() for chunk in logits])

    def decision_function(self, X: ArrayLike) -> np.ndarray:
        """Return the logits (N, C) without temperature; for two classes their difference (N,), second minus first."""
        check_is_fitted(self)
        logits = np.concatenate([(self.head_.scale * scores).cpu().numpy() for scores in self._scores(X)])
        return logits if len(self.classes_) > 2 else logits[:, 1] - logits[:, 0]

    def _columns(self, X: ArrayLike) -> np.ndarray:
        """Return the position of the predicted class (N,) in `classes_`."""
        return np.concatenate([scores.argmax(dim=-1).cpu().numpy() for scores in self._scores(X)])

    def _numbered(self, y: np.ndarray) -> np.ndarray:
        """Set the classes, and return the position (N,) of each label in `classes_`."""
        if self.classnames is None:
            self.classnames_: np.ndarray | None = None
            self.rows_: np.ndarray | None = None
            self.classes_, first, labels = np.unique(y, return_index=True, return_inverse=True)
            if self.text_features is not None and not _are_numbers(y) and (np.diff(first) < 0).any():
                warnings.warn(
                    "y has class names, and the rows of text_features are taken to be in sorted order of the names "
                    f"({', '.join(map(str, self.classes_[:3]))}, ...); pass classnames= to say which row is which",
                    stacklevel=3,
                )
            return np.asarray(labels)
        names = np.asarray(self.classnames)
        if names.ndim != 1 or len(set(names.tolist())) < names.size:
            raise EstimatorError(f"classnames has shape {names.shape}, expected one distinct name per class")
        self.classnames_ = names
        if _are_integers(y) and not _are_integers(names):
            _refuse_positions_beyond(y, len(names))
            self.classes_ = self.rows_ = np.arange(len(names))
            return y
        positions = _positions(y, names)
        self.rows_ = np.argsort(names, kind="stable")  # (C,)
        self.classes_ = names[self.rows_]
        columns: np.ndarray = np.argsort(self.rows_)[positions]
        return columns

    def _scores(self, X: ArrayLike) -> Iterator[Tensor]:
        """Yield the scores (n, C) of one chunk of images at a time; 0 for an image without direction."""
        check_is_fitted(self)
        image_features = validate_data(self, X, reset=False, **ARRAY_CHECKS)
        device = choose_device(self.device)
        head = self.head_.to(device)
        for rows in gen_batches(len(image_features), CHUNK):
            images = torch.from_numpy(image_features[rows]).to(device)
            yield head.scores(images).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)  # (n, C)

    def _base(self, image_features: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return the base (C, D) as a new array."""
        shape = len(self.classes_), image_features.shape[1]
        base = class_means(image_features, labels, shape[0]) if self.text_features is None else self._regular(shape)
        directed = _has_direction(base)
        if not directed.all():
            name = "the mean of the images" if self.text_features is None else "the row of text_features"
            unusable = self.classes_.tolist()[directed.argmin()]
            raise EstimatorError(f"{name} of class {unusable!r} has no direction: it is zero, or too large for float32")
        return base

    def _regular(self, shape: tuple[int, int]) -> np.ndarray:
        """Return text_features as (C, D)."""
        checks = {**ARRAY_CHECKS, "allow_nd": True, "copy": True}
        text: np.ndarray = check_array(self.text_features, input_name="text_features", **checks)
        base = regular_base(text) if text.ndim == 3 else text
        if base.shape != shape:
            raise EstimatorError(
                f"text_features has shape {text.shape}, expected {shape} or ({shape[0]}, T, {shape[1]}): one row per "
                f"class {'of y in sorted order' if self.rows_ is None else 'in classnames'}, as wide as X"
            )
        return base if self.rows_ is None else base[self.rows_]

    def _recipe(self) -> Recipe:
        """Return the parameters as a recipe; raises TypeError or ValueError for an invalid one, as in scikit-learn."""
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


def _are_integers(labels: np.ndarray) -> bool:
    return labels.dtype.kind in "iu"


def _are_numbers(labels: np.ndarray) -> bool:
    return labels.dtype.kind in "iufb" or all(isinstance(label, Real | np.bool_) for label in labels.tolist())


def _positions(labels: np.ndarray, names: np.ndarray) -> np.ndarray:
    """Return the position (N,) of each label in the names; raises EstimatorError for an unknown one."""
    position_of = {name: position for position, name in enumerate(names.tolist())}
    unknown = [label for label in labels.tolist() if label not in position_of]
    if unknown:
        raise EstimatorError(f"label {unknown[0]!r} is not in classnames ({', '.join(map(str, names[:3]))}, ...)")
    return np.array([position_of[label] for label in labels.tolist()], np.int64)


def _refuse_positions_beyond(positions: np.ndarray, classes: int) -> None:
    if len(positions) and not 0 <= positions.min() <= positions.max() < classes:
        raise EstimatorError(
            f"labels are positions from {positions.min()} to {positions.max()}, expected 0 to {classes - 1}: there are "
            f"{classes} class names"
        )


def _parameters(run: ResidualClassifier, folder: Path) -> dict[str, Any]:
    """Return the parameters that fit the run again, without text_features."""
    recipe, lr, weight_decay = run.recipe, run.recipe.lr, run.recipe.weight_decay
    if recipe.lrs or recipe.weight_decays:
        chosen = read_metrics(folder if folder.is_dir() else folder.parent).chosen
        if chosen is None:
            raise RunError(f"{folder / METRICS_FILE} does not record what was chosen; fit the run again")
        lr, weight_decay = chosen.lr, chosen.weight_decay
    same = {name: getattr(recipe, name) for name in ("epochs", "batch_size", "residual")}
    how = {"alpha": run.alpha, "lr": lr, "weight_decay": weight_decay}
    return {**how, **same, "logit_scale": run.provenance.logit_scale, "random_state": run.seed}


def _drop_zero_rows(image_features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the images that have a direction, and their labels; a warning names the first one left out."""
    directed = _has_direction(image_features)
    if directed.all():
        return image_features, labels
    if not directed.any():
        raise EstimatorError("no row of X has a direction: all are zero, or too large for float32")
    count, first = len(directed) - directed.sum(), directed.argmin()
    warnings.warn(f"{count} rows of X have no direction and are left out, the first is row {first}", stacklevel=3)
    return image_features[directed], labels[directed]


def _has_direction(features: np.ndarray) -> np.ndarray:
    """Return for each row (.., D) whether its length is neither zero nor infinite in float32."""
    squares = np.einsum("nd,nd->n", features, features)  # needs no second array of this size
    directed: np.ndarray = (squares > 0) & np.isfinite(squares)
    return directed


def _seed(random_state: int | np.random.RandomState | None) -> int:
    """Return the seed of a fit: an int is the seed itself, a generator draws one."""
    generator = check_random_state(random_state)
    if isinstance(random_state, int | np.integer):
        return int(random_state)
    return int(generator.randint(np.iinfo(np.int32).max))
