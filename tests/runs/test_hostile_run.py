"""Runs and base files that no fit wrote: refused in one line, or read as what they say."""

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.errors import RunError, TaskresError, WeightsError
from taskres_cache.runs.evaluation import evaluate_run
from taskres_cache.runs.fitting.base_files import read_base
from taskres_cache.runs.fitting.study import fit_each
from taskres_cache.runs.run import load_run
from tests.conftest import make_earlier
from tests.runs.conftest import CPU, RECIPE

TEXTS = (
    *("", "null", "[]", "{}", "1e999", "NaN", "-1", "0", "true", '"x"', "[1]", "[null]", "[" * 10_000, "9" * 5000),
    *(
        '"../../x"',
        "../../x",
        "-Infinity",
        "1e300",
        "1e-320",
        '["a"]',
        '{"alpha": "x"}',
        '{"epochs": -1}',
        '{"base": []}',
    ),
)
FIELDS = (
    *("classnames", "templates", "alpha", "shots", "seed", "class_ids", "half", "temperature", "recipe", "preprocess"),
    *("logit_scale", "dataset", "backbone", "views", "versions", "weights_sha256", "prompts"),
)
CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "NaN": lambda tensor: tensor * np.float32("nan"),
    "infinite": lambda tensor: tensor + np.float32("inf"),
    "too large": lambda tensor: np.full_like(tensor, 3e38),
    "of another type": lambda tensor: tensor.astype(np.float64),
    "of integers": lambda tensor: tensor.astype(np.int8),
    "flat": lambda tensor: tensor.ravel()[None],
    "empty": lambda tensor: tensor[:0],
    "without columns": lambda tensor: tensor[..., :0],
    "one row less": lambda tensor: tensor[:-1],
    "of no axis": lambda tensor: np.float32(1).reshape(()),
}


@pytest.fixture
def earlier(cache: FeatureCache, tmp_path: Path) -> Path:
    """The folder of a run without digests, which would refuse any change."""
    recipe = RECIPE.changed(base="enhanced", residual="both", epochs=2)
    (run,) = fit_each(cache, [(4, 1)], [recipe], CPU, tmp_path / "runs")
    make_earlier(run.folder)
    return run.folder


def is_refused_in_one_line(use: Callable[[], object]) -> bool:
    """Return whether a reader refuses; any error that is not the user's to fix passes through."""
    try:
        use()
    except TaskresError as error:
        assert len(str(error).splitlines()) == 1
        assert len(str(error)) < 1500
        return True
    return False


def changed_classifiers(folder: Path) -> Iterator[tuple[str, str]]:
    """Write one changed classifier after the other, and yield what is changed."""
    file = folder / "classifier.safetensors"
    with safe_open(file, framework="numpy") as stored:
        metadata = stored.metadata()
    tensors = load_file(file)
    for name in FIELDS:
        for text in TEXTS:
            save_file(tensors, file, {**metadata, name: text})
            yield name, text
    for name, tensor in tensors.items():
        for change, changed in CHANGES.items():
            save_file({**tensors, name: np.ascontiguousarray(changed(tensor))}, file, metadata)
            yield name, change


@pytest.mark.filterwarnings("error")
def test_classifiers_with_wrong_fields_and_tensors(earlier: Path, cache: FeatureCache) -> None:
    def use() -> None:
        run = load_run(earlier)
        evaluate_run(run.classifier, cache, CPU)
        assert np.isfinite(run.probabilities(np.ones((2, 8), np.float32))).all()

    refused = {what: is_refused_in_one_line(use) for what in changed_classifiers(earlier)}
    assert len(refused) > 300
    assert all(refused[name, change] for name in ("base", "residual", "image_residual") for change in CHANGES)
    legal = ("0", "-1", "1e-320")  # of alpha
    assert all(refused[name, text] for name in ("alpha", "classnames") for text in TEXTS if text not in legal)
    assert refused["temperature", "1e-320"]


@pytest.mark.filterwarnings("error")
def test_metrics_with_wrong_fields(earlier: Path) -> None:
    file = earlier / "metrics.json"
    metrics = json.loads(file.read_text())
    wrong = (
        None,
        [],
        {},
        -1,
        1.5,
        1e308,
        10**30,
        True,
        "x",
        [None],
        ["a"],
        {"a": 1},
        [[]] * 1000,
        {"alpha": "x"},
        101.0,
    )
    refused = {}
    for name in metrics:
        for value in wrong:
            file.write_text(json.dumps({**metrics, name: value}))
            refused[name, str(value)] = is_refused_in_one_line(lambda: load_run(earlier))
    assert sum(refused.values()) > 300
    assert all(refused["test_accuracy", value] for value in ("None", "-1", "101.0", "x", "1e+308"))
    for text in ("", "[]", "null", "{", '{"a":' * 10_000, "[" * 100_000, json.dumps(metrics)[:-5], "\0"):
        file.write_text(text)
        with pytest.raises(RunError, match="metrics.json"):
            load_run(earlier)


def test_bases_with_wrong_fields_and_tensors(tmp_path: Path) -> None:
    names, file = ("a", "b", "c"), tmp_path / "base.safetensors"
    base = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)

    def use() -> None:
        read_base(str(file), names, "ab").base_for(None, 3, 8)

    for text in TEXTS:
        save_file({"base": base}, file, {"classnames": text})
        assert is_refused_in_one_line(use) == (text != "null")
    for change in set(CHANGES) - {"of another type"}:
        save_file({"base": np.ascontiguousarray(CHANGES[change](base))}, file)
        assert is_refused_in_one_line(use)


WEIGHT = torch.ones(8, 4)
CHECKPOINTS: dict[str, Any] = {
    "a view that repeats one value": torch.zeros(1).expand(10**5, 10**6),
    "without values": torch.empty(8, 4, device="meta"),
    "sparse": WEIGHT.to_sparse(),
    "complex": WEIGHT.to(torch.complex64),
    "of integers": WEIGHT.long(),
    "NaN": WEIGHT * float("nan"),
    "of one axis": WEIGHT[0],
}


@pytest.mark.parametrize("what", list(CHECKPOINTS))
def test_checkpoints_with_odd_tensors_are_refused(tmp_path: Path, what: str) -> None:
    torch.save({"state_dict": {"weight": CHECKPOINTS[what]}}, tmp_path / "model.pth.tar")
    with pytest.raises(WeightsError, match=r"state_dict\.weight has|not a checkpoint") as caught:
        read_base(str(tmp_path / "model.pth.tar"), ("a", "b", "c"), "ab")
    assert len(str(caught.value).splitlines()) == 1


def test_a_compressed_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(1000, 1000)}}, tmp_path / "plain.pth.tar")
    file = tmp_path / "small.pth.tar"
    with (
        zipfile.ZipFile(tmp_path / "plain.pth.tar") as plain,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for name in plain.namelist():
            small.writestr(name, plain.read(name))
    with pytest.raises(WeightsError, match="small.pth.tar is a compressed zip file"):
        read_base(str(file), ("a", "b", "c"), "ab")


@pytest.mark.parametrize("legacy", [False, True])
def test_damaged_checkpoints_are_refused(tmp_path: Path, legacy: bool) -> None:
    file, rng = tmp_path / "model.pth.tar", np.random.default_rng(0)
    torch.save({"state_dict": {"weight": WEIGHT}}, file, _use_new_zipfile_serialization=not legacy)
    whole = np.frombuffer(file.read_bytes(), np.uint8)
    for number in range(60):
        damaged = whole.copy()
        damaged[rng.integers(len(whole), size=8)] = rng.integers(256, size=8)
        file.write_bytes(damaged[: rng.integers(len(whole)) if number % 2 else None].tobytes())
        is_refused_in_one_line(lambda: read_base(str(file), ("a", "b", "c"), "ab"))


def test_a_run_finds_its_cache_from_any_working_directory(
    cache: FeatureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from taskres_cache.runs.run import own_cache

    monkeypatch.chdir(tmp_path)
    relative = FeatureCache(cache.path.relative_to(tmp_path))
    (run,) = fit_each(relative, [(4, 1)], [RECIPE], CPU, Path("runs"))
    folder, nowhere = tmp_path / run.folder, tmp_path / "nowhere"
    assert own_cache(run.folder, run.classifier, nowhere) == relative.path  # as the user typed it
    elsewhere = tmp_path / "else" / "where"
    elsewhere.mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    assert own_cache(folder, run.classifier, nowhere) == cache.path
    make_earlier(folder)
    assert own_cache(folder, run.classifier, nowhere) == cache.path
    moved = tmp_path / "else" / "project"
    shutil.copytree(tmp_path / "runs", moved / "runs")
    shutil.copytree(tmp_path / "cache", moved / "cache")
    of_copy = moved / "runs" / folder.relative_to(tmp_path / "runs")
    assert own_cache(of_copy, run.classifier, nowhere) == moved / cache.path.relative_to(tmp_path)
