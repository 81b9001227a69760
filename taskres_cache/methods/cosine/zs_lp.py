"""ZS-LP: a linear probe on normalised features that starts at the text.

The classifier, its training and its formulas are in `pool_training.py`, without a penalty.

Source: Silva-Rodriguez et al., "A closer look at the few-shot adaptation of large vision-language models", CVPR 2024
(jusiro/CLAP, trainers/adapters.py with INIT "ZS" and CONSTRAINT "none", SGD_lr1e-1_B256_ep300.yaml). 20 crops of 0.08-1
per image, encoded once. Learning rate 0.1, 300 epochs, batches of 256, the last epoch; nothing is chosen.

Deviations:
- The pool has as many views as the cache, and the images themselves if it has none. A pool smaller than a batch is
  the batch.
- Single precision; theirs is half precision with loss scaling.

Their training loop prints the TEST accuracy of each step, but does not choose by it in this variant. A class without
training images keeps its text feature as the start, and moves only away from the images of other classes.
"""

from taskres_cache.methods.cosine.pool_training import Pool, PoolOptions, train_from_text
from taskres_cache.methods.few_shot import FewShotTask
from taskres_cache.methods.method import Adapted, Method


def fit(task: FewShotTask, options: PoolOptions) -> Adapted:
    """Train the classifier without a penalty."""
    return train_from_text(task, Pool.of(task), options, None)


METHOD = Method(
    name="zs-lp",
    fit=fit,
    options=PoolOptions(),
    trains="the class weights, from the text",
    chooses="fixed",
    paper="Silva-Rodriguez et al., A closer look at few-shot adaptation of VLMs, CVPR 2024",
    views="wide",
)
