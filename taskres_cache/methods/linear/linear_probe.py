"""Linear probe: logistic regression on raw image features, as CoOp compares with.

    logits = f w + b
    loss = mean cross-entropy + |w|^2 / (2 C N)             # b is free; scikit-learn's LogisticRegression

Source: Zhou et al., "Learning to prompt for vision-language models", IJCV 2022 (KaiyangZhou/CoOp,
lpclip/linear_probe.py), after Radford et al., "Learning transferable visual models from natural language supervision",
ICML 2021. Seven values of C are compared on validation images, from 1e6 to 1e-6. Then eight bisection steps on log10 C
start from 0.1 and 10 times the best: both ends are compared, and the half of the better end is kept. L-BFGS runs for at
most 1000 iterations. There is no text and no augmented view, so it is far below zero-shot at one shot.

Features are centred and, with fewer images than dimensions, rotated into the space that the images span. Neither
changes the optimum: b is free, and a weight outside that space only adds to the penalty. Both make L-BFGS faster, as
does the start of each fit from that with the next smaller C. Nothing is fitted twice, so 15 fits serve 7 + 16.

Deviations:
- Values of C are ranked by validation accuracy, then by lower loss. CoOp takes the first of equally accurate values,
  which is the largest C in the first round and the smaller one in the bisection.
- Without validation images C is 0.316, the example of CLIP's README, where CoOp has no rule.
- CoOp draws its own ten splits per number of shots; here the cache's splits are used.
- Two classes have two rows of weights. scikit-learn has one there, so that its C means twice ours.
- A class without training images gets zero weights and bias, the mean of the other classes' logits, which is never
  greater than their maximum.

Axes: N images, D embedding, R size of the space that the images span, C classes (in formulas, `C` is the inverse of the
penalty).
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize

from taskres_cache.errors import FitError
from taskres_cache.heads.kinds import LinearHead
from taskres_cache.methods.few_shot import FewShotTask
from taskres_cache.methods.method import Adapted, Method, Trial, best_trial


@dataclass(frozen=True)
class LinearProbeOptions:
    """Hyper-parameters of the linear probe.

    Parameters
    ----------
    exponents : tuple of float
        log10 of the values of C of the first round.
    bisections : int, default 8
        Steps of the second round.
    inverse_penalty : float, default 0.316
        C without validation images.
    iterations : int, default 1000
        At most that many iterations of L-BFGS.
    tolerance : float, default 1e-5
        L-BFGS stops when no element of the gradient is greater, or the loss falls by less than its square.
    """

    exponents: tuple[float, ...] = (6.0, 4.0, 2.0, 0.0, -2.0, -4.0, -6.0)
    bisections: int = 8
    inverse_penalty: float = 0.316
    iterations: int = 1000
    tolerance: float = 1e-5


def fit(task: FewShotTask, options: LinearProbeOptions) -> Adapted:
    """Fit a logistic regression, with C chosen by the validation images.

    Raises
    ------
    FitError
        Features or the solution are not finite.
    """
    probe = _Probe(task, options)
    if task.val is None or len(task.val) == 0:
        exponent = float(np.log10(options.inverse_penalty))
        return Adapted(probe.head(exponent), {"C": options.inverse_penalty})
    images, labels = torch.from_numpy(task.val.image_features), torch.from_numpy(task.val.labels)
    trials: dict[float, Trial] = {}

    def best_of(*exponents: float) -> float:
        for exponent in sorted(set(exponents) - set(trials)):
            accuracy, negative_loss = probe.head(exponent).score(images, labels)
            trials[exponent] = Trial({"C": 10.0**exponent}, accuracy, -negative_loss)
        return exponents[best_trial([trials[exponent] for exponent in exponents])]

    best = best_of(*options.exponents)
    left, right = best - 1, best + 1
    for _ in range(options.bisections):
        best, middle = best_of(left, right), (left + right) / 2
        left, right = sorted((best, middle))
    ranked = sorted(trials.values(), key=lambda trial: trial.rank, reverse=True)
    return Adapted(probe.head(best), {"C": 10.0**best}, tuple(ranked))


class _Probe:
    """The training set in the coordinates of the fits, and the solution of each C so far."""

    def __init__(self, task: FewShotTask, options: LinearProbeOptions) -> None:
        features = task.train.image_features
        if not np.isfinite(features).all():
            raise FitError("the training features have values that are not finite")
        self._present, self._labels = np.unique(task.train.labels, return_inverse=True)
        self._centre = features.mean(axis=0)
        centred = features - self._centre  # (N, D)
        self._basis = np.linalg.qr(centred.T)[0] if len(centred) < centred.shape[1] else None  # (D, R)
        self._inputs = centred if self._basis is None else centred @ self._basis  # (N, R)
        self._classes, self._options = task.classes, options
        self._solved: dict[float, np.ndarray] = {}

    def head(self, exponent: float) -> LinearHead:
        """Return the head of a C, given as log10."""
        if exponent not in self._solved:
            self._solved[exponent] = self._solve(exponent)
        solution = self._solved[exponent]  # (R + 1, C)
        directions = solution[:-1] if self._basis is None else self._basis @ solution[:-1]  # (D, C)
        weights = np.zeros((self._classes, len(directions)), self._inputs.dtype)
        bias = np.zeros(self._classes, self._inputs.dtype)
        weights[self._present], bias[self._present] = directions.T, solution[-1] - self._centre @ directions
        return LinearHead(torch.from_numpy(weights), torch.from_numpy(bias), "raw")

    def _solve(self, exponent: float) -> np.ndarray:
        """Return weights and bias (R + 1, C) in the coordinates of the fits, in float64."""
        shape = self._inputs.shape[1] + 1, len(self._present)
        smaller = max((one for one in self._solved if one < exponent), default=None)
        start = np.zeros(shape) if smaller is None else self._solved[smaller]
        ridge = 1 / (10.0**exponent * len(self._inputs))
        limits = {"maxiter": self._options.iterations, "gtol": self._options.tolerance, "maxls": 50}
        result = minimize(
            lambda flat: self._loss_and_gradient(flat.reshape(shape), ridge),
            start.ravel(),
            jac=True,
            method="L-BFGS-B",
            options={**limits, "ftol": self._options.tolerance**2},
        )
        if not np.isfinite(result.x).all() or not np.isfinite(result.fun):
            raise FitError(f"the linear probe with C = {10.0**exponent:g} is not finite")
        solution: np.ndarray = result.x.reshape(shape)
        return solution

    def _loss_and_gradient(self, solution: np.ndarray, ridge: float) -> tuple[float, np.ndarray]:
        """Return the loss, and its gradient as a vector, of weights and bias (R + 1, C)."""
        parts, images = solution.astype(self._inputs.dtype), np.arange(len(self._inputs))
        logits = self._inputs @ parts[:-1] + parts[-1]  # (N, C)
        logits -= logits.max(axis=1, keepdims=True)
        of_label = logits[images, self._labels]
        wrong = np.exp(logits, out=logits)
        totals = wrong.sum(axis=1)
        loss = float(np.mean(np.log(totals) - of_label, dtype=np.float64))
        wrong /= totals[:, None]
        wrong[images, self._labels] -= 1
        wrong /= len(images)
        gradient = np.vstack([self._inputs.T @ wrong, wrong.sum(axis=0)]).astype(np.float64)
        gradient[:-1] += ridge * solution[:-1]
        return loss + ridge / 2 * float((solution[:-1] ** 2).sum()), gradient.ravel()


METHOD = Method(
    name="linear-probe",
    fit=fit,
    options=LinearProbeOptions(),
    trains="a logistic regression on raw image features",
    chooses="C by val; 0.316 without",
    paper="Zhou et al., Learning to prompt for vision-language models, IJCV 2022",
    needs_text=False,
    reads_text=False,
)
