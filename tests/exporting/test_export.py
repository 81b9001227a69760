"""Exports predict what their run predicts: each format with its ordinary reader, compared with the formula in numpy."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from torch import nn

from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.errors import ExportError, MissingExtraError, OptionError, RunError, UnknownNameError
from taskres_cache.exporting import comparison, onnx_graph, tensors
from taskres_cache.exporting.comparison import head_reference
from taskres_cache.exporting.destination import format_of
from taskres_cache.exporting.export import export_head, export_with_encoder
from taskres_cache.recipe import Recipe
from taskres_cache.runs.classifier import Classifier
from taskres_cache.runs.run import read_classifier, write_run
from taskres_cache.system.extras import require
from tests.by_hand import normalised, softmax
from tests.conftest import metrics_of
from tests.exporting.exported import (
    NO_CACHE,
    by_hand,
    fitted,
    random_features,
    session_of,
    skip_without_the_extra,
)


@pytest.fixture
def onnx() -> Any:
    skip_without_the_extra("head.onnx")
    return pytest.importorskip("onnx")


@pytest.fixture(params=["text", "both", "image"])
def any_run(request: pytest.FixtureRequest, cache_file: Path, tmp_path: Path) -> Path:
    """A run with a residual on the text side, the image side, or both."""
    return fitted(FeatureCache(cache_file), tmp_path / "runs", residual=request.param)


@pytest.fixture
def run(cache_file: Path, tmp_path: Path) -> Path:
    return fitted(FeatureCache(cache_file), tmp_path / "runs")


def test_safetensors_hold_weights_and_metadata(any_run: Path, tmp_path: Path) -> None:
    done = export_head(any_run, tmp_path / "head.safetensors", None, NO_CACHE)
    tensors = load_file(tmp_path / "head.safetensors")
    classifier = read_classifier(any_run)
    has_shift = classifier.image_residual is not None
    assert set(tensors) == ({"weights", "image_shift"} if has_shift else {"weights"})
    assert tensors["weights"].shape == (3, 8)
    assert all(tensor.dtype == np.float32 for tensor in tensors.values())
    assert np.allclose(np.linalg.norm(tensors["weights"], axis=1), 1, atol=1e-6)
    with safe_open(tmp_path / "head.safetensors", framework="numpy") as file:
        metadata = file.metadata()
    assert (metadata["format"], metadata["format_version"]) == ("taskres-head", "1")
    assert json.loads(metadata["classnames"]) == ["black_cat", "dog", "été"]
    assert (float(metadata["logit_scale"]), float(metadata["temperature"])) == (100.0, 1.7)
    source = classifier.provenance
    assert [metadata[name] for name in ("dataset", "backbone", "pretrained", "model_config", "weights_sha256")] == [
        "toy", "tower", "random", "tower", source.weights_sha256,
    ]  # fmt: skip
    assert json.loads(metadata["preprocess"]) == {"size": [8, 8], "orientation": "exif"}
    assert ("image_features + image_shift" in metadata["how_to_use"]) == has_shift
    features = random_features(7)
    scale = float(metadata["logit_scale"]) / float(metadata["temperature"])
    found = softmax(scale * normalised(features + tensors.get("image_shift", 0)) @ tensors["weights"].T)
    assert np.allclose(found, by_hand(any_run, features), atol=1e-5)
    assert done.shapes["weights"] == (3, 8)


def test_one_onnx_file_takes_any_number_of_images(any_run: Path, tmp_path: Path, onnx: Any) -> None:
    done = export_head(any_run, tmp_path / "head.onnx", None, NO_CACHE)
    onnx.checker.check_model(str(tmp_path / "head.onnx"), full_check=True)
    session = session_of(tmp_path / "head.onnx")
    assert [(end.name, end.shape, end.type) for end in (*session.get_inputs(), *session.get_outputs())] == [
        ("image_features", ["N", 8], "tensor(float)"),
        ("probabilities", ["N", 3], "tensor(float)"),
    ]
    for count in (1, 7):
        (found,) = session.run(None, {"image_features": 3 * random_features(count)})
        assert found.shape == (count, 3)
        assert np.allclose(found, by_hand(any_run, 3 * random_features(count)), atol=2e-5)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classnames"]) == ["black_cat", "dog", "été"]
    assert (metadata["dataset"], float(metadata["temperature"])) == ("toy", 1.7)
    assert done.shapes == {"image_features": ("N", 8), "probabilities": ("N", 3)}


def test_a_graph_contains_no_paths_of_this_machine(run: Path, tmp_path: Path, onnx: Any) -> None:
    export_head(run, tmp_path / "head.onnx", None, NO_CACHE)
    content = (tmp_path / "head.onnx").read_bytes()
    here = Path(onnx_graph.__file__).parent, Path(torch.__file__).parent, tmp_path
    assert not any(str(place).encode() in content for place in here)
    assert b"stack_trace" not in content


def test_the_exporter_prints_nothing(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], onnx: Any) -> None:
    export_head(run, tmp_path / "head.onnx", None, NO_CACHE)
    assert capfd.readouterr() == ("", "")


def test_an_open_clip_head_is_a_bare_tensor(run: Path, tmp_path: Path) -> None:
    done = export_head(run, tmp_path / "head.pt", None, NO_CACHE)
    columns = torch.load(tmp_path / "head.pt", weights_only=True)
    assert (columns.shape, columns.dtype) == ((8, 3), torch.float32)
    assert np.allclose(columns.norm(dim=0), 1, atol=1e-6)
    metadata = json.loads((tmp_path / "head.pt.json").read_text())
    assert metadata["classnames"] == ["black_cat", "dog", "été"]
    scale = metadata["logit_scale"] / metadata["temperature"]
    found = softmax(scale * normalised(random_features(7)) @ columns.numpy())
    assert np.allclose(found, by_hand(run, random_features(7)), atol=1e-5)
    assert done.files == (tmp_path / "head.pt", tmp_path / "head.pt.json")


def test_an_open_clip_head_cannot_hold_an_image_residual(cache_file: Path, tmp_path: Path) -> None:
    run = fitted(FeatureCache(cache_file), tmp_path / "runs", residual="image")
    with pytest.raises(OptionError, match=r"added to features before .*; export to \.safetensors or \.onnx"):
        export_head(run, tmp_path / "out" / "head.pt", None, NO_CACHE)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("name", ["head.safetensors", "head.onnx", "head.pt"])
def test_a_wrong_file_is_found_and_replaces_nothing(
    name: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_without_the_extra(name)
    file = tmp_path / "out" / name
    export_head(run, file, None, NO_CACHE)
    before = {path.name: path.read_bytes() for path in file.parent.iterdir()}
    right = tensors.unit_weights
    for module in (tensors, onnx_graph):
        monkeypatch.setattr(module, "unit_weights", lambda head: np.roll(right(head), 1, axis=0).copy())
    with pytest.raises(ExportError, match=rf"{name}: the written file differs from the run by 0?\.?\d"):
        export_head(run, file, None, NO_CACHE)
    for module in (tensors, onnx_graph):
        monkeypatch.setattr(module, "unit_weights", lambda head: right(head) * np.float32(1.01))  # too long
    with pytest.raises(
        ExportError, match=r"expected at most (1e-05|0\.0001) from rounding; existing files are unchanged"
    ):
        export_head(run, file, None, NO_CACHE)
    assert {path.name: path.read_bytes() for path in file.parent.iterdir()} == before


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("head.safetensors", tensors.SafetensorsForm),
        ("head.onnx", onnx_graph.OnnxForm),
        ("head.pt", tensors.OpenClipForm),
    ],
)
def test_a_truncated_file_is_found(
    name: str, form: type[Any], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_without_the_extra(name)
    whole = form.write

    def half(self: Any, classifier: Classifier, files: Sequence[Path]) -> Any:
        shapes = whole(self, classifier, files)
        files[0].write_bytes(files[0].read_bytes()[: files[0].stat().st_size // 2])
        return shapes

    monkeypatch.setattr(form, "write", half)
    (tmp_path / name).write_bytes(b"existing")
    with pytest.raises(ExportError, match=rf"could not export .*{name}: the written file could not be read again"):
        export_head(run, tmp_path / name, None, NO_CACHE)
    assert (tmp_path / name).read_bytes() == b"existing"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_inputs_of_the_comparison(any_run: Path, cache_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier, cache = read_classifier(any_run), FeatureCache(cache_file)
    own = head_reference(any_run, classifier, NO_CACHE)
    assert own.of == "test images of the run's cache"
    assert np.array_equal(own.inputs, cache.image_features(cache.rows("test")))
    assert np.allclose(own.expected, by_hand(any_run, own.inputs), atol=1e-12)
    monkeypatch.setattr(comparison, "MAX_ROWS", 3)
    few = head_reference(any_run, classifier, NO_CACHE)
    assert np.array_equal(few.inputs, own.inputs[[0, 4, 8]])
    monkeypatch.undo()
    cache_file.write_bytes(cache_file.read_bytes()[:2000])  # damaged
    seeded = head_reference(any_run, classifier, NO_CACHE)
    cache_file.unlink()
    again = head_reference(any_run, classifier, NO_CACHE)
    assert np.array_equal(seeded.inputs, again.inputs)
    assert (seeded.inputs.shape, seeded.inputs.dtype) == ((comparison.MAX_ROWS, 8), np.float32)
    assert "the run's cache was not found" in seeded.of
    assert np.bincount(seeded.expected.argmax(axis=1), minlength=3).min() > 100  # every class is predicted
    assert (seeded.expected.max(axis=1) < 0.99).mean() > 0.1  # and not all with certainty
    write_run(any_run, classifier, metrics_of())  # metrics that name no cache
    assert np.array_equal(head_reference(any_run, classifier, NO_CACHE).inputs, seeded.inputs)


@pytest.mark.parametrize("name", ["head.safetensors", "head.onnx", "head.pt"])
def test_the_usage_lines_work(name: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without_the_extra(name)
    done = export_head(run, tmp_path / name, None, NO_CACHE)
    monkeypatch.chdir(tmp_path)
    features = random_features(7)
    as_tensor = torch.from_numpy(features)
    model = SimpleNamespace(encode_image=lambda images, normalize: nn.functional.normalize(images, dim=-1))
    names: dict[str, Any] = {"model": model, "images": as_tensor}
    names["image_features"] = features if name == "head.onnx" else as_tensor
    exec("\n".join(done.usage), names)
    assert np.allclose(names["probabilities"], by_hand(run, features), atol=2e-5)


def test_the_suffix_decides_the_format() -> None:
    assert format_of(Path("a/head.safetensors"), None) == "safetensors"
    assert format_of(Path("head.ONNX"), None) == "onnx"
    assert format_of(Path("head.pt"), None) == "open_clip"
    assert format_of(Path("head.pt"), "onnx") == "onnx"
    with pytest.raises(OptionError, match=r"head\.h5: unknown suffix, expected one of \.safetensors .*--format"):
        format_of(Path("head.h5"), None)
    with pytest.raises(
        UnknownNameError, match="unknown format 'onxx'; did you mean 'onnx'.*known formats: safetensors, onnx"
    ):
        format_of(Path("head.onnx"), "onxx")


def test_files_of_a_run_are_not_overwritten(run: Path, tmp_path: Path) -> None:
    before = (run / "classifier.safetensors").read_bytes()
    with pytest.raises(OptionError, match="run folders use that name; choose another name"):
        export_head(run, run / "classifier.safetensors", None, NO_CACHE)
    assert (run / "classifier.safetensors").read_bytes() == before
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(OptionError, match="it is a folder"):
        export_head(run, tmp_path / "folder.pt", None, NO_CACHE)


def test_several_or_no_runs_are_refused(cache_file: Path, tmp_path: Path) -> None:
    cache = FeatureCache(cache_file)
    folders = [fitted(cache, tmp_path / "runs", epochs=epochs) for epochs in (1, 2)]
    with pytest.raises(OptionError, match=f"holds 2 runs; pass one of them, such as {folders[1]}"):
        export_head(tmp_path / "runs", tmp_path / "head.pt", None, NO_CACHE)
    with pytest.raises(RunError, match=r"no classifier\.safetensors at or below"):
        export_head(tmp_path / "none", tmp_path / "head.pt", None, NO_CACHE)
    save_file({"weights": np.eye(2, dtype=np.float32)}, folders[0] / "classifier.safetensors")
    with pytest.raises(RunError, match="not an intact run"):
        export_head(folders[0], tmp_path / "head.pt", None, NO_CACHE)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    require("this test", "onnx", ("json", "torch"))
    for package in ("onnx_not_installed", "nor_this"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError) as caught:
        require("this test", "onnx", ("json", "onnx_not_installed", "nor_this"))
    assert str(caught.value) == (
        "this test needs onnx_not_installed, nor_this (not installed): pip install 'taskres-cache[onnx]'"
    )


def test_a_missing_extra_is_reported_first(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for export in (
        lambda: export_head(run, tmp_path / "out" / "head.onnx", None, NO_CACHE),
        lambda: export_with_encoder(run, tmp_path / "out" / "head.onnx", None),
    ):
        with pytest.raises(
            MissingExtraError, match=r"`taskres export` to ONNX needs .*onnxruntime \(not installed\): .*\[onnx\]"
        ):
            export()
    assert not (tmp_path / "out").exists()
    assert export_head(run, tmp_path / "head.pt", None, NO_CACHE).format == "open_clip"  # needs no extra


def test_the_metadata_names_method_and_split(run: Path, tmp_path: Path) -> None:
    export_head(run, tmp_path / "head.pt", None, NO_CACHE)
    metadata = json.loads((tmp_path / "head.pt.json").read_text())
    assert metadata["method"] == read_classifier(run).recipe.method_name() != Recipe().method_name()
    assert (metadata["shots"], metadata["seed"]) == (1, 1)


@pytest.mark.parametrize(
    ("name", "form"), [("a.safetensors", tensors.SafetensorsForm()), ("a.pt", tensors.OpenClipForm())]
)
def test_a_flipped_byte_of_an_export_changes_nothing_or_is_found(
    cache_file: Path, tmp_path: Path, name: str, form: Any
) -> None:
    file = tmp_path / name
    export_head(fitted(FeatureCache(cache_file), tmp_path / "runs"), file, None, NO_CACHE)
    files, inputs = form.files(file), random_features(5)
    expected, found = form.probabilities(files, inputs), 0
    for one in files:
        whole = one.read_bytes()
        for place in range(0, len(whole), 3):
            one.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
            try:
                read = form.probabilities(files, inputs)
            except Exception:  # noqa: BLE001  torch and safetensors raise nearly any for a damaged file
                found += 1
                continue
            assert np.array_equal(read, expected)
        one.write_bytes(whole)
    assert found > 200
