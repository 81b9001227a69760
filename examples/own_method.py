"""A few-shot method of your own, next to all others.

    taskres extract digits
    taskres fit digits --method taskres,examples/own_method.py:BLEND --shots 1,4,16 --seeds 1,2,3
    taskres report runs/glyph-clip-bundled/digits

A method is a function from a task and its options to a head. The task holds the images of one few-shot split, its
validation images and the text features, and no test image: whatever a method chooses, it chooses by validation images.
"""

from dataclasses import dataclass

import numpy as np
import torch

from taskres_cache.heads.kinds import CosineHead
from taskres_cache.methods.few_shot import FewShotTask, unit
from taskres_cache.methods.method import Adapted, Method, Trial, best_trial


@dataclass(frozen=True)
class BlendOptions:
    """What `--set NAME=VALUE` can change.

    Parameters
    ----------
    shares : tuple of float
        Shares of the class means to try; the first one is used without validation images.
    """

    shares: tuple[float, ...] = (0.5, 0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0)


def fit(task: FewShotTask, options: BlendOptions) -> Adapted:
    """Blend the text feature of each class with the mean of its images, as validation images suggest."""
    text = task.text.ensemble  # (C, D), length 1
    images, labels = unit(task.train.image_features), task.train.labels  # (N, D), (N,)
    of_class = [images[labels == label] for label in range(task.classes)]
    means = np.stack([images.mean(axis=0) if len(images) else text[label] for label, images in enumerate(of_class)])
    blends = [(1 - share) * text + share * unit(means) for share in options.shares]
    heads = [CosineHead(torch.from_numpy(blend), task.logit_scale) for blend in blends]
    if task.val is None:
        return Adapted(heads[0], {"share": options.shares[0]})
    val_features, val_labels = torch.from_numpy(task.val.image_features), torch.from_numpy(task.val.labels)
    scores = [head.score(val_features, val_labels) for head in heads]
    trials = [
        Trial({"share": share}, accuracy, -minus_loss)
        for share, (accuracy, minus_loss) in zip(options.shares, scores, strict=True)
    ]
    best = best_trial(trials)
    return Adapted(heads[best], trials[best].settings, tuple(trials))


BLEND = Method(
    name="blend",
    fit=fit,
    options=BlendOptions(),
    trains="nothing: text features blended with class means",
    chooses="the share of the class means, by validation images",
    paper="an example",
)
