"""ProKeR: kernel ridge regression of what the text classifier misses.

    K(x, x') = exp(-beta (1 - <x, x'>))                     # normalised features; rows X: views of the images
    A = (K / lambda + I)^-1 (Y - X T')                      # cosines with the text T, without the logit scale
    logits = logit_scale (f T' + K(f, X) A)

Source: Bendou et al., "ProKeR: a kernel perspective on few-shot adaptation of large vision-language models", CVPR 2025.
Its repository was not available; two independent ports agree (xyycyc/task-text-coordinates-resources, README;
iamwangyabin/tfclip, feature_methods.py). Ten views per image are rows; beta and lambda are chosen by a grid on
validation images. One eigendecomposition per beta serves all lambdas.

Deviations:
- One grid for all data sets; the authors have one of 200 to 2000 points per data set. It covers their ranges.
- All logits are multiplied by `logit_scale`, so that the text part is CLIP's; the ranking of classes is the same.
- Without validation images: beta 1 and lambda 1. The sources have no rule for this.
- Views are dropped until at most `most_rows` rows are left. If the images alone are more, `most_rows` of them, balanced
  over the classes, are the centres Z of the kernel, and all images stay targets (subset of regressors):
  A = lambda (K_zx K_xz + lambda K_zz)^-1 K_zx (Y - X T'), which is the formula above for Z = X. The matrix never has
  more than `most_rows` squared elements, where the authors' has (10 K C) squared: 30 GiB for 16 shots of SUN397.

Axes: R rows (views of images), M centres, N validation images, C classes, D embedding.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import LinAlgError, eigh

from taskres_cache.errors import FitError
from taskres_cache.heads.head import share_correct
from taskres_cache.heads.kinds import MemoryHead
from taskres_cache.methods.few_shot import FewShotTask, unit
from taskres_cache.methods.method import Adapted, Method, Setting, Trial, best_trial

BEST_KEPT = 50  # trials
JITTER = 1e-6  # added to the kernel of centres, which is singular for smooth kernels


@dataclass(frozen=True)
class ProkerOptions:
    """Hyper-parameters of ProKeR.

    Parameters
    ----------
    betas : tuple of float
        Sharpness of the kernel; each is tried.
    lambdas : tuple of float
        Ridge; each is tried with each beta.
    most_rows : int, default 2048
        Limit of the rows of the kernel.
    """

    betas: tuple[float, ...] = (0.1, 0.5, 2.0, 5.0, 10.0)
    lambdas: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
    most_rows: int = 2048


def fit(task: FewShotTask, options: ProkerOptions) -> Adapted:
    """Solve for each beta and lambda, and keep the best on the validation images.

    Raises
    ------
    FitError
        The kernel has values that are not finite.
    """
    rows, labels = _rows(task, options.most_rows)
    centres = rows if len(rows) <= options.most_rows else rows[_balanced(labels, options.most_rows, task.seed)]
    missed = np.eye(task.classes)[labels] - rows @ task.text.ensemble.T  # (R, C)
    if task.val is None or len(task.val) == 0:
        solved = _solve(rows, centres, missed, 1.0)
        return Adapted(_head(task, centres, solved.values(1.0), 1.0), {"beta": 1.0, "lambda": 1.0})
    queries, val_labels = unit(task.val.image_features), torch.from_numpy(task.val.labels)
    zero_shot = queries @ task.text.ensemble.T  # (N, C)
    trials: list[Trial] = []
    best: Trial | None = None
    head = None
    for beta in options.betas:
        solved = _solve(rows, centres, missed, beta)
        near = _kernel(queries, centres, beta) @ solved.vectors  # (N, M)
        logits = [zero_shot + (near * solved.shrinkage(ridge)) @ solved.target for ridge in options.lambdas]
        results = [_score(task.logit_scale * torch.from_numpy(one), val_labels) for one in logits]
        pairs = zip(options.lambdas, results, strict=True)
        tried = [Trial({"beta": beta, "lambda": ridge}, *result) for ridge, result in pairs]
        trials += tried
        leader = tried[best_trial(tried)]
        if best is None or leader.rank > best.rank:
            best, ridge = leader, options.lambdas[best_trial(tried)]
            head = _head(task, centres, solved.values(ridge), beta)
    assert best is not None
    assert head is not None
    chosen: dict[str, Setting] = best.settings
    ranked = sorted(trials, key=lambda trial: trial.rank, reverse=True)
    return Adapted(head, chosen, tuple(ranked[:BEST_KEPT]))


@dataclass(frozen=True)
class _Solved:
    """The system of one beta in the basis of its eigenvectors, ready for any lambda, in float64."""

    spectrum: np.ndarray  # (M,)
    vectors: np.ndarray  # (M, M)
    target: np.ndarray  # (M, C)

    def shrinkage(self, ridge: float) -> np.ndarray:
        """Return the factor (M,) of each eigenvector."""
        factors: np.ndarray = ridge / (self.spectrum + ridge)
        return factors

    def values(self, ridge: float) -> np.ndarray:
        """Return the weights A (M, C)."""
        weights: np.ndarray = (self.vectors * self.shrinkage(ridge)) @ self.target
        return weights


def _solve(rows: np.ndarray, centres: np.ndarray, missed: np.ndarray, beta: float) -> _Solved:
    """Return the system of rows (R, D), centres (M, D) and targets (R, C)."""
    between = _kernel(centres, rows, beta)  # (M, R)
    try:
        if centres is rows:
            spectrum, vectors = eigh(between, driver="evd")
            target = missed
        else:
            of_centres = _kernel(centres, centres, beta) + JITTER * np.eye(len(centres))
            spectrum, vectors = eigh(between @ between.T, of_centres, driver="gvd")
            target = between @ missed
    except (ValueError, LinAlgError) as error:
        raise FitError(f"the kernel with beta {beta} has no eigenvectors; are all features finite?") from error
    return _Solved(spectrum.clip(min=0), vectors, vectors.T @ target)


def _kernel(left: np.ndarray, right: np.ndarray, beta: float) -> np.ndarray:
    """Return the kernel (n, m) of normalised features (n, D) and (m, D), in float64 for the solver."""
    kernel: np.ndarray = np.exp(beta * ((left @ right.T).astype(np.float64) - 1))
    return kernel


def _rows(task: FewShotTask, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return normalised rows (R, D), as many views as fit but at least one, and their labels (R,)."""
    views = task.augmented.image_features
    kept = views[: max(1, most // len(task.train))]  # (V, N, D)
    return unit(kept).reshape(-1, kept.shape[2]), np.tile(task.train.labels, len(kept))


def _balanced(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the positions of `count` images, as equally many per class as possible, in their order."""
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    starts = np.searchsorted(labels[by_class], labels[by_class])
    turn = np.argsort(np.arange(len(labels)) - starts, kind="stable")
    return np.sort(by_class[turn[:count]])


def _score(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """Return accuracy in percent and mean cross-entropy."""
    accuracy = share_correct(logits, labels)
    return 100.0 * accuracy, torch.nn.functional.cross_entropy(logits, labels).item()


def _head(task: FewShotTask, centres: np.ndarray, values: np.ndarray, beta: float) -> MemoryHead:
    """Return the head of the centres (M, D) and their weights (M, C)."""
    keys, weights = (torch.from_numpy(np.ascontiguousarray(one, centres.dtype)) for one in (centres, values))
    text, scale = torch.from_numpy(task.text.ensemble), task.logit_scale
    return MemoryHead(text, keys, weights, logit_scale=scale, alpha=scale, beta=beta)


METHOD = Method(
    name="proker",
    fit=fit,
    options=ProkerOptions(),
    trains="a kernel regression on the training images, in closed form",
    chooses="beta and lambda by val",
    paper="Bendou et al., ProKeR: a kernel perspective on few-shot adaptation, CVPR 2025",
    views="narrow",
)
