"""Auto on tasks where the right choice is known, and its candidates against second implementations."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from taskres_cache.errors import FitError
from taskres_cache.heads.kinds import CosineHead, LinearHead
from taskres_cache.methods.auto.auto import METHOD, AutoOptions, fit, summed
from taskres_cache.methods.auto.candidates import (
    Candidate,
    Part,
    Spread,
    base_scale,
    first_alphas,
    gda,
    logistic,
    next_alpha,
    task_residuals,
    zero_shot,
)
from taskres_cache.methods.auto.choosing import Judge, best_of_families, stratified_folds, weights_of_sum
from taskres_cache.methods.few_shot import FewShotTask, Images, Text, unit
from taskres_cache.methods.registry import find_method
from taskres_cache.methods.task_residual.loop import fit_residuals
from taskres_cache.methods.task_residual.task import FitTask
from taskres_cache.methods.training_sets import TrainingSet
from taskres_cache.recipe import Recipe
from tests.methods.tasks import random_task, without_images_of

CPU = torch.device("cpu")


def task_of(
    text: str, classes: int = 5, shots: int = 4, val: int = 4, label_noise: bool = False, seed: int = 0
) -> tuple[FewShotTask, Images]:
    """Return a task with perfect or random text, and its test images."""
    rng = np.random.default_rng(seed)
    dim = 24
    centres = 2 * rng.normal(size=(classes, dim))

    def images(count: int) -> Images:
        labels = np.repeat(np.arange(classes), count)
        return Images(centres[labels] + 1.2 * rng.normal(size=(len(labels), dim)), labels)

    train, chosen_by, test = images(shots), images(val), images(40)
    if label_noise:
        train = replace(train, labels=rng.permutation(train.labels))
    base = 0.15 * centres if text == "perfect" else 0.3 * rng.normal(size=(classes, dim))
    task = FewShotTask(train, Text(base, np.arange(classes)), 30.0, shots, 1, chosen_by if val else None)
    return task, test


def accuracy(head: CosineHead | LinearHead, images: Images) -> float:
    logits = head.logits(torch.from_numpy(images.image_features))
    return 100 * float((logits.argmax(dim=1).numpy() == images.labels).mean())


def part_of(task: FewShotTask) -> Part:
    return Part(
        task.train.image_features, task.train.labels, task.text.base, task.logit_scale, task.shots, task.seed, CPU
    )


def zero_shot_accuracy(task: FewShotTask, test: Images) -> float:
    return accuracy(CosineHead(torch.from_numpy(task.text.base), task.logit_scale), test)


@pytest.mark.parametrize("val", [4, 0])
def test_random_text_is_outweighed(val: int) -> None:
    task, test = task_of("random", val=val)
    adapted = fit(task, AutoOptions())
    assert zero_shot_accuracy(task, test) < 50
    assert accuracy(adapted.head, test) > 85
    assert adapted.chosen["judged by"] == ("val" if val else "cross-validation")


def test_training_labels_that_are_noise_do_not_spoil_perfect_text() -> None:
    for seed in range(3):
        task, test = task_of("perfect", label_noise=True, seed=seed)
        adapted = fit(task, AutoOptions())
        assert accuracy(adapted.head, test) > zero_shot_accuracy(task, test) - 1


def test_weights_are_shared_among_good_candidates_and_taken_from_bad_ones() -> None:
    labels = np.repeat(np.arange(3), 30)
    rng = np.random.default_rng(0)

    def candidate(family: str, weights: np.ndarray) -> Candidate:
        return Candidate(family, {"candidate": family}, 0.0, weights, np.zeros(3))

    images = np.eye(3)[labels] + 0.4 * rng.normal(size=(len(labels), 3))
    judge = Judge([(0, images)], labels)
    good = candidate("text", 5 * np.eye(3))
    bad = candidate("gda", np.array([[1.0, 1, 0], [1, 1, 0], [-4, -4, 5]]))  # cannot tell two of the classes apart
    weights = weights_of_sum([judge.judged([good]), judge.judged([bad])], labels)
    assert weights[0] > 2 * weights[1]
    equal = weights_of_sum([judge.judged([good]), judge.judged([candidate("gda", 5 * np.eye(3))])], labels)
    assert equal[0] == pytest.approx(equal[1], rel=1e-3)


def test_the_loss_is_penalised_by_steps_and_ties_go_to_fewer() -> None:
    labels = np.array([0, 1, 0, 1])
    judge = Judge([(0, np.array([[1.0, 0], [0, 1], [0, 1], [0, 1]]))], labels)
    near = Candidate("text", {"candidate": "near"}, 0.0, np.eye(2), np.zeros(2))
    far = replace(near, settings={"candidate": "far"}, steps=2.0)
    assert judge.judged([far]).penalised == pytest.approx(judge.judged([near]).penalised + 2)
    (best,) = best_of_families([judge.judged([far]), judge.judged([near])])
    assert best.candidate is near
    assert judge.judged([near]).accuracy == 75
    shifted = replace(near, steps=-2.0 + 1e-12)  # equal to nine digits after the penalty
    judged = judge.judged([near])
    assert best_of_families([judged, replace(judged, candidate=shifted)])[0].candidate is shifted


def test_one_shot_without_val_keeps_plain_task_residuals_if_the_text_is_informative() -> None:
    task, _ = task_of("perfect", shots=1, val=0)
    adapted = fit(task, AutoOptions())
    assert adapted.chosen["judged by"] == "rule"
    assert adapted.trials == ()
    recipe = Recipe()
    images = TrainingSet.from_features(task.train.image_features, task.train.labels)
    plain = fit_residuals([FitTask(images, recipe, 100, task.seed, base=task.text.base)], task.logit_scale, CPU)[0]
    expected = CosineHead.of_arrays(task.text.base, task.logit_scale, plain.residual, alpha=0.5)
    queries = torch.from_numpy(random_task(dim=24).train.image_features)
    assert isinstance(adapted.head, CosineHead)
    assert torch.allclose(adapted.head.logits(queries), expected.logits(queries), atol=1e-10)


def test_one_shot_without_val_uses_a_large_alpha_and_class_means_for_random_text() -> None:
    task, test = task_of("random", shots=1, val=0)
    adapted = fit(task, AutoOptions())
    assert isinstance(adapted.head, LinearHead)
    assert accuracy(adapted.head, test) > zero_shot_accuracy(task, test) + 20


def test_the_sum_is_exact() -> None:
    task = random_task()
    part = part_of(task)
    directions = unit(part.image_features)
    spread = Spread.of_images(directions, part.labels, 4)
    text = task_residuals([part], [0.5])[0][0]
    terms = [(text, 0.7), (gda(part, spread, [0.1])[0], 0.2), (logistic(part, directions, spread)[0], 1.3)]
    queries = random_task(seed=5).train.image_features
    expected = sum(factor * one.logits(unit(queries)) for one, factor in terms)
    head = summed(terms, task.logit_scale)
    assert isinstance(head, LinearHead)
    assert np.allclose(head.logits(torch.from_numpy(queries)).numpy(), expected, rtol=0, atol=1e-10)
    single = summed([(text, 0.7)], task.logit_scale)  # the temperature of a single candidate is left to the caller
    assert np.allclose(single.logits(torch.from_numpy(queries)).numpy(), text.logits(unit(queries)), atol=1e-10)


def test_the_chosen_shares_and_trials_describe_the_head() -> None:
    task, _ = task_of("random")
    adapted = fit(task, AutoOptions())
    shares = [float(value) for name, value in adapted.chosen.items() if name.endswith("share")]
    assert sum(shares) == pytest.approx(1, abs=2e-3)
    names = {trial.settings["candidate"] for trial in adapted.trials}
    assert names == {"zero-shot", "taskres", "gda", "logistic"}
    alphas = [trial.settings["alpha"] for trial in adapted.trials if "alpha" in trial.settings]
    assert len(alphas) > len(first_alphas(task.text.base))  # the largest won, so the grid went on


def test_the_grid_of_alphas_grows_by_4_and_ends() -> None:
    base = np.full((3, 4), 0.3)
    assert first_alphas(base) == (0.5, 2.0, 8.0)
    assert first_alphas(10 * base) == (0.5, 5.0, 20.0, 80.0)
    assert next_alpha([0.5, 2.0, 8.0], base) == 32.0
    assert next_alpha([512.0], base) is None
    assert base_scale(base) == pytest.approx(0.5)


def test_gda_agrees_with_loops_and_a_pseudo_inverse() -> None:
    task = random_task()
    part, rows = part_of(task), unit(task.train.image_features)
    means = [rows[part.labels == label].mean(axis=0) for label in range(4)]
    scatter = sum(
        np.outer(row - means[label], row - means[label]) for row, label in zip(rows, part.labels, strict=True)
    )
    variance = np.trace(scatter) / (len(rows) - 1)
    found = gda(part, Spread.of_images(rows, part.labels, 4), [0.1, 10.0])
    assert [one.settings["ridge"] for one in found] == [0.1, 0.1, 1.0, 1.0]
    for one in found:
        ridge, weight = float(one.settings["ridge"]), float(one.settings["weight"])
        precision = 12 * np.linalg.pinv(scatter + ridge * variance * np.eye(12))
        for row, logits in zip(rows, one.logits(rows), strict=True):
            expected = [
                20 * row @ unit(part.base)[label] + weight * (row @ precision @ mean - mean @ precision @ mean / 2)
                for label, mean in enumerate(means)
            ]
            assert logits == pytest.approx(expected, abs=1e-6)


def test_logistic_agrees_with_a_second_implementation() -> None:
    task = random_task()
    part, rows = part_of(task), unit(task.train.image_features)
    spread = Spread.of_images(rows, part.labels, 4)
    assert spread.scatter is not None
    values, vectors = np.linalg.eigh((spread.scatter + 0.1 * spread.variance * np.eye(12)) / 12)
    whitened = (rows - rows.mean(axis=0)) @ vectors / np.sqrt(values)
    whitened /= np.sqrt((whitened**2).sum(axis=1).mean())
    inputs = torch.from_numpy(np.column_stack([whitened, np.ones(len(rows))]))
    offsets = torch.from_numpy(20 * rows @ unit(part.base).T)
    labels = torch.from_numpy(part.labels)

    def loss_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        change = torch.from_numpy(flat.reshape(4, 13)).requires_grad_()
        loss = torch.nn.functional.cross_entropy(offsets + inputs @ change.T, labels, reduction="sum")
        (100 * loss + change.square().sum() / 2).backward()
        assert change.grad is not None
        return (100 * loss + change.square().sum() / 2).item(), change.grad.numpy().ravel()

    solved = minimize(loss_and_gradient, np.zeros(52), jac=True, method="BFGS", options={"gtol": 1e-8}).x
    expected = (offsets + inputs @ torch.from_numpy(solved.reshape(4, 13)).T).numpy()
    found = logistic(part, rows, spread)[0]
    assert np.abs(found.logits(rows) - expected).max() < 0.02  # L-BFGS stops at a loose gradient


def test_logistic_without_text_is_sklearns() -> None:
    task = random_task(shots=6)
    flat = replace(part_of(task), base=np.ones((4, 12)))  # equal text of all classes cancels
    rows = unit(task.train.image_features)
    spread = Spread(np.zeros((4, 12)), None, 0.0)  # the unit matrix
    found = logistic(flat, rows, spread)[1]
    centred = rows - rows.mean(axis=0)
    scaled = centred / np.sqrt((centred**2).sum(axis=1).mean())
    reference = LogisticRegression(C=1000.0, max_iter=5000, tol=1e-8).fit(scaled, task.train.labels)
    logits = found.logits(rows)
    logits -= logits.max(axis=1, keepdims=True)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert np.abs(probabilities - reference.predict_proba(scaled)).max() < 0.01  # sklearn leaves the bias free


def test_zero_shot_is_the_cosine_head() -> None:
    task = random_task()
    rows = task.train.image_features
    expected = CosineHead(torch.from_numpy(task.text.base), 20.0).logits(torch.from_numpy(rows)).numpy()
    assert np.allclose(zero_shot(part_of(task)).logits(unit(rows)), expected)


def test_folds_are_stratified() -> None:
    labels = np.array([0] * 8 + [1] * 5 + [2])
    folds = stratified_folds(labels, 4, seed=3)
    assert np.bincount(folds[:8], minlength=4).tolist() == [2, 2, 2, 2]
    assert sorted(np.bincount(folds[8:13], minlength=4).tolist()) == [1, 1, 1, 2]
    assert (folds == stratified_folds(labels, 4, seed=3)).all()


EDGES = {
    "one shot": random_task(shots=1),
    "one shot, no val": random_task(shots=1, val_per_class=0),
    "two shots, no val": random_task(shots=2, val_per_class=0),
    "two classes": random_task(classes=2),
    "two classes, no val": random_task(classes=2, val_per_class=0),
    "one template": random_task(templates=1),
    "float32": random_task(dtype=np.float32),
    "fewer of a class": without_images_of(random_task(shots=4), 1, keep=1),
    "fewer of a class, no val": without_images_of(random_task(shots=4, val_per_class=0), 1, keep=1),
    "none of a class": without_images_of(random_task(), 2),
    "none of a class, no val": without_images_of(random_task(val_per_class=0), 2),
}


@pytest.mark.parametrize("name", EDGES)
def test_edges(name: str) -> None:
    task = EDGES[name]
    before = task.train.image_features.copy(), task.text.features.copy()
    first, again = fit(task, AutoOptions()), fit(task, AutoOptions())
    queries = torch.from_numpy(task.train.image_features)
    logits = first.head.logits(queries)
    assert logits.shape == (len(task.train), task.classes)
    assert logits.isfinite().all()
    assert torch.equal(logits, again.head.logits(queries))
    assert first.chosen == again.chosen
    assert logits.dtype == queries.dtype
    assert (task.train.image_features == before[0]).all()
    assert (task.text.features == before[1]).all()
    assert len(first.trials) <= 50


def test_val_without_some_classes() -> None:
    task = random_task()
    assert task.val is not None
    kept = task.val.labels < 2
    fewer = replace(task, val=Images(task.val.image_features[kept], task.val.labels[kept]))
    adapted = fit(fewer, AutoOptions())
    assert adapted.head.logits(torch.from_numpy(task.train.image_features)).isfinite().all()


def test_a_sum_that_is_not_finite_is_an_error() -> None:
    broken = Candidate("gda", {}, 0.0, np.full((2, 3), np.nan), np.zeros(2))
    with pytest.raises(FitError, match="NaN or infinite"):
        summed([(broken, 1.0)], 10.0)


def test_it_is_registered() -> None:
    assert find_method("auto").method is METHOD
