"""LP++: a linear probe with a learned weight of the text per class, at learning rates computed from the features.

Source: Huang et al., LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP, CVPR 2024;
`methods/linear_probe_p2.py` of its code. f^, t^ are normalised image and text features, F^ those of the N training
images as a matrix:

    logits_ik = f^_i w_k + b_k + alpha_k <f^_i, t^_k>            # no temperature
    w_k = sum of f^ over class k, b ~ U(-1/sqrt(D), 1/sqrt(D)), alpha_k = 250 mean_k mean_{i in k} <f^_i, t^_k>
    lr_w = 4 N / lambda_max(F^' F^),  lr_a = N / (4 max_k sum_i <f^_i, t^_k>^2)

300 epochs of the full batch: w and b by SGD with momentum 0.9 at lr_w; after every tenth epoch alpha -= lr_a g. The
epoch with the best validation accuracy is kept, the last one of equals.

Deviations and quirks:
- In the authors' code nothing sets the gradient of alpha to zero, so g is the sum over all epochs so far. The published
  figures were made so, and `alpha_gradient` "accumulated" does the same; "fresh" takes the last epoch's gradient.
- The authors have as many validation images as training images per class; here they are the split's own, at most four.
  Without validation images the last epoch is kept.
- float32 instead of float16. Of several augmented views the first one is used, as there. A class without training
  images starts at w_k = 0 and is left out of the mean in alpha's start.

Axes: N training images, M validation images, C classes, D embedding.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from taskres_cache.errors import FitError
from taskres_cache.heads.formulas import normalise
from taskres_cache.heads.head import share_correct
from taskres_cache.heads.kinds import LinearHead
from taskres_cache.methods.few_shot import FewShotTask
from taskres_cache.methods.method import Adapted, Method, Setting

MOMENTUM = 0.9
ALPHA_FACTOR = 250.0  # of the mean cosine, in the start of alpha


@dataclass(frozen=True)
class LpPlusPlusOptions:
    """Hyper-parameters of LP++; learning rates follow from the features.

    Parameters
    ----------
    epochs : int, default 300
        Steps of the full batch.
    alpha_every : int, default 10
        Epochs between two steps of alpha.
    alpha_gradient : {"accumulated", "fresh"}
        Sum of alpha's gradients over all epochs, as in the authors' code, or the gradient of the last epoch.
    """

    epochs: int = 300
    alpha_every: int = 10
    alpha_gradient: Literal["accumulated", "fresh"] = "accumulated"


@dataclass(frozen=True)
class _Parameters:
    """What is trained: weights (C, D), bias (C,) and the weight of the text (C,)."""

    weights: Tensor
    bias: Tensor
    alphas: Tensor

    def copy(self) -> "_Parameters":
        return _Parameters(self.weights.clone(), self.bias.clone(), self.alphas.clone())

    def folded(self, text: Tensor) -> Tensor:
        """Return the weights (C, D) with the text's part added."""
        return self.weights + self.alphas[:, None] * text


def fit(task: FewShotTask, options: LpPlusPlusOptions) -> Adapted:
    """Return LP++'s head, linear in normalised image features."""
    images = normalise(torch.from_numpy(task.augmented.image_features[0]).to(task.device))  # (N, D)
    labels = torch.from_numpy(task.train.labels).to(task.device)
    text = torch.from_numpy(task.text.ensemble).to(images)  # (C, D)
    onehot = torch.nn.functional.one_hot(labels, task.classes).to(images)  # (N, C)
    cosines = images @ text.T  # (N, C)
    current = _start(images, onehot, cosines, task.seed)
    rate = 4 * len(images) / float(torch.linalg.matrix_norm(images, 2).square())  # lambda_max is the square
    alpha_rate = len(images) / (4 * float(cosines.square().sum(dim=0).max()))
    velocity = _Parameters(*(torch.zeros_like(one) for one in vars(current).values()))
    summed = torch.zeros_like(current.alphas)
    best, losses = _BestEpoch(task, text), []
    for epoch in range(options.epochs):
        logits = images @ current.weights.T + current.bias + current.alphas * cosines  # (N, C)
        losses.append(torch.nn.functional.cross_entropy(logits, labels))
        error = (logits.softmax(dim=1) - onehot) / len(images)  # (N, C)
        of_alpha = (error * cosines).sum(dim=0)
        summed = summed + of_alpha if options.alpha_gradient == "accumulated" else of_alpha
        for name, gradient in (("weights", error.T @ images), ("bias", error.sum(dim=0))):
            getattr(velocity, name).mul_(MOMENTUM).add_(gradient)
            getattr(current, name).sub_(getattr(velocity, name), alpha=rate)
        if (epoch + 1) % options.alpha_every == 0:
            current.alphas.sub_(summed, alpha=alpha_rate)
        best.see(current, epoch + 1)
    return _adapted(best, text, losses)


def _start(images: Tensor, onehot: Tensor, cosines: Tensor, seed: int) -> _Parameters:
    """Return the weights, bias and alphas of epoch 0."""
    counts = onehot.sum(dim=0)  # (C,)
    means = (onehot * cosines).sum(dim=0)[counts > 0] / counts[counts > 0]
    bound = 1 / images.shape[1] ** 0.5
    drawn = np.random.default_rng(seed).uniform(-bound, bound, len(counts))
    bias = torch.from_numpy(drawn).to(images)
    return _Parameters(onehot.T @ images, bias, (ALPHA_FACTOR * means.mean()).expand(len(counts)).clone())


class _BestEpoch:
    """The parameters with the best validation accuracy, the last ones of equals; without validation, the last ones."""

    def __init__(self, task: FewShotTask, text: Tensor) -> None:
        self._text, self._accuracy = text, -1.0
        self._val = task.val if task.val is not None and len(task.val) else None
        self.parameters: _Parameters | None = None
        self.epoch = 0
        if self._val is not None:
            self._images = normalise(torch.from_numpy(self._val.image_features).to(text))  # (M, D)
            self._labels = torch.from_numpy(self._val.labels).to(text.device)

    def see(self, current: _Parameters, epoch: int) -> None:
        """Keep a copy of the parameters if they are as good as the best so far."""
        accuracy = 0.0
        if self._val is not None:
            logits = self._images @ current.folded(self._text).T + current.bias
            accuracy = share_correct(logits, self._labels)
        if accuracy >= self._accuracy:
            self._accuracy, self.epoch, self.parameters = accuracy, epoch, current.copy()


def _adapted(best: _BestEpoch, text: Tensor, losses: list[Tensor]) -> Adapted:
    """Return the head of the kept epoch; raises FitError if it diverged."""
    found = torch.stack(losses)
    if best.parameters is None or not found.isfinite().all():
        raise FitError("LP++ diverged: its loss became NaN or infinite; check the image features")
    kept = best.parameters
    head = LinearHead(kept.folded(text).cpu(), kept.bias.cpu(), "normalised")
    chosen: dict[str, Setting] = {"epoch": best.epoch, "mean_alpha": float(kept.alphas.mean())}
    return Adapted(head, chosen, losses=tuple(found.tolist()))


METHOD = Method(
    name="lp++",
    fit=fit,
    options=LpPlusPlusOptions(),
    trains="a linear classifier, and a weight of the text per class",
    chooses="the epoch, by val",
    paper="Huang et al., LP++, CVPR 2024",
    views="narrow",
)
