"""Runs of methods other than the task residual: fitted, written, read again, measured, and found again."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from taskres_cache.caches.contents import CacheContents, Split
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.hdf5 import write_cache
from taskres_cache.datasets.sampling import ALL_SHOTS
from taskres_cache.errors import FitError, OptionError, RunError, UnknownNameError
from taskres_cache.estimator import TaskResClassifier
from taskres_cache.heads.head import Head
from taskres_cache.heads.kinds import AdapterHead, CosineHead, LinearHead, MemoryHead, ProjectionHead
from taskres_cache.methods.choice import MethodChoice, with_settings
from taskres_cache.methods.few_shot import FewShotTask, unit
from taskres_cache.methods.method import Adapted, Method
from taskres_cache.methods.names import expanded
from taskres_cache.methods.registry import find_method
from taskres_cache.runs.classifier import MethodClassifier
from taskres_cache.runs.evaluation import evaluate_run
from taskres_cache.runs.fitting.choices import choices_for, suited
from taskres_cache.runs.fitting.method_study import finished_method_runs, fit_methods
from taskres_cache.runs.fitting.study import fit
from taskres_cache.runs.run import Run, load_run, read_classifier

CPU = torch.device("cpu")
OWN = Path(__file__).parents[3] / "examples" / "own_method.py"


@dataclass(frozen=True)
class Options:
    scale: float = 2.0
    steps: int = 3
    rates: tuple[float, ...] = (0.1, 0.2)
    kind: str = "linear"


def fit_means(task: FewShotTask, options: Options) -> Adapted:
    """Return class means as the weights of a head of the wanted kind."""
    images = unit(task.train.image_features)
    means = np.stack([images[task.train.labels == label].mean(axis=0) for label in range(task.classes)])
    return Adapted(_head(options.kind, torch.from_numpy(options.scale * means), task), {"scale": options.scale})


def _head(kind: str, weights: torch.Tensor, task: FewShotTask) -> Head:
    classes, dim = weights.shape
    eye, scale = torch.eye(dim), task.logit_scale
    heads: dict[str, Head] = {
        "linear": LinearHead(weights, torch.arange(classes) / 10, "normalised"),
        "cosine": CosineHead(weights, scale),
        "memory": MemoryHead(weights, weights, torch.eye(classes), scale, 1.0, 5.0),
        "adapter": AdapterHead(eye[:2], eye[:, :2], weights, scale, 0.3, "raw"),
        "projection": ProjectionHead(eye, weights, scale, "features"),
    }
    return heads[kind]


MEANS = Method("means", fit_means, Options(), "class means", "fixed", "a test")
KINDS = ("linear", "cosine", "memory", "adapter", "projection")


def choice(**changes: Any) -> MethodChoice:
    return MethodChoice(MEANS, replace(MEANS.options, **changes))


def fitted(cache: FeatureCache, out: Path, one: MethodChoice, split: tuple[int, int] = (4, 1)) -> Run:
    (run,) = fit_methods(cache, [split], [one], CPU, out)
    return run


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_every_kind_of_head_is_read_as_it_was_written(kind: str, cache: FeatureCache, tmp_path: Path) -> None:
    run = fitted(cache, tmp_path, choice(kind=kind))
    classifier = read_classifier(run.folder)
    assert isinstance(classifier, MethodClassifier)
    features, labels = cache.test()
    head = classifier.head
    assert head.kind == kind
    by_hand = 100 * np.mean(head.logits(torch.from_numpy(features)).argmax(dim=1).numpy() == labels)
    metrics = load_run(run.folder).metrics
    assert metrics.test_accuracy == pytest.approx(by_hand)
    assert metrics.zero_shot_accuracy == metrics.base_accuracy == metrics.own_base_accuracy
    assert metrics.recipe is None
    assert metrics.record == choice(kind=kind).record()
    assert metrics.settings == {"scale": 2.0}
    assert metrics.temperature == pytest.approx(classifier.temperature)
    assert classifier.temperature != 1.0
    assert evaluate_run(classifier, cache, CPU).test_accuracy == metrics.test_accuracy
    estimator = TaskResClassifier.from_run(run.folder)
    assert estimator.score(features, labels) == pytest.approx(metrics.test_accuracy / 100)
    columns = np.argsort(np.array(cache.classnames))
    expected = run.probabilities(features)[:, columns]
    assert estimator.predict_proba(features) == pytest.approx(expected, abs=1e-6)


def test_methods_see_the_mean_images_per_class_of_all_shots(tmp_path: Path, contents: CacheContents) -> None:
    path = tmp_path / "toy.h5"
    all_but_one = Split(np.arange(11), np.array([12, 13, 14]))  # 11 images of 3 classes: 4 per class
    write_cache(path, replace(contents, splits={(ALL_SHOTS, 1): all_but_one}))
    cache = FeatureCache(path)
    seen: list[int] = []

    def spied(task: FewShotTask, options: Options) -> Adapted:
        seen.append(task.shots)
        return fit_means(task, options)

    spy = Method("spy", spied, Options(), "class means", "fixed", "a test")
    (of_method,) = fit_methods(cache, [(ALL_SHOTS, 1)], [MethodChoice(spy, Options())], CPU, tmp_path)
    (residual,) = fit(cache, device="cpu", out=tmp_path)
    assert seen == [4]
    for run in (of_method, residual):
        assert run.folder.parts[-2:] == ("shots_all", "seed_1")
        assert json.loads((run.folder / "metrics.json").read_text())["shots"] == "all"
        with safe_open(run.folder / "classifier.safetensors", framework="numpy") as stored:
            assert json.loads(stored.metadata()["shots"]) == "all"
        assert load_run(run.folder).metrics.shots == read_classifier(run.folder).shots == ALL_SHOTS
        assert run.metrics.images_per_class == pytest.approx(11 / 3)
    assert residual.metrics.epochs == 200
    assert fit(cache, device="cpu", out=tmp_path).summaries[0].to_json()["shots"] == "all"


def test_the_folder_names_every_option_that_differs(cache: FeatureCache, tmp_path: Path) -> None:
    runs = list(
        fit_methods(cache, [(4, 1)], [choice(), choice(scale=1.0, rates=(0.5,)), choice(steps=7)], CPU, tmp_path)
    )
    assert [run.folder.parts[-3] for run in runs] == ["means", "means-scale1-rates0.5", "means-steps7"]
    assert MethodChoice(MEANS, Options(kind="../up"), 4, "full", "ab" * 32).method_name().startswith("means-kind.._up")
    assert "/" not in MethodChoice(MEANS, Options(kind="../up")).method_name()
    assert MethodChoice(MEANS, Options(), 4, "full").method_name() == "means-views4-val-full"


def test_finished_runs_are_found_and_only_those_of_the_same_inputs(cache: FeatureCache, tmp_path: Path) -> None:
    run = fitted(cache, tmp_path, choice())
    assert finished_method_runs(cache, [(4, 1), (1, 1)], choice(), tmp_path).keys() == {(4, 1)}
    assert finished_method_runs(cache, [(4, 1)], choice(scale=3.0), tmp_path) == {}
    (run.folder / "metrics.json").unlink()
    assert finished_method_runs(cache, [(4, 1)], choice(), tmp_path) == {}


def test_the_whole_val_partition_is_other_inputs(cache: FeatureCache, tmp_path: Path) -> None:
    few, full = (fitted(cache, tmp_path, MethodChoice(MEANS, MEANS.options, val=val)) for val in ("few", "full"))
    assert few.metrics.inputs_sha256 != full.metrics.inputs_sha256
    assert full.folder.parts[-3] == "means-val-full"
    assert few.metrics.study_sha256 == full.metrics.study_sha256


@pytest.mark.parametrize(
    ("tensor", "value", "message"),
    [
        ("bias", np.float32(np.nan), "values that are not finite"),
        ("weights", None, "missing or unknown parts: weights"),
    ],
)
def test_a_changed_head_is_refused(tensor: str, value: Any, message: str, cache: FeatureCache, tmp_path: Path) -> None:
    file = fitted(cache, tmp_path, choice()).folder / "classifier.safetensors"
    tensors = load_file(file)
    with safe_open(file, framework="numpy") as stored:
        metadata = stored.metadata()
    tensors = {name: one for name, one in tensors.items() if name != tensor or value is not None}
    if value is not None:
        tensors[tensor] = np.full_like(tensors[tensor], value)
    save_file(tensors, file, metadata)
    with pytest.raises(RunError, match=message):
        read_classifier(file)


def test_every_flipped_byte_of_a_classifier_is_found(cache: FeatureCache, tmp_path: Path) -> None:
    file = fitted(cache, tmp_path, choice(kind="memory")).folder / "classifier.safetensors"
    content, rng = file.read_bytes(), np.random.default_rng(0)
    for place in rng.integers(0, len(content), 60).tolist():
        changed = bytearray(content)
        changed[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(changed)
        with pytest.raises(RunError):
            read_classifier(file)


def test_a_head_that_is_not_finite_is_no_run(cache: FeatureCache, tmp_path: Path) -> None:
    with pytest.raises(FitError, match="method means with 4 shots and seed 1: weights has values that are not finite"):
        fitted(cache, tmp_path, choice(scale=float("inf")))
    assert list(tmp_path.rglob("metrics.json")) == []


def test_a_method_that_needs_what_the_cache_has_not_is_refused_before_any_fit(
    cache: FeatureCache, tmp_path: Path
) -> None:
    needy = MethodChoice(replace(MEANS, name="needy", reads="pre_projection"), MEANS.options)
    with pytest.raises(OptionError, match="method needy: .* does not have the input of the image tower"):
        list(fit_methods(cache, [(4, 1)], [choice(), needy], CPU, tmp_path))
    assert list(tmp_path.rglob("metrics.json")) == []
    kept, notes = suited(cache, [choice(), needy])
    assert [one.method.name for one in kept] == ["means"]
    assert notes[0].startswith("needy is left out: ")


def test_options_are_set_from_text() -> None:
    assert with_settings(MEANS, {"scale": "3", "rates": "1,2.5", "steps": "4"}) == Options(3.0, 4, (1.0, 2.5))
    for settings, message in (
        ({"scael": "1"}, "method means has no option 'scael'; did you mean scale?"),
        ({"zzz": "1"}, "method means has no option 'zzz'; it has scale, steps, rates, kind"),
        ({"steps": "1.5"}, "option steps of means is '1.5', expected int"),
        ({"rates": "1,x"}, "option rates of means is 'x', expected float"),
    ):
        with pytest.raises(OptionError) as caught:
            with_settings(MEANS, settings)
        assert str(caught.value) == message


def test_a_method_of_a_users_own_file_is_fitted(cache: FeatureCache, tmp_path: Path) -> None:
    (one,) = choices_for(cache, [f"{OWN}:BLEND"], {"shares": "0,0.5"})
    run = fitted(cache, tmp_path, one)
    assert run.folder.parts[-3] == f"blend-shares0.0,0.5-source-{one.source_sha256[:8]}"
    assert run.metrics.trials is not None
    assert {trial.settings["share"] for trial in run.metrics.trials} == {0.0, 0.5}
    stored = json.loads((run.folder / "metrics.json").read_text())
    assert stored["record"]["source_sha256"] == one.source_sha256
    assert len(one.source_sha256) == 64


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = 1", "has no 'OWN'; it defines no Method"),
        ("OWN = 3", "is a int, expected a Method"),
        ("1 / 0", "could not load .* (ZeroDivisionError in line 1: division by zero); fix the file"),
        ("def f(:", "could not load .* (SyntaxError in line 1"),
    ],
)
def test_a_faulty_file_is_one_line(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(content)
    with pytest.raises(OptionError, match=message.replace("(", r"\(").replace(")", r"\)")):
        find_method(f"{file}:OWN")


def test_a_method_that_raises_is_one_line(cache: FeatureCache, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        "from taskres_cache.methods.method import Method\n"
        "def fit(task, options):\n    raise KeyError('gone')\n"
        "OWN = Method('own', fit, None, '', '', '')\n"
    )
    (one,) = choices_for(cache, [f"{file}:OWN"])
    with pytest.raises(FitError, match="method own failed .KeyError: 'gone'.; fix its file"):
        fitted(cache, tmp_path, one)
    file.write_text(file.read_text().replace("raise KeyError('gone')", "return 5"))
    with pytest.raises(FitError, match="method own returned int, expected Adapted"):
        fitted(cache, tmp_path, choices_for(cache, [f"{file}:OWN"])[0])


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown method 'linear-prob'; did you mean 'linear-probe'"):
        find_method("linear-prob")
    with pytest.raises(OptionError, match="there is no file nowhere.py"):
        find_method("nowhere.py:X")
    assert expanded(["gda", "all", "gda"])[:2] == ["gda", "taskres"]
