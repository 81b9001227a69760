"""TIMO: text guides images and images guide text, without training.

    m_p = <t_p, c_k>                               # prompt p of class k, and the mean image c_k; both normalised
    w_k = normalised sum of a_p t_p,  a = softmax over the prompts of k of gamma m / |m|
    W, b = discriminant analysis of all views of the images, and of every prompt scaled by m_p as one more sample
    logits = alpha f w + f W + b                   # f: normalised image features

Source: Li et al., "Text and image are mutually beneficial: enhancing training-free few-shot classification with CLIP",
AAAI 2025 (lyymuwu/TIMO, main.py, models.py). Ten views per image are samples; gamma is 50 (100 on Flowers, 1 on
ImageNet); alpha is one of 1e-4 to 1e4.

Deviations:
- The authors choose alpha on the whole val split, and on ImageNet on the test set; here it is chosen by the validation
  images of the task. `gammas` with several values is searched there too, as TIMO-S does; its search of the number of
  prompts that become samples is left out, all do.
- The authors add CuPL's sentences to the prompts; ours are those of the cache.
- Logits are multiplied by `min(1, logit_scale / alpha)`, so that they are those of CLIP where text dominates and those
  of the discriminant analysis otherwise; the ranking of classes is the same.
- Without validation images alpha is `logit_scale` divided by GDA's fixed weight for the shots (see there), but no more
  than the largest of `alphas`.
- A class without training images is guided by the mean of its own prompts.

Axes: V views, N images, P prompts of all classes, C classes, D embedding, M validation images.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from taskres_cache.heads.head import share_correct
from taskres_cache.heads.kinds import LinearHead
from taskres_cache.methods.few_shot import FewShotTask, unit
from taskres_cache.methods.linear.gda import ALPHA_OF_SHOTS, discriminants
from taskres_cache.methods.method import Adapted, Method, Setting, Trial, best_trial


@dataclass(frozen=True)
class TimoOptions:
    """Hyper-parameters of TIMO.

    Parameters
    ----------
    alphas : tuple of float
        Weights of the text; each is tried.
    gammas : tuple of float
        Sharpness of the weights of prompts; each is tried, the first is used without validation images.
    """

    alphas: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1e3, 1e4)
    gammas: tuple[float, ...] = (50.0,)


def fit(task: FewShotTask, options: TimoOptions) -> Adapted:
    """Compute text classifiers and the discriminant analysis; choose alpha and gamma on the validation images."""
    views = unit(task.augmented.image_features)  # (V, N, D)
    prompts, owners = unit(task.text.features), task.text.labels
    matches = (prompts * _centres(task, views)[owners]).sum(axis=1)  # (P,)
    rows = [views.reshape(-1, views.shape[2]), prompts * matches[:, None]]
    labels = np.concatenate([np.tile(task.train.labels, len(views)), owners])
    samples, of_samples = torch.from_numpy(np.concatenate(rows)), torch.from_numpy(labels)
    analysis = discriminants(samples.to(task.device), of_samples.to(task.device), task.classes)
    texts = {gamma: _guided_text(prompts, owners, matches, gamma) for gamma in options.gammas}  # (C, D) each
    if task.val is None or len(task.val) == 0:
        weight = next(value for shots, value in ALPHA_OF_SHOTS if task.shots >= shots)
        alpha, gamma = min(task.logit_scale / weight, max(options.alphas)), options.gammas[0]
        return Adapted(_head(texts[gamma], analysis, alpha, task.logit_scale), {"alpha": alpha, "gamma": gamma})
    images, targets = torch.from_numpy(task.val.image_features), torch.from_numpy(task.val.labels)
    pairs = list(product(options.alphas, options.gammas))
    heads = [_head(texts[gamma], analysis, alpha, task.logit_scale) for alpha, gamma in pairs]
    trials = [_trial({"alpha": one[0], "gamma": one[1]}, head.logits(images), targets)
              for one, head in zip(pairs, heads, strict=True)]  # fmt: skip
    best = best_trial(trials)
    kept = sorted(trials, key=lambda trial: trial.rank, reverse=True)[:50]
    return Adapted(heads[best], trials[best].settings, tuple(kept))


def _centres(task: FewShotTask, views: np.ndarray) -> np.ndarray:
    """Return the normalised mean image (C, D) of each class, that of its prompts if it has none."""
    members = np.eye(task.classes, dtype=views.dtype)[task.train.labels]  # (N, C)
    sums = members.T @ views.mean(axis=0)
    return unit(np.where(members.any(axis=0)[:, None], sums, task.text.ensemble))


def _guided_text(prompts: np.ndarray, owners: np.ndarray, matches: np.ndarray, gamma: float) -> np.ndarray:
    """Return the normalised weighted mean (C, D) of the prompts (P, D) of each class."""
    starts = np.flatnonzero(np.diff(owners, prepend=-1))
    lengths = np.sqrt(np.add.reduceat(np.square(matches), starts))[owners]
    relative = gamma * matches / np.maximum(lengths, np.finfo(matches.dtype).tiny)
    weights = np.exp(relative - np.maximum.reduceat(relative, starts)[owners])
    return unit(np.add.reduceat(weights[:, None] * prompts, starts))  # unit: their sum need not be 1


def _head(
    text: np.ndarray, analysis: tuple[torch.Tensor, torch.Tensor], alpha: float, logit_scale: float
) -> LinearHead:
    """Return the sum of text and discriminant analysis as one linear head."""
    weights, bias = analysis
    factor = min(1.0, logit_scale / alpha)
    return LinearHead(factor * (alpha * torch.from_numpy(text) + weights), factor * bias, "normalised")


def _trial(settings: dict[str, Setting], logits: torch.Tensor, labels: torch.Tensor) -> Trial:
    accuracy = share_correct(logits, labels)
    return Trial(settings, 100.0 * accuracy, cross_entropy(logits, labels).item())


METHOD = Method(
    name="timo",
    fit=fit,
    options=TimoOptions(),
    trains="discriminant analysis and weights of prompts, in closed form",
    chooses="alpha by val",
    paper="Li et al., Text and image are mutually beneficial, AAAI 2025",
    views="narrow",
)
