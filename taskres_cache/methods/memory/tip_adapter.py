"""Tip-Adapter: the labels of similar training images are added to the zero-shot logits; nothing is trained.

    keys_i = mean over views of f_i, then divided by its length
    logits = logit_scale f t' + alpha exp(-beta (1 - f keys')) Y        # f, t normalised; Y the one-hot labels

Source: Zhang et al., "Tip-Adapter: training-free adaption of CLIP for few-shot classification", ECCV 2022
(gaopengcuhk/Tip-Adapter, main.py and utils.py). alpha and beta are chosen by a grid.

Deviations:
- The authors run the grid on the whole val partition, and on ImageNet on the test images. Ours reads the few validation
  images of the split, and ranks by accuracy, then by lower loss: many points are equally accurate on so few images.
- One geometric grid from 0.1 to 50 for all data sets. Theirs is linear, with a range for each data set by its name, of
  which 50 is the largest.
- Without validation images alpha is 1 and beta 5, reported as best for ImageNet with RN50 (issue 4 of the repository;
  found by test accuracy there). On a weak base that is far too little memory: give validation images.
- The factor of the text logits is the model's logit scale, 100 in their code.

Axes: V views, N training images, Q validation images, C classes, D embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from taskres_cache.errors import FitError
from taskres_cache.heads.formulas import memory, normalise
from taskres_cache.heads.kinds import MemoryHead
from taskres_cache.methods.few_shot import FewShotTask, Images
from taskres_cache.methods.method import Adapted, Method, Trial

BEST_KEPT = 50  # trials


@dataclass(frozen=True)
class TipAdapterOptions:
    """Hyper-parameters of Tip-Adapter.

    Parameters
    ----------
    alpha, beta : float
        Weight of the memory and sharpness of the similarity, without validation images.
    smallest, largest : float
        Ends of the geometric grid, of both alpha and beta.
    points : int, default 28
        Values of each in the grid.
    """

    alpha: float = 1.0
    beta: float = 5.0
    smallest: float = 0.1
    largest: float = 50.0
    points: int = 28


def fit(task: FewShotTask, options: TipAdapterOptions) -> Adapted:
    """Remember the training images, and choose alpha and beta by the validation images.

    Raises
    ------
    FitError
        Features are not finite.
    """
    head = remembered(task, options.alpha, options.beta)
    if task.val is None or len(task.val) == 0:
        return Adapted(head, {"alpha": options.alpha, "beta": options.beta})
    return tuned(head, task.val, np.geomspace(options.smallest, options.largest, options.points).tolist())


def remembered(task: FewShotTask, alpha: float, beta: float) -> MemoryHead:
    """Return the head that remembers the mean view (N, D) of each training image.

    Raises
    ------
    FitError
        Features are not finite.
    """
    keys = normalise(torch.from_numpy(task.augmented.image_features.mean(axis=0)))
    if not keys.isfinite().all():
        raise FitError("the training features have values that are not finite, or a length of 0")
    values = one_hot(torch.from_numpy(task.train.labels), task.classes).to(keys.dtype)
    text = torch.from_numpy(task.text.ensemble)
    return MemoryHead(text, keys, values, logit_scale=task.logit_scale, alpha=alpha, beta=beta)


def tuned(head: MemoryHead, val: Images, values: Sequence[float]) -> Adapted:
    """Return the head with those values of alpha and beta that are best on validation images."""
    images, labels = normalise(torch.from_numpy(val.image_features)), torch.from_numpy(val.labels)
    zero_shot = head.logit_scale * images @ head.text.T  # (Q, C)
    trials = []
    for beta in values:
        near = memory(images, head.keys, head.values, beta)  # (Q, C)
        trials += [_trial(alpha, beta, zero_shot.add(near, alpha=alpha), labels) for alpha in values]
    trials.sort(key=lambda trial: trial.rank, reverse=True)
    best = trials[0].settings
    chosen = replace(head, alpha=float(best["alpha"]), beta=float(best["beta"]))
    return Adapted(chosen, dict(best), tuple(trials[:BEST_KEPT]))


def _trial(alpha: float, beta: float, logits: Tensor, labels: Tensor) -> Trial:
    """Return the result of logits (Q, C)."""
    accuracy = 100.0 * (logits.argmax(dim=1) == labels).sum().item() / len(labels)
    return Trial({"alpha": alpha, "beta": beta}, accuracy, cross_entropy(logits, labels).item())


METHOD = Method(
    name="tip-adapter",
    fit=fit,
    options=TipAdapterOptions(),
    trains="nothing: remembers the training images",
    chooses="alpha, beta by val; 1, 5 without",
    paper="Zhang et al., Tip-Adapter: training-free adaption of CLIP for few-shot classification, ECCV 2022",
    views="narrow",
)
