"""The classifiers that auto chooses from. Each is linear in normalised image features, so that they can be added.

With f the normalised image features, t the normalised base, s the logit scale, all fitted on training images:

    text      zero-shot, s <f, t>, and TaskRes, s <f, w> with w the normalised base + alpha * residual
    gda       s <f, t> + weight * (<f, mu P> - mu P mu' / 2), class means mu, P = D (Z'Z + ridge tr I)^-1, Z the centred
              images and tr their variance tr(Z'Z) / (N - 1)
    logistic  s <f, t> + <x, W> + b, where x = f - mean(f) after whitening by P; W and b minimise
              `strength * sum of cross-entropies + (|W|^2 + |b|^2) / 2`

Sources: TaskRes (Yu et al., CVPR 2023); GDA (Wang et al., ICLR 2024), here on the images alone, with a choice of ridge;
logistic is ours: a logistic regression whose prior is the zero-shot classifier, in GDA's metric.

Without text features, t is the normalised mean image of each class.

Axes: N images, C classes, D embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import numpy as np
import torch
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize

from taskres_cache.heads.kinds import CosineHead
from taskres_cache.methods.few_shot import unit
from taskres_cache.methods.method import Setting
from taskres_cache.methods.search import OPENAI_BASE_RMS, PAPER_ALPHA
from taskres_cache.methods.task_residual.loop import try_residuals
from taskres_cache.methods.task_residual.task import FitTask
from taskres_cache.methods.training_sets import TrainingSet
from taskres_cache.recipe import Recipe

ALPHA_STEP = 4.0
LARGEST_MULTIPLE = 1024.0
RIDGES = (0.1, 1.0)
GDA_WEIGHTS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
STRENGTHS = (100.0, 1000.0)
WHITENING_RIDGE = 0.1


@dataclass(frozen=True)
class Part:
    """Training images, all of a split or those of some folds, and the text.

    Parameters
    ----------
    image_features : ndarray of shape (N, D)
        Un-normalised.
    labels : ndarray of shape (N,), int64
        Positions of the classes.
    base : ndarray of shape (C, D)
        Un-normalised text classifier, or without text the class means of these images.
    base_name : {"zero-shot", "class means"}
        Which of the two.
    logit_scale : float
        Multiplier of the cosines.
    shots, seed : int
        Of the split.
    device : torch.device
        Where TaskRes is trained.
    """

    image_features: np.ndarray
    labels: np.ndarray
    base: np.ndarray
    logit_scale: float
    shots: int
    seed: int
    device: torch.device
    base_name: str = "zero-shot"

    @property
    def zero_shot(self) -> np.ndarray:
        """The zero-shot weights (C, D) of normalised features."""
        weights: np.ndarray = (self.logit_scale * unit(self.base)).astype(self.base.dtype)
        return weights


@dataclass(frozen=True)
class Candidate:
    """A classifier with logits `<f, weights> + bias` of normalised image features f.

    Parameters
    ----------
    family : {"text", "gda", "logistic"}
        At most one classifier of each family is used.
    settings : dict of str to float, int or str
        Its name and hyper-parameters.
    steps : float
        Distance of the hyper-parameters from the defaults of the family; a farther candidate must be likelier.
    weights : ndarray of shape (C, D)
        Of normalised features.
    bias : ndarray of shape (C,)
        Added to the logits.
    """

    family: str
    settings: dict[str, Setting]
    steps: float
    weights: np.ndarray
    bias: np.ndarray

    def logits(self, directions: np.ndarray) -> np.ndarray:
        """Return the logits (N, C) of normalised image features (N, D)."""
        found: np.ndarray = directions @ self.weights.T + self.bias
        return found


def zero_shot(part: Part) -> Candidate:
    """Return the zero-shot classifier, or the nearest class mean."""
    weights = part.zero_shot
    return Candidate("text", {"candidate": part.base_name}, 2.0, weights, np.zeros(len(weights), weights.dtype))


def base_scale(base: np.ndarray) -> float:
    """Return the alpha that moves a base (C, D) as far as the paper's moves OpenAI's text features."""
    return PAPER_ALPHA * float(np.sqrt(np.mean(np.square(base, dtype=np.float64)))) / OPENAI_BASE_RMS


def first_alphas(base: np.ndarray) -> tuple[float, ...]:
    """Return the alphas to start from: the paper's; scaled to the base, 4 and 16 times it, and once if that differs."""
    scaled = base_scale(base)
    far = abs(log(scaled / PAPER_ALPHA)) > log(2)
    return (PAPER_ALPHA, *((_rounded(scaled),) if far else ()), *(_rounded(scaled * one) for one in (4, 16)))


def next_alpha(alphas: Sequence[float], base: np.ndarray) -> float | None:
    """Return the alpha beyond the largest, None at the end of the grid."""
    largest = max(alphas)
    return _rounded(largest * ALPHA_STEP) if largest < LARGEST_MULTIPLE * base_scale(base) else None


def task_residuals(parts: Sequence[Part], alphas: Sequence[float]) -> list[list[Candidate]]:
    """Return the TaskRes classifiers of all parts for each alpha, trained together; without alphas that diverge."""
    sets = [TrainingSet.from_features(part.image_features, part.labels) for part in parts]
    tasks = [
        FitTask(images, Recipe(alpha=alpha), Recipe().epochs_for(part.shots), part.seed, base=part.base)
        for alpha in alphas
        for images, part in zip(sets, parts, strict=True)
    ]
    fits = iter(try_residuals(tasks, parts[0].logit_scale, parts[0].device))
    found = []
    for alpha in alphas:
        fitted = [(next(fits), part) for part in parts]
        if not any(fit.diverged for fit, _ in fitted):
            found.append([_task_residual(part, fit.residual, alpha) for fit, part in fitted])
    return found


def _task_residual(part: Part, residual: np.ndarray, alpha: float) -> Candidate:
    head = CosineHead.of_arrays(part.base, part.logit_scale, residual, alpha=alpha)
    weights = (part.logit_scale * unit(head.weights.numpy())).astype(part.base.dtype)
    steps = 0.0 if alpha == PAPER_ALPHA else max(1.0, abs(log(alpha / base_scale(part.base)) / log(ALPHA_STEP)))
    return Candidate("text", {"candidate": "taskres", "alpha": alpha}, steps, weights, np.zeros_like(weights[:, 0]))


@dataclass(frozen=True)
class Spread:
    """Class means and the spread of the images around them.

    Parameters
    ----------
    means : ndarray of shape (C, D), float64
        Of normalised features; the mean of all images for a class without any.
    scatter : ndarray of shape (D, D) or None
        `Z'Z` of the centred images; None if no class has two different images.
    variance : float
        `tr(Z'Z) / (N - 1)`.
    """

    means: np.ndarray
    scatter: np.ndarray | None
    variance: float

    @classmethod
    def of_images(cls, directions: np.ndarray, labels: np.ndarray, classes: int) -> "Spread":
        """Measure normalised features (N, D)."""
        images = directions.astype(np.float64)
        counts = np.bincount(labels, minlength=classes)
        means = np.zeros((classes, images.shape[1]))
        np.add.at(means, labels, images)
        means[counts > 0] /= counts[counts > 0, None]
        means[counts == 0] = images.mean(axis=0)
        centred = images - means[labels]
        if np.abs(centred).max() < 1e-9:
            return cls(means, None, 0.0)
        scatter = centred.T @ centred
        return cls(means, scatter, float(np.trace(scatter)) / (len(labels) - 1))

    def regularised(self, ridge: float) -> np.ndarray:
        """Return `(Z'Z + ridge tr I) / D` (D, D), the inverse of the precision; the unit matrix without spread."""
        dim = self.means.shape[1]
        if self.scatter is None:
            return np.eye(dim)
        matrix: np.ndarray = (self.scatter + ridge * self.variance * np.eye(dim)) / dim
        return matrix


def usual_weight(spread: Spread, shots: int) -> float:
    """Return the default weight of GDA; it grows with the shots, as those in the logs of its authors."""
    if spread.scatter is None:
        return 10.0  # class means with a unit matrix for P, whose logits are far smaller
    return 0.01 if shots < 4 else 0.1 if shots < 16 else 0.3


def gda(part: Part, spread: Spread, weights: Sequence[float]) -> list[Candidate]:
    """Return Gaussian discriminant analysis added to zero-shot, for each ridge and weight."""
    found = []
    for ridge in RIDGES if spread.scatter is not None else RIDGES[-1:]:
        directions = cho_solve(cho_factor(spread.regularised(ridge)), spread.means.T).T  # (C, D)
        bias = -0.5 * (directions * spread.means).sum(axis=1)
        for weight in weights:
            steps = abs(np.log10(weight / usual_weight(spread, part.shots))) + abs(np.log10(ridge))
            found.append(
                Candidate(
                    "gda",
                    {"candidate": "gda", "weight": weight, "ridge": ridge},
                    float(steps),
                    (part.zero_shot + weight * directions).astype(part.base.dtype),
                    (weight * bias).astype(part.base.dtype),
                )
            )
    return found


def logistic(part: Part, directions: np.ndarray, spread: Spread) -> list[Candidate]:
    """Return logistic regressions of whitened images around zero-shot, for each strength of the data.

    Parameters
    ----------
    part : Part
        What to fit on.
    directions : ndarray of shape (N, D)
        Its normalised image features.
    spread : Spread
        Of the same images.
    """
    present = np.unique(part.labels)  # a class without images keeps its zero-shot logits
    mean = directions.mean(axis=0, dtype=np.float64)
    lower = np.linalg.cholesky(spread.regularised(WHITENING_RIDGE))
    whitened = solve_triangular(lower, (directions - mean).T, lower=True).T  # (N, D)
    size = float(np.sqrt((whitened**2).sum(axis=1).mean())) or 1.0
    whitened = (whitened / size).astype(directions.dtype)
    offsets = directions @ part.zero_shot[present].T  # (N, present)
    targets = np.searchsorted(present, part.labels)
    change = np.zeros((len(present), whitened.shape[1] + 1))
    found = []
    for strength in STRENGTHS:
        change = _logistic_change(whitened, targets, offsets, strength, change)
        weights, bias = part.zero_shot.astype(np.float64), np.zeros(len(part.base))
        unwhitened = solve_triangular(lower, change[:, :-1].T, lower=True, trans="T").T / size
        weights[present] += unwhitened
        bias[present] = change[:, -1] - unwhitened @ mean
        settings: dict[str, Setting] = {"candidate": "logistic", "strength": strength}
        steps = abs(float(np.log10(strength / STRENGTHS[-1])))
        kind = part.base.dtype
        found.append(Candidate("logistic", settings, steps, weights.astype(kind), bias.astype(kind)))
    return found


def _logistic_change(
    images: np.ndarray, targets: np.ndarray, offsets: np.ndarray, strength: float, start: np.ndarray
) -> np.ndarray:
    """Return the weights and, in the last column, biases (C, D + 1) that minimise the penalised cross-entropy."""
    rows, kind = np.arange(len(targets)), images.dtype

    def loss_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        change = flat.reshape(start.shape)
        logits = offsets + images @ change[:, :-1].T.astype(kind) + change[:, -1].astype(kind)
        logits -= logits.max(axis=1, keepdims=True)
        exponents = np.exp(logits)
        totals = exponents.sum(axis=1)
        losses = np.log(totals) - logits[rows, targets]
        slopes = exponents / totals[:, None]
        slopes[rows, targets] -= 1
        gradient = np.column_stack([slopes.T @ images, slopes.sum(axis=0)])
        loss = strength * float(losses.sum(dtype=np.float64)) + 0.5 * float(flat @ flat)
        return loss, (strength * gradient).ravel().astype(np.float64) + flat

    options = {"maxiter": 100, "gtol": 1e-3 * strength**0.5}
    solved = minimize(loss_and_gradient, start.ravel(), jac=True, method="L-BFGS-B", options=options)
    change: np.ndarray = solved.x.reshape(start.shape)
    return change


def _rounded(alpha: float) -> float:
    return float(f"{alpha:.3g}")
