"""TaskResClassifier: scikit-learn's estimator checks, and the same results as `taskres fit`."""

import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks

from taskres_cache import FeatureCache, TaskResClassifier
from taskres_cache.caches.contents import CacheContents
from taskres_cache.caches.hdf5 import write_cache
from taskres_cache.datasets import load_dataset
from taskres_cache.encoders.backbone import Backbone
from taskres_cache.errors import FitError, OptionError, RunError, TaskresError
from taskres_cache.extraction.extract import extract
from taskres_cache.extraction.options import ExtractOptions
from taskres_cache.recipe import Recipe
from taskres_cache.runs.fitting.study import fit_each, recipe_of
from taskres_cache.runs.run import Run, read_classifier
from tests.by_hand import logits

CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Use one thread: the fits are small and many."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@parametrize_with_checks(
    [
        TaskResClassifier(device="cpu"),
        TaskResClassifier(device="cpu", residual="both", epochs=20),
        TaskResClassifier(device="cpu", residual="image", epochs=20),
    ]
)
def test_estimator_checks_of_scikit_learn(estimator: BaseEstimator, check: Callable[[BaseEstimator], None]) -> None:
    check(estimator)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory, glyph_clip: Backbone) -> FeatureCache:
    path = tmp_path_factory.mktemp("cache") / "glyph-clip-bundled" / "digits.h5"
    extract(load_dataset("digits", Path()), glyph_clip, ExtractOptions(shots=(1, 4, 16), seeds=(1, 2)), path)
    return FeatureCache(path)


def run_of(cache: FeatureCache, shots: int, seed: int, out: Path, **choices: Any) -> Run:
    (run,) = fit_each(cache, [(shots, seed)], [recipe_of(cache, **choices)], CPU, out)
    return run


@pytest.mark.parametrize(
    ("shots", "seed", "choices"),
    [
        (16, 1, {}),
        (1, 2, {"residual": "both", "lr": 0.01}),
        (4, 1, {"residual": "image", "epochs": 7, "batch_size": 16, "weight_decay": 0.0}),
    ],
)
def test_a_fit_equals_taskres_fit_to_the_last_bit(
    digits: FeatureCache, tmp_path: Path, shots: int, seed: int, choices: dict[str, Any]
) -> None:
    run = run_of(digits, shots, seed, tmp_path, **choices)
    stored = read_classifier(run.folder)
    recipe = {**digits.provenance.recipe, **choices}
    scale = digits.provenance.logit_scale
    estimator = TaskResClassifier(digits.text_features, **recipe, logit_scale=scale, random_state=seed, device="cpu")
    estimator.fit(*digits.train(shots, seed))
    assert np.array_equal(estimator.residual_, stored.residual)
    assert np.array_equal(estimator.text_features_, stored.base)
    if stored.image_residual is None:
        assert estimator.image_residual_ is None
    else:
        assert np.array_equal(estimator.image_residual_, stored.image_residual)
    assert any(np.abs(one).max() > 0 for one in (stored.residual, stored.image_residual) if one is not None)
    assert estimator.loss_curve_ == run.metrics.epoch_losses
    assert 100 * estimator.score(*digits.test()) == pytest.approx(run.metrics.test_accuracy, abs=1e-9)


def test_from_run_returns_a_fitted_estimator(digits: FeatureCache, tmp_path: Path) -> None:
    run = run_of(digits, 4, 2, tmp_path, alpha=1.5, epochs=30, residual="both")
    stored, estimator = read_classifier(run.folder), TaskResClassifier.from_run(str(run.folder))
    image_features, labels = digits.test()
    assert estimator.classes_.tolist() == list("0123456789")
    assert estimator.n_features_in_ == digits.dim
    names = np.array(digits.classnames)[labels]
    assert 100 * estimator.score(image_features, names) == pytest.approx(run.metrics.test_accuracy, abs=1e-9)
    assert stored.temperature == estimator.temperature_ != 1
    expected = stored.head.probabilities(torch.from_numpy(image_features))
    assert np.allclose(estimator.predict_proba(image_features), expected.numpy(), atol=1e-5)
    untempered = torch.from_numpy(estimator.decision_function(image_features)).softmax(dim=-1).numpy()
    assert np.abs(untempered - expected.numpy()).max() > 0.01
    assert np.array_equal(estimator.predict(image_features), estimator.classes_[expected.argmax(dim=-1).numpy()])


def test_the_parameters_of_from_run_fit_the_run_again(digits: FeatureCache, tmp_path: Path) -> None:
    run = run_of(digits, 4, 2, tmp_path, alpha=1.5, epochs=30, residual="both", lr=0.01)
    estimator = TaskResClassifier.from_run(run.folder / "classifier.safetensors")
    parameters = estimator.get_params()
    assert np.array_equal(parameters.pop("text_features"), digits.text_features)
    assert parameters == {
        "alpha": 1.5,
        "batch_size": 256,
        "classnames": digits.classnames,
        "device": "auto",
        "epochs": 30,
        "logit_scale": digits.provenance.logit_scale,
        "lr": 0.01,
        "random_state": 2,
        "residual": "both",
        "weight_decay": 5e-4,
    }
    again = clone(estimator).set_params(device="cpu").fit(*digits.train(4, 2))
    assert np.array_equal(again.residual_, estimator.residual_)
    assert np.array_equal(again.image_residual_, estimator.image_residual_)


def test_classes_of_a_run_are_sorted_with_their_rows(cache_file: Path, contents: CacheContents, tmp_path: Path) -> None:
    write_cache(cache_file, replace(contents, classnames=("zebra", "ant", "mole")))
    cache = FeatureCache(cache_file)
    run = run_of(cache, 4, 1, tmp_path, epochs=30, lr=0.02)
    estimator, stored = TaskResClassifier.from_run(run.folder), read_classifier(run.folder)
    assert estimator.classes_.tolist() == ["ant", "mole", "zebra"]
    assert np.array_equal(estimator.residual_, stored.residual[[1, 2, 0]])
    image_features, labels = cache.test()
    names = np.array(cache.classnames)[labels]
    assert 100 * estimator.score(image_features, names) == pytest.approx(run.metrics.test_accuracy, abs=1e-9)
    train_features, train_labels = cache.train(4, 1)
    again = clone(estimator).fit(train_features, np.array(cache.classnames)[train_labels])
    assert np.allclose(again.residual_, estimator.residual_, atol=1e-4)
    assert np.abs(again.residual_).max() > 0.01


def test_labels_are_names_or_positions(cache_file: Path, contents: CacheContents, tmp_path: Path) -> None:
    write_cache(cache_file, replace(contents, classnames=("zebra", "ant", "mole")))
    cache = FeatureCache(cache_file)
    run = run_of(cache, 4, 1, tmp_path, epochs=30, lr=0.02)
    (train, positions), (test, of_test) = cache.train(4, 1), cache.test()
    names = np.array(cache.classnames)
    plain = TaskResClassifier(cache.text_features, classnames=cache.classnames, epochs=30, lr=0.02, random_state=1)
    estimators = [
        TaskResClassifier.from_run(run.folder),
        clone(plain).fit(train, positions),
        clone(plain).fit(train, names[positions]),
        clone(TaskResClassifier.from_run(run.folder)).fit(train, positions),
    ]
    for estimator in estimators:
        for labels in (of_test, names[of_test], names[of_test].astype(object)):
            assert 100 * estimator.score(test, labels) == pytest.approx(run.metrics.test_accuracy, abs=1e-9)
    assert estimators[1].classes_.tolist() == [0, 1, 2]  # what `predict` returns has the form of y
    assert estimators[2].classes_.tolist() == ["ant", "mole", "zebra"]
    half = np.arange(len(of_test)) % 2
    assert estimators[0].score(test, of_test, half) == estimators[2].score(test, names[of_test], half)


def test_names_in_an_order_that_is_not_sorted_are_not_passed_over(
    few: tuple[np.ndarray, np.ndarray], contents: CacheContents
) -> None:
    text = contents.text.embeddings  # in the order b, c, a
    with pytest.warns(UserWarning, match="taken to be in sorted order of the names .a, b, c, ....; pass classnames="):
        TaskResClassifier(text, epochs=2).fit(*few)
    fitted = TaskResClassifier(text, classnames=["b", "c", "a"], epochs=2).fit(*few)
    assert np.array_equal(fitted.text_features_, text.mean(axis=1)[[2, 0, 1]])
    rest = few[1] != "c"  # a class without images keeps its text
    assert TaskResClassifier(text, classnames=["b", "c", "a"]).fit(few[0][rest], few[1][rest]).classes_.tolist() == [
        "a", "b", "c",
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"label 'b' is not in classnames \(x, y, z, ...\)"):
        TaskResClassifier(text, classnames=["x", "y", "z"]).fit(*few)
    with pytest.raises(ValueError, match="labels are positions from 0 to 3, expected 0 to 2: there are 3 class names"):
        fitted.score(few[0][:2], [0, 3])
    with pytest.raises(ValueError, match="expected one distinct name per class"):
        TaskResClassifier(text, classnames=["x", "x", "z"]).fit(*few)


def test_from_run_has_the_parameters_that_the_run_chose(cache_file: Path, tmp_path: Path) -> None:
    cache = FeatureCache(cache_file)
    searching = Recipe(epochs=10).searching(alphas=(0.7, 3.0), lrs=(0.03, 0.3), weight_decays=(0.0, 0.02))
    (run,) = fit_each(cache, [(4, 1)], [searching], CPU, tmp_path)
    parameters, chosen = TaskResClassifier.from_run(run.folder).get_params(), run.metrics.chosen
    assert {name: parameters[name] for name in ("alpha", "lr", "weight_decay")} == {
        name: getattr(chosen, name) for name in ("alpha", "lr", "weight_decay")
    }
    assert parameters["lr"] in (0.03, 0.3)
    assert TaskResClassifier.from_run(run.folder / "classifier.safetensors").get_params()["lr"] == parameters["lr"]


def test_from_run_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds no classifier\.safetensors; pass a run folder"):
        TaskResClassifier.from_run(tmp_path)


@pytest.fixture
def few(contents: CacheContents) -> tuple[np.ndarray, np.ndarray]:
    """Twelve images of three classes, by name."""
    return contents.image_features[:12], np.array(["b", "c", "a"])[contents.labels[:12]]


def test_without_text_the_base_is_the_mean_of_each_class(few: tuple[np.ndarray, np.ndarray]) -> None:
    estimator = TaskResClassifier(epochs=3).fit(*few)
    by_hand = np.stack([few[0][few[1] == name].mean(axis=0) for name in ("a", "b", "c")])
    assert np.allclose(estimator.text_features_, by_hand, atol=1e-6)
    assert estimator.classes_.tolist() == ["a", "b", "c"]


def test_the_base_is_the_mean_over_templates(few: tuple[np.ndarray, np.ndarray], contents: CacheContents) -> None:
    embeddings = contents.text.embeddings
    of_templates, of_mean = (
        TaskResClassifier(text, classnames=list("abc"), epochs=5).fit(*few) for text in (embeddings, embeddings.mean(1))
    )
    assert np.array_equal(of_templates.text_features_, embeddings.mean(axis=1))
    assert np.array_equal(of_templates.residual_, of_mean.residual_)


def test_a_fitted_estimator_shares_no_arrays(few: tuple[np.ndarray, np.ndarray], contents: CacheContents) -> None:
    text, images = contents.text.embeddings.mean(axis=1), few[0].copy()
    estimator = TaskResClassifier(text, classnames=list("abc"), epochs=5).fit(images, few[1])
    logits = estimator.decision_function(few[0])
    text[:] = images[:] = 1.0
    estimator.set_params(logit_scale=1.0, alpha=9.0)
    assert np.array_equal(estimator.decision_function(few[0]), logits)


@pytest.mark.parametrize(("counts", "epochs"), [((4, 4), 100), ((8, 8), 200), ((8, 3), 200), ((1, 7), 100)])
def test_shots_are_the_images_of_the_largest_class(counts: tuple[int, int], epochs: int) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], counts)
    assert len(TaskResClassifier().fit(rng.normal(size=(len(labels), 4)), labels).loss_curve_) == epochs
    assert len(TaskResClassifier(epochs=2).fit(rng.normal(size=(len(labels), 4)), labels).loss_curve_) == 2


def test_random_states(few: tuple[np.ndarray, np.ndarray]) -> None:
    def residual(random_state: Any) -> np.ndarray:
        fitted = TaskResClassifier(batch_size=5, epochs=5, lr=0.1, random_state=random_state).fit(*few)
        found: np.ndarray = fitted.residual_
        return found

    assert np.array_equal(residual(3), residual(np.int64(3)))
    assert not np.array_equal(residual(3), residual(4))
    assert np.array_equal(residual(np.random.RandomState(3)), residual(np.random.RandomState(3)))
    generator = np.random.RandomState(3)
    assert not np.array_equal(residual(generator), residual(generator))
    np.random.seed(5)
    first = residual(None)
    np.random.seed(5)
    assert np.array_equal(residual(None), first)


def test_two_classes_have_one_decision_value(few: tuple[np.ndarray, np.ndarray]) -> None:
    image_features, labels = few[0], few[1] == "a"
    estimator = TaskResClassifier(epochs=5, logit_scale=10.0).fit(image_features, labels)
    decision, shares = estimator.decision_function(image_features), estimator.predict_proba(image_features)
    assert decision.shape == (12,)
    assert np.allclose(shares[:, 1], 1 / (1 + np.exp(-decision)), atol=1e-5)
    assert np.array_equal(estimator.predict(image_features), decision > 0)


def test_many_images_are_predicted_in_chunks(few: tuple[np.ndarray, np.ndarray]) -> None:
    estimator = TaskResClassifier(epochs=5).fit(*few)
    many = np.random.default_rng(0).normal(size=(9000, 8)).astype(np.float32)
    together = estimator.decision_function(many)
    weights = estimator.text_features_ + 0.5 * estimator.residual_
    assert together.shape == (9000, 3)
    assert np.allclose(together, logits(many, weights, 100.0), atol=1e-3)
    assert np.allclose(estimator.predict_proba(many).sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("residual", ["text", "both"])
@pytest.mark.parametrize("value", [0.0, 1e-30, 1e30])
def test_images_without_direction_are_left_out(few: tuple[np.ndarray, np.ndarray], residual: str, value: float) -> None:
    image_features, labels = few
    none = np.full((2, 8), value, np.float32)
    plain = TaskResClassifier(residual=residual, epochs=9).fit(image_features, labels)
    with pytest.warns(UserWarning, match="2 rows of X have no direction and are left out, the first is row 12"):
        estimator = TaskResClassifier(residual=residual, epochs=9).fit(
            np.concatenate([image_features, none]), np.concatenate([labels, ["a", "b"]])
        )
    assert np.array_equal(estimator.residual_, plain.residual_)
    assert np.isfinite(estimator.predict_proba(none)).all()
    if residual == "text":
        assert np.allclose(estimator.predict_proba(none), 1 / 3)
        assert (estimator.decision_function(none) == 0).all()


WRONG_PARAMETERS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"lr": -1.0}, ValueError, "lr must be a positive number, got -1.0"),
    ({"residual": "words"}, ValueError, "residual must be one of text, image, both, got 'words'"),
    ({"epochs": 0}, ValueError, "epochs must be a positive number, got 0"),
    ({"epochs": 1.5}, TypeError, "epochs must be an instance of"),
    ({"alpha": "big"}, TypeError, "alpha must be an instance of"),
    ({"logit_scale": 0.0}, ValueError, "logit_scale must be a positive number, got 0.0"),
    ({"logit_scale": float("nan")}, ValueError, "logit_scale must be a positive number, got nan"),
    ({"random_state": "seed"}, ValueError, "'seed' cannot be used to seed"),
    (
        {"text_features": np.ones((2, 8))},
        ValueError,
        r"has shape \(2, 8\), expected \(3, 8\) or \(3, T, 8\)",
    ),
    ({"text_features": np.ones((3, 2, 7))}, ValueError, r"has shape \(3, 2, 7\), expected \(3, 8\)"),
    ({"text_features": np.ones(8)}, ValueError, "Expected 2D array"),
    ({"text_features": np.full((3, 8), np.nan)}, ValueError, "text_features contains NaN"),
    ({"text_features": np.eye(3, 8) - np.eye(3, 8)[1]}, ValueError, "row of text_features of class 'b' has no direc"),
]


@pytest.mark.parametrize(("parameters", "error", "message"), WRONG_PARAMETERS)
def test_invalid_parameters(
    few: tuple[np.ndarray, np.ndarray], parameters: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        TaskResClassifier(classnames=list("abc"), **parameters).fit(*few)


def test_errors_are_taskres_errors_and_value_errors(few: tuple[np.ndarray, np.ndarray]) -> None:
    for wrong in (lambda: TaskResClassifier(lr=0.0).fit(*few), lambda: TaskResClassifier().fit(few[0], ["a"] * 12)):
        with pytest.raises(TaskresError) as caught:
            wrong()
        assert isinstance(caught.value, ValueError)
    with pytest.raises(ValueError, match="the mean of the images of class 'b' has no direction"):
        TaskResClassifier().fit(np.vstack([np.eye(2), -np.eye(2)]), ["a", "b", "c", "b"])
    with pytest.raises(ValueError, match="no row of X has a direction"):
        TaskResClassifier().fit(np.zeros((4, 3)), [0, 1, 0, 1])
    with pytest.raises(FitError, match="became NaN or infinite in epoch"):
        TaskResClassifier(alpha=1e38, lr=1e30, epochs=20).fit(*few)
    with pytest.raises(OptionError, match="device 'abacus' cannot be used here"):
        TaskResClassifier(device="abacus").fit(*few)
    with pytest.raises(NotFittedError):
        TaskResClassifier().predict_proba(few[0])


def test_pickling(few: tuple[np.ndarray, np.ndarray]) -> None:
    estimator = TaskResClassifier(epochs=5, residual="both").fit(*few)
    again = pickle.loads(pickle.dumps(estimator))
    assert np.array_equal(again.predict_proba(few[0]), estimator.predict_proba(few[0]))


def test_a_grid_search_over_alpha(digits: FeatureCache) -> None:
    image_features, labels = digits.train(4, 1)
    scale, folds = digits.provenance.logit_scale, StratifiedKFold(4, shuffle=True, random_state=0)
    plain = TaskResClassifier(digits.text_features, logit_scale=scale, device="cpu")
    search = GridSearchCV(plain, {"alpha": [1e-6, 2.0, 1e6]}, cv=folds).fit(image_features, labels)
    by_hand = [
        cross_val_score(clone(plain).set_params(alpha=alpha), image_features, labels, cv=folds).mean()
        for alpha in (1e-6, 2.0, 1e6)
    ]
    assert search.cv_results_["mean_test_score"].tolist() == by_hand
    assert search.best_params_ == {"alpha": 2.0}
    alone = clone(plain).set_params(alpha=2.0).fit(image_features, labels)
    assert np.array_equal(search.best_estimator_.residual_, alone.residual_)
    assert search.score(*digits.test()) == alone.score(*digits.test()) > 0.9


def test_a_step_of_a_pipeline(few: tuple[np.ndarray, np.ndarray]) -> None:
    pipeline = make_pipeline(FunctionTransformer(lambda features: 2 * features), TaskResClassifier(epochs=5))
    doubled = TaskResClassifier(epochs=5).fit(2 * few[0], few[1])
    assert np.array_equal(pipeline.fit(*few).predict_proba(few[0]), doubled.predict_proba(2 * few[0]))
    searched = GridSearchCV(pipeline, {"taskresclassifier__alpha": [0.1, 0.5]}, cv=2).fit(*few)
    assert searched.best_params_["taskresclassifier__alpha"] in (0.1, 0.5)
