"""The linear probe against scikit-learn and CoOp's search written as a loop."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from taskres_cache.errors import FitError
from taskres_cache.methods.few_shot import FewShotTask, Images
from taskres_cache.methods.linear.linear_probe import METHOD, LinearProbeOptions, fit
from tests.methods.tasks import random_task, without_images_of

EXACT = LinearProbeOptions(tolerance=1e-12, iterations=20000)


def sklearn_logits(train: Images, queries: np.ndarray, inverse_penalty: float) -> np.ndarray:
    """Return the logits of queries by scikit-learn, in the raw coordinates and from zero."""
    model = LogisticRegression(C=inverse_penalty, solver="newton-cg", tol=1e-12, max_iter=2000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logits: np.ndarray = model.fit(train.image_features, train.labels).decision_function(queries)
    return logits


def accuracy_and_loss(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    log_probabilities = torch.from_numpy(logits).log_softmax(dim=1).numpy()
    accuracy = 100 * np.mean(logits.argmax(axis=1) == labels)
    return float(accuracy), -float(np.mean(log_probabilities[np.arange(len(labels)), labels]))


@pytest.mark.parametrize("shots", [2, 5])  # fewer images than dimensions, and more
@pytest.mark.parametrize("inverse_penalty", [0.316, 30.0])
def test_it_agrees_with_scikit_learn(shots: int, inverse_penalty: float) -> None:
    task = random_task(shots=shots, val_per_class=0)
    adapted = fit(task, replace(EXACT, inverse_penalty=inverse_penalty))
    assert adapted.chosen == {"C": inverse_penalty}
    assert adapted.trials == ()
    queries = random_task(seed=2).train.image_features
    logits = adapted.head.logits(torch.from_numpy(queries)).numpy()
    assert np.allclose(logits, sklearn_logits(task.train, queries, inverse_penalty), atol=1e-6)


def test_two_classes_have_two_rows() -> None:
    task = random_task(classes=2, val_per_class=0)
    logits = fit(task, replace(EXACT, inverse_penalty=0.5)).head.logits(torch.from_numpy(task.train.image_features))
    expected = sklearn_logits(task.train, task.train.image_features, 1.0)  # one row: C means twice ours
    assert np.allclose(logits[:, 1] - logits[:, 0], expected, atol=1e-5)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_c_is_chosen_as_by_a_plain_loop(seed: int) -> None:
    task = random_task(seed=seed, val_per_class=5)
    assert task.val is not None
    options = replace(EXACT, exponents=(2.0, 0.0, -2.0), bisections=4)
    val = task.val

    def rank(exponent: float) -> tuple[float, float]:
        logits = sklearn_logits(task.train, val.image_features, 10.0**exponent)
        accuracy, loss = accuracy_and_loss(logits, val.labels)
        return accuracy, -loss

    peak = max(options.exponents, key=rank)
    left, right = peak - 1, peak + 1
    for _ in range(4):
        middle = (left + right) / 2
        if rank(left) < rank(right):
            final, left = right, middle
        else:
            final, right = left, middle
    adapted = fit(task, options)
    assert adapted.chosen == {"C": pytest.approx(10.0**final)}
    assert adapted.trials[0].settings == adapted.chosen
    assert adapted.trials[0].rank == pytest.approx(rank(final), abs=1e-5)
    assert len(adapted.trials) == 3 + 2 + 2


def test_the_paper_search_needs_15_fits() -> None:
    assert len(fit(random_task(), METHOD.options).trials) == 15


@pytest.mark.parametrize(
    "task",
    [
        random_task(classes=2, shots=1, templates=1, val_per_class=0, views=0),
        random_task(dim=7, dtype=np.float32),
        random_task(shots=1, dtype=np.float32),
        without_images_of(random_task(), label=2, keep=1),
    ],
)
def test_small_training_sets(task: FewShotTask) -> None:
    before = task.train.image_features.copy()
    adapted = fit(task, METHOD.options)
    assert adapted.head.logits(torch.from_numpy(before)).isfinite().all()
    assert all(tensor.dtype == before.dtype for tensor in adapted.head.tensors().values())
    assert np.array_equal(task.train.image_features, before)
    again = fit(task, METHOD.options)
    assert all(np.array_equal(one, again.head.tensors()[name]) for name, one in adapted.head.tensors().items())


def test_a_class_without_images_is_never_predicted() -> None:
    head = fit(without_images_of(random_task(), label=1), METHOD.options).head
    logits = head.logits(torch.from_numpy(random_task(seed=2).train.image_features))
    assert not (logits.argmax(dim=1) == 1).any()
    others = logits[:, [0, 2, 3]].mean(dim=1)
    assert torch.allclose(logits[:, 1], others, atol=1e-4 * float(logits.abs().max()))


def test_val_without_a_class() -> None:
    task = random_task()
    assert task.val is not None
    some = task.val.labels != 0
    assert fit(replace(task, val=Images(task.val.image_features[some], task.val.labels[some])), METHOD.options).chosen


def test_features_that_are_not_finite_are_an_error() -> None:
    task = random_task()
    features = task.train.image_features.copy()
    features[0, 0] = np.nan
    with pytest.raises(FitError, match="finite"):
        fit(replace(task, train=Images(features, task.train.labels)), METHOD.options)
