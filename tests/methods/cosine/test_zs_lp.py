"""ZS-LP against autograd, and on small and incomplete training sets."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from taskres_cache.errors import FitError
from taskres_cache.methods.cosine.pool_training import Pool, PoolOptions
from taskres_cache.methods.cosine.zs_lp import METHOD, fit
from taskres_cache.methods.few_shot import FewShotTask
from tests.methods.cosine.sgd_by_autograd import trained
from tests.methods.tasks import random_task, without_images_of

OPTIONS = PoolOptions(lr=0.05, epochs=20)


@pytest.mark.parametrize("views", [0, 3])
@pytest.mark.parametrize("batch_size", [4, 5, 30, 256])
def test_it_agrees_with_autograd(views: int, batch_size: int) -> None:
    task = random_task(views=views)
    adapted = fit(task, replace(OPTIONS, batch_size=batch_size))
    weights, losses = trained(task, 0.05, 20, batch_size, [0.0] * 4)
    assert np.allclose(adapted.head.tensors()["weights"], weights, atol=1e-9)
    assert adapted.losses == pytest.approx(losses)
    assert np.mean(losses[-3:]) < losses[0]
    assert adapted.head.settings() == {"logit_scale": 20.0}


def test_an_epoch_sees_a_batch_of_the_pool_for_every_256_images() -> None:
    pool = Pool(torch.zeros(60, 2), torch.zeros(60, dtype=torch.int64), images=20)
    shuffler = torch.Generator().manual_seed(0)
    assert pool.epoch(8, shuffler).shape == (2, 8)
    assert pool.epoch(30, shuffler).shape == (1, 30)
    assert sorted(pool.epoch(256, shuffler)[0].tolist()) == list(range(60))


def test_without_epochs_it_is_zero_shot() -> None:
    task = random_task()
    adapted = fit(task, replace(OPTIONS, epochs=0))
    assert np.array_equal(adapted.head.tensors()["weights"], task.text.base)
    assert adapted.losses == ()


def test_it_is_the_same_for_the_same_seed() -> None:
    options = replace(OPTIONS, batch_size=4)
    first, again = (fit(random_task(), options).head.tensors()["weights"] for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, fit(replace(random_task(), seed=2), options).head.tensors()["weights"])


@pytest.mark.parametrize(
    "task",
    [
        random_task(classes=2, shots=1, templates=1, val_per_class=0, views=0),
        random_task(dim=7, dtype=np.float32),
        without_images_of(random_task(), label=1),
        without_images_of(random_task(), label=2, keep=1),
    ],
)
def test_small_and_incomplete_training_sets(task: FewShotTask) -> None:
    before = task.train.image_features.copy()
    head = fit(task, METHOD.options).head
    assert head.logits(torch.from_numpy(before)).isfinite().all()
    assert head.tensors()["weights"].dtype == before.dtype
    assert np.array_equal(task.train.image_features, before)


def test_a_diverged_fit_is_an_error() -> None:
    task = random_task()
    views = task.augmented.image_features.copy()
    views[0, 0, 0] = np.nan
    with pytest.raises(FitError, match="lower"):
        fit(replace(task, views=replace(task.augmented, image_features=views)), OPTIONS)
