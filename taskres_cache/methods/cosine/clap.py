"""CLAP: ZS-LP with a penalty per class that keeps the weights near the text where the text is good.

    penalty_k = mean zero-shot probability of class k over the training views of class k

The classifier, its training and its formulas are in `pool_training.py`.

Source: Silva-Rodriguez et al., "A closer look at the few-shot adaptation of large vision-language models", CVPR 2024
(jusiro/CLAP, trainers/adapters.py with INIT "ZS" and CONSTRAINT "l2", scripts/adapt.sh). The schedule is that of ZS-LP.
The penalties are computed once: the update of an augmented Lagrangian in the paper runs only with CONSTRAINT
"adaptative", which the released command does not set. Ours follows the command.

Deviations: those of ZS-LP (see `zs_lp.py`), and
- A class without training images has the mean penalty of the others, as in SS-Text by the same authors; theirs is NaN.
"""

import torch
from torch import Tensor

from taskres_cache.heads.formulas import scaled_cosines
from taskres_cache.methods.cosine.pool_training import Pool, PoolOptions, train_from_text
from taskres_cache.methods.few_shot import FewShotTask
from taskres_cache.methods.method import Adapted, Method


def fit(task: FewShotTask, options: PoolOptions) -> Adapted:
    """Train the classifier with the penalties."""
    pool = Pool.of(task)
    return train_from_text(task, pool, options, penalties_of(task, pool))


def penalties_of(task: FewShotTask, pool: Pool) -> Tensor:
    """Return the penalty (C,) of each class."""
    text = torch.from_numpy(task.text.base).to(task.device)
    probabilities = scaled_cosines(pool.directions, text, task.logit_scale).softmax(dim=1)  # (R, C)
    own = probabilities.gather(1, pool.labels[:, None])[:, 0].cpu()
    labels = pool.labels.cpu()
    means = own.new_zeros(task.classes).index_add_(0, labels, own) / labels.bincount(minlength=task.classes)
    return torch.where(means.isnan(), means.nanmean(), means).to(task.device)


METHOD = Method(
    name="clap",
    fit=fit,
    options=PoolOptions(),
    trains="the class weights, from the text, with a penalty per class",
    chooses="fixed",
    paper="Silva-Rodriguez et al., A closer look at few-shot adaptation of VLMs, CVPR 2024",
    views="wide",
)
