"""SS-Text: the text plus the sum of the images of each class, in closed form.

    w_k = t_k + logit_scale / (N penalty_k) * sum of f over class k          # t, f normalised
    penalty_k = max(1 / N_k, least)
    logits = logit_scale <f, w_k / |w_k|>

Nothing is trained or chosen. Unbalanced classes are handled, and a class without training images keeps its text.

Sources: Silva-Rodriguez et al., "Full conformal adaptation of medical vision-language models", IPMI 2025, and "Towards
a realistic few-shot adaptation of medical vision-language models", MICCAI 2025 (jusiro/SS-Text, solvers/sstext.py).
Features are those of the images themselves, without augmented views.

The repository has three forms, and ours is the default of its function. Its command "SStext" has a penalty of
max(1 / N, least) for all classes, and "SStext+" subtracts the direction of 2 w_k - mean w after ours. They differ by
little: with balanced classes, the images weigh logit_scale K / C times as much as the text in ours, so for few classes
the result is close to the nearest class mean, and for many it is close to zero-shot.

Deviations:
- The text is the normalised mean of the normalised prompts; theirs is their mean, shorter than 1 with many prompts.

Axes: N images, N_k of class k, K shots, C classes, D embedding.
"""

from dataclasses import dataclass

import numpy as np
import torch

from taskres_cache.errors import FitError
from taskres_cache.heads.kinds import CosineHead
from taskres_cache.methods.few_shot import FewShotTask, unit
from taskres_cache.methods.method import Adapted, Method


@dataclass(frozen=True)
class SsTextOptions:
    """Hyper-parameters of SS-Text.

    Parameters
    ----------
    least : float, default 1e-3
        Lower limit of the penalty; above 1000 images of a class it limits their weight.
    """

    least: float = 1e-3


def fit(task: FewShotTask, options: SsTextOptions) -> Adapted:
    """Add the images to the text.

    Raises
    ------
    FitError
        The features are not finite.
    """
    directions, labels = unit(task.train.image_features), task.train.labels
    members = np.eye(task.classes, dtype=directions.dtype)[labels]  # (N, C)
    penalties = np.maximum(1 / np.maximum(members.sum(axis=0), 1), options.least)  # (C,)
    images = members.T @ directions * (task.logit_scale / (len(labels) * penalties))[:, None]  # (C, D)
    weights = (task.text.ensemble + images).astype(directions.dtype, copy=False)
    if not np.isfinite(weights).all():
        raise FitError("SS-Text: the training features have values that are not finite")
    return Adapted(CosineHead(torch.from_numpy(weights), task.logit_scale))


METHOD = Method(
    name="ss-text",
    fit=fit,
    options=SsTextOptions(),
    trains="the text plus the mean image per class, in closed form",
    chooses="fixed",
    paper="Silva-Rodriguez et al., Full conformal adaptation of medical VLMs, IPMI 2025",
)
