"""How likely candidates make the labels of images that they were not fitted on, and the weights of their sum.

Axes: M judged images, C classes, D embedding, F candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax
from torch.nn.functional import cross_entropy

from taskres_cache.methods.auto.candidates import Candidate
from taskres_cache.methods.temperature import fit_temperature

STEP_PENALTY = 1.0  # nats for each step from the defaults of a family
PRIOR_STRENGTH = 10.0  # of the weights around their prior
WEIGHT_PRIOR = {"text": 2.0, "gda": 2.0, "logistic": 1.0}
SMALLEST_WEIGHT = 0.01


@dataclass(frozen=True)
class Judge:
    """Labelled images that choose.

    Parameters
    ----------
    seen_by : sequence of (int, ndarray)
        Number of a part, and normalised features (.., D) of images outside it.
    labels : ndarray of shape (M,), int64
        Labels of all these images, in order.
    """

    seen_by: Sequence[tuple[int, np.ndarray]]
    labels: np.ndarray

    def judged(self, fitted: Sequence[Candidate]) -> "Judged":
        """Calibrate and score a candidate, given as fitted on each part; the first part is the whole training set."""
        logits = np.concatenate([fitted[part].logits(directions) for part, directions in self.seen_by])
        exact, labels = torch.from_numpy(logits).double(), torch.from_numpy(self.labels)
        temperature = fit_temperature(exact, labels)
        loss = cross_entropy(exact / temperature, labels, reduction="sum").item()
        accuracy = 100.0 * (exact.argmax(dim=1) == labels).double().mean().item()
        penalised = loss + np.log(temperature) ** 2 / 2 + STEP_PENALTY * fitted[0].steps
        return Judged(fitted[0], logits / temperature, temperature, accuracy, loss / len(labels), float(penalised))


@dataclass(frozen=True)
class Judged:
    """A candidate and its result on the images that choose.

    Parameters
    ----------
    candidate : Candidate
        Fitted on the whole training set.
    calibrated : ndarray of shape (M, C)
        Logits of the judged images, divided by the temperature.
    temperature : float
        Fitted on the judged images.
    accuracy, loss : float
        In percent, and the mean cross-entropy of the calibrated logits.
    penalised : float
        Summed cross-entropy with the priors of temperature and hyper-parameters; the lowest of a family is used.
    """

    candidate: Candidate
    calibrated: np.ndarray
    temperature: float
    accuracy: float
    loss: float
    penalised: float


def best_of_families(judged: Sequence[Judged]) -> list[Judged]:
    """Return the best candidate of each family; ties go to fewer steps, then to the first."""
    best: dict[str, Judged] = {}
    for one in judged:
        family = one.candidate.family
        if family not in best or _rank(one) < _rank(best[family]):
            best[family] = one
    return list(best.values())


def _rank(one: Judged) -> tuple[float, float]:
    return round(one.penalised, 9), one.candidate.steps


def weights_of_sum(best: Sequence[Judged], labels: np.ndarray) -> np.ndarray:
    """Return the weights (F,) of calibrated logits in a sum; those that hardly count are zero.

    They are not negative and minimise the summed cross-entropy plus a quadratic penalty around fixed weights: a few
    images can drop a candidate that is far worse, but not decide between candidates that are about as good.
    """
    prior = np.array([WEIGHT_PRIOR[one.candidate.family] for one in best])
    prior /= prior.sum()
    logits = np.stack([one.calibrated for one in best]).astype(np.float64)  # (F, M, C)
    rows = np.arange(len(labels))

    def loss_and_gradient(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logs = log_softmax(np.tensordot(weights, logits, 1), axis=1)
        slopes = np.exp(logs)
        slopes[rows, labels] -= 1
        away = weights - prior
        loss = -logs[rows, labels].sum() + PRIOR_STRENGTH / 2 * (away @ away)
        return loss, (logits * slopes).sum(axis=(1, 2)) + PRIOR_STRENGTH * away

    bounds = [(0.0, None)] * len(best)
    weights: np.ndarray = minimize(loss_and_gradient, prior, jac=True, method="L-BFGS-B", bounds=bounds).x
    return np.where(weights < SMALLEST_WEIGHT * weights.sum(), 0.0, weights)


def information(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return how much calibrated logits (M, C) say about the labels: 0 for chance, 1 for certainty."""
    exact, targets = torch.from_numpy(logits).double(), torch.from_numpy(labels)
    temperature = fit_temperature(exact, targets)
    loss = cross_entropy(exact / temperature, targets).item() + np.log(temperature) ** 2 / (2 * len(labels))
    return float(1 - loss / np.log(logits.shape[1]))


def stratified_folds(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Return a fold for each image; the images of a class are spread over the folds as evenly as possible."""
    rng = np.random.default_rng(seed)
    found = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        found[members] = (np.arange(len(members)) + rng.integers(folds)) % folds
    return found
