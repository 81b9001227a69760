"""Exports say what their run says: each format by its ordinary reader, against the formula written out in numpy."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from torch import nn

from taskres_cache.backbones import Backbone, digest_of_weights, plain_preprocess, untrained_model
from taskres_cache.bundled import GLYPH_CLIP_WEIGHTS
from taskres_cache.contents import CacheContents
from taskres_cache.datasets import load_dataset
from taskres_cache.errors import ExportError, MissingExtraError, OptionError, RunError, UnknownNameError, WeightsError
from taskres_cache.exporting import agreement, head_forms, onnx_form
from taskres_cache.exporting.agreement import Trial, compared, head_trial, tolerance_at
from taskres_cache.exporting.export import export_head, export_with_encoder, format_of
from taskres_cache.exporting.onnx_form import OnnxForm
from taskres_cache.extraction import ExtractOptions, extract
from taskres_cache.extras import require
from taskres_cache.recipe import Recipe
from taskres_cache.runs import Classifier, read_classifier, read_metrics, write_run
from taskres_cache.store import FeatureCache, write_cache
from taskres_cache.study import recipe_of, run_study
from tests.test_towers import as_after_training

NO_CACHE = Path("nowhere")
CPU = torch.device("cpu")


def session_of(file: Path) -> Any:
    """Open a graph as anybody would, or skip the test where onnxruntime is not installed."""
    onnxruntime = pytest.importorskip("onnxruntime")
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


@pytest.fixture
def onnx() -> Any:
    skip_without_the_extra("head.onnx")
    return pytest.importorskip("onnx")


def skip_without_the_extra(name: str) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime") if name == "head.onnx" else ():
        pytest.importorskip(package)


def fitted(cache: FeatureCache, out: Path, **choices: Any) -> Path:
    """Fit one run on the first of a cache's splits, and give it a temperature that shows."""
    recipe = recipe_of(cache, **{"epochs": 5, "lr": 0.02, **choices})
    (run,) = run_study(cache, [next(iter(cache.splits))], [recipe], CPU, out)
    classifier = replace(read_classifier(run.folder), temperature=1.7)
    write_run(run.folder, classifier, read_metrics(run.folder))
    return run.folder


@pytest.fixture(params=["text", "both", "image"])
def any_run(request: pytest.FixtureRequest, cache_file: Path, tmp_path: Path) -> Path:
    """A run with a residual of either side, or of both."""
    return fitted(FeatureCache(cache_file), tmp_path / "runs", residual=request.param)


@pytest.fixture
def run(cache_file: Path, tmp_path: Path) -> Path:
    return fitted(FeatureCache(cache_file), tmp_path / "runs")


def by_hand(run: Path, image_features: np.ndarray) -> np.ndarray:
    """Return the probabilities (N, C) of a run: from its file alone, in float64, without the library."""
    stored = load_file(run / "classifier.safetensors")
    with safe_open(run / "classifier.safetensors", framework="numpy") as file:
        alpha, scale, temperature = (float(file.metadata()[name]) for name in ("alpha", "logit_scale", "temperature"))
    features = image_features.astype(np.float64) + alpha * stored.get("image_residual", np.float64(0))
    weights = stored["base"].astype(np.float64) + alpha * stored["residual"]
    lengths = np.linalg.norm(features, axis=1)[:, None] * np.linalg.norm(weights, axis=1)
    exponentials = np.exp(scale / temperature * (features @ weights.T) / lengths)
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def drawn(count: int, width: int = 8) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, width)).astype(np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def normalised(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def test_safetensors_hold_all_that_is_needed(any_run: Path, tmp_path: Path) -> None:
    done = export_head(any_run, tmp_path / "head.safetensors", None, NO_CACHE)
    tensors = load_file(tmp_path / "head.safetensors")
    classifier = read_classifier(any_run)
    moves = classifier.image_residual is not None
    assert set(tensors) == ({"weights", "image_shift"} if moves else {"weights"})
    assert tensors["weights"].shape == (3, 8)
    assert all(tensor.dtype == np.float32 for tensor in tensors.values())
    assert np.allclose(np.linalg.norm(tensors["weights"], axis=1), 1, atol=1e-6)
    with safe_open(tmp_path / "head.safetensors", framework="numpy") as file:
        said = file.metadata()
    assert (said["format"], said["format_version"]) == ("taskres-head", "1")
    assert json.loads(said["classnames"]) == ["black_cat", "dog", "été"]
    assert (float(said["logit_scale"]), float(said["temperature"])) == (100.0, 1.7)
    source = classifier.provenance
    assert [said[name] for name in ("dataset", "backbone", "pretrained", "model_config", "weights_sha256")] == [
        "toy", "tower", "random", "tower", source.weights_sha256,
    ]  # fmt: skip
    assert json.loads(said["preprocess"]) == {"size": [8, 8], "orientation": "exif"}
    assert ("image_features + image_shift" in said["how_to_use"]) == moves
    features = drawn(7)
    scale = float(said["logit_scale"]) / float(said["temperature"])
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
        (found,) = session.run(None, {"image_features": 3 * drawn(count)})
        assert found.shape == (count, 3)
        assert np.allclose(found, by_hand(any_run, 3 * drawn(count)), atol=2e-5)
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["classnames"]) == ["black_cat", "dog", "été"]
    assert (said["dataset"], float(said["temperature"])) == ("toy", 1.7)
    assert done.shapes == {"image_features": ("N", 8), "probabilities": ("N", 3)}


def test_a_graph_tells_nothing_of_the_machine_that_it_was_made_on(run: Path, tmp_path: Path, onnx: Any) -> None:
    export_head(run, tmp_path / "head.onnx", None, NO_CACHE)
    content = (tmp_path / "head.onnx").read_bytes()
    here = Path(onnx_form.__file__).parent, Path(torch.__file__).parent, tmp_path
    assert not any(str(place).encode() in content for place in here)
    assert b"stack_trace" not in content


def test_the_exporter_is_not_heard(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], onnx: Any) -> None:
    export_head(run, tmp_path / "head.onnx", None, NO_CACHE)
    assert capfd.readouterr() == ("", "")


def test_an_open_clip_head_is_a_bare_tensor(run: Path, tmp_path: Path) -> None:
    done = export_head(run, tmp_path / "head.pt", None, NO_CACHE)
    columns = torch.load(tmp_path / "head.pt", weights_only=True)
    assert (columns.shape, columns.dtype) == ((8, 3), torch.float32)
    assert np.allclose(columns.norm(dim=0), 1, atol=1e-6)
    said = json.loads((tmp_path / "head.pt.json").read_text())
    assert said["classnames"] == ["black_cat", "dog", "été"]
    found = softmax(said["logit_scale"] / said["temperature"] * normalised(drawn(7)) @ columns.numpy())
    assert np.allclose(found, by_hand(run, drawn(7)), atol=1e-5)
    assert done.files == (tmp_path / "head.pt", tmp_path / "head.pt.json")


def test_an_open_clip_head_cannot_hold_a_residual_of_the_image_side(cache_file: Path, tmp_path: Path) -> None:
    run = fitted(FeatureCache(cache_file), tmp_path / "runs", residual="image")
    with pytest.raises(OptionError, match=r"added before they are normalised; export to \.safetensors or \.onnx"):
        export_head(run, tmp_path / "out" / "head.pt", None, NO_CACHE)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.fixture(scope="module")
def digits_run(glyph_clip: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the bundled digits through the bundled CLIP."""
    folder = tmp_path_factory.mktemp("digits")
    cache = folder / "cache" / "glyph-clip-bundled" / "digits.h5"
    extract(load_dataset("digits", Path()), glyph_clip, ExtractOptions(shots=(4,), seeds=(1,)), cache)
    return fitted(FeatureCache(cache), folder / "runs", epochs=50)


@pytest.fixture(scope="module")
def photographs() -> tuple[list[Image.Image], list[int]]:
    """The digits' test images, and what they are."""
    digits = load_dataset("digits", Path())
    items = digits.partitions["test"]
    return [digits.source.read(item.path) for item in items], [item.label for item in items]


def test_open_clips_own_loop_comes_to_the_runs_accuracy(
    digits_run: Path, photographs: tuple[list[Image.Image], list[int]], tmp_path: Path
) -> None:
    export_head(digits_run, tmp_path / "head.pt", None, NO_CACHE)
    model, _, preprocess = open_clip.create_model_and_transforms("glyph-clip", pretrained=str(GLYPH_CLIP_WEIGHTS))
    classifier = torch.load(tmp_path / "head.pt", weights_only=True)
    images, labels = torch.stack([preprocess(image) for image in photographs[0]]), torch.tensor(photographs[1])
    with torch.no_grad():
        logits = 100.0 * model.eval().encode_image(images, normalize=True) @ classifier
    accuracy = 100.0 * (logits.argmax(dim=-1) == labels).sum().item() / len(labels)
    assert accuracy == read_metrics(digits_run)["test_accuracy"]


def test_pixels_go_through_tower_and_head_in_one_graph(
    digits_run: Path,
    photographs: tuple[list[Image.Image], list[int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    onnx: Any,
) -> None:
    done = export_with_encoder(digits_run, tmp_path / "whole.onnx", None)
    session = session_of(tmp_path / "whole.onnx")
    cache = FeatureCache(Path(read_metrics(digits_run)["cache"]))
    expected = by_hand(digits_run, cache.image_features(cache.rows("test")))
    pixels = as_pixels(photographs[0], "glyph-clip")
    assert pixels.shape == (359, 3, 32, 32)
    for rows in (slice(0, 1), slice(0, 7), slice(None)):
        (found,) = session.run(None, {"pixels": pixels[rows]})
        assert np.allclose(found, expected[rows], atol=1e-4)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"pixels": pixels[:7]}
    exec("\n".join(done.usage), names)
    assert np.allclose(names["probabilities"], expected[:7], atol=1e-4)
    assert names["classnames"] == list("0123456789")
    assert done.shapes == {"pixels": ("N", 3, 32, 32), "probabilities": ("N", 10)}
    assert done.comparison.rows == agreement.TRIAL_IMAGES
    assert str(Path(open_clip.__file__).parent).encode() not in (tmp_path / "whole.onnx").read_bytes()


def as_pixels(images: Sequence[Image.Image], config: str) -> np.ndarray:
    """Return images (N, 3, H, W) as open_clip's own preprocessing leaves them, but not yet normalised."""
    _, _, preprocess = open_clip.create_model_and_transforms(config)
    return np.stack([_up_to_normalising(preprocess)(image).numpy() for image in images])


def _up_to_normalising(preprocess: Any) -> Any:
    return type(preprocess)(preprocess.transforms[:-1])


TINY_TEXT = {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
TINY_VIT = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": TINY_TEXT,
}
TINY_RN = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 64, "layers": [1, 2, 1, 1], "width": 8, "head_width": 16},
    "text_cfg": TINY_TEXT,
}


@pytest.fixture(scope="module", autouse=True)
def tiny_configs(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("configs")
    (folder / "exported-vit.json").write_text(json.dumps(TINY_VIT))
    (folder / "exported-vit-quickgelu.json").write_text(json.dumps({**TINY_VIT, "quick_gelu": True}))
    (folder / "exported-rn.json").write_text(json.dumps(TINY_RN))
    open_clip.add_model_config(folder)


def a_checkpoint(config: str, file: Path, seed: int = 0) -> nn.Module:
    """Write a local checkpoint with random weights, batch norms as after training, and return its model."""
    model = as_after_training(untrained_model(config, seed)[0])
    torch.save(model.state_dict(), file)
    return model


def a_run_of(model: nn.Module, config: str, folder: Path, run: Path) -> Path:
    """Write a run as if it had been fitted on features of a model, with weights that tell its features apart.

    A tower with random weights says nearly the same of every image; weights at right angles to that see the rest.
    """
    fitted_elsewhere = read_classifier(run)
    common = features_of(model, config, coloured(5)).mean(axis=0)
    rng = np.random.default_rng(0)
    drawn_parts = rng.normal(size=(2, 3, len(common)))
    base, residual = drawn_parts - (drawn_parts @ common)[..., None] * common / (common @ common)
    provenance = replace(
        fitted_elsewhere.provenance,
        backbone=config.removesuffix("-quickgelu"),
        pretrained="weights",
        model_config=config,
        weights_sha256=digest_of_weights(model),
        preprocess={**plain_preprocess(model), "orientation": "exif"},
    )
    shift = 1e-4 * np.linalg.norm(common) * rng.normal(size=len(common))
    classifier = replace(fitted_elsewhere, provenance=provenance, temperature=0.8)
    tensors = {"base": base, "residual": residual, "image_residual": shift}
    write_run(folder, replace(classifier, **{name: part.astype(np.float32) for name, part in tensors.items()}), {})
    return folder


def coloured(count: int) -> list[Image.Image]:
    """Return images with a few colours each, as many as asked."""
    grids = np.random.default_rng(count).integers(0, 256, (count, 3, 3, 3), dtype=np.uint8)
    return [Image.fromarray(grid).resize((70, 50), Image.Resampling.NEAREST) for grid in grids]


def features_of(model: nn.Module, config: str, images: Sequence[Image.Image]) -> np.ndarray:
    """Return features (N, D) as open_clip itself computes them."""
    _, _, preprocess = open_clip.create_model_and_transforms(config)
    with torch.no_grad():
        return model.encode_image(torch.stack([preprocess(image) for image in images])).numpy()


@pytest.mark.parametrize("config", ["exported-vit", "exported-vit-quickgelu", "exported-rn"])
def test_towers_of_both_kinds_export(config: str, run: Path, tmp_path: Path, onnx: Any) -> None:
    """Against open_clip's own model and preprocessing; the QuickGELU of a run is not forgotten for a local file."""
    model = a_checkpoint(config, tmp_path / "weights.pt")
    own = a_run_of(model, config, tmp_path / "own", run)
    export_with_encoder(own, tmp_path / "whole.onnx", str(tmp_path / "weights.pt"))
    session = session_of(tmp_path / "whole.onnx")
    images = coloured(7)
    expected = by_hand(own, features_of(model, config, images))
    assert expected.std(axis=0).max() > 1e-3  # the images are told apart
    pixels = as_pixels(images, config)
    for count in (1, 7):
        (found,) = session.run(None, {"pixels": pixels[:count]})
        assert np.allclose(found, expected[:count], atol=1e-4)
    (swapped,) = session.run(None, {"pixels": pixels[:, ::-1]})
    assert np.abs(swapped - expected).max() > 1e-3  # and their colours


def test_another_checkpoint_than_the_runs_is_refused(run: Path, tmp_path: Path, onnx: Any) -> None:
    model = a_checkpoint("exported-vit", tmp_path / "weights.pt")
    a_checkpoint("exported-vit", tmp_path / "other.pt", seed=1)
    own = a_run_of(model, "exported-vit", tmp_path / "own", run)
    file = tmp_path / "out" / "whole.onnx"
    with pytest.raises(
        RunError, match="'other' of exported-vit are not the run's encoder: weights_sha256: the run has"
    ):
        export_with_encoder(own, file, str(tmp_path / "other.pt"))
    with pytest.raises(OptionError, match="called 'weights', which is no tag of exported-vit; pass --pretrained"):
        export_with_encoder(own, file, None)
    with pytest.raises(WeightsError, match=r"checkpoint .*none\.pt does not exist"):
        export_with_encoder(own, file, str(tmp_path / "none.pt"))
    darker = read_classifier(own)
    preprocess = {**darker.provenance.preprocess, "mean": [0.0, 0.0, 0.0]}
    write_run(own, replace(darker, provenance=replace(darker.provenance, preprocess=preprocess)), {})
    with pytest.raises(RunError, match=r"preprocess: mean: the run has \[0.0, 0.0, 0.0\]"):
        export_with_encoder(own, file, str(tmp_path / "weights.pt"))
    assert not file.parent.exists()


def test_imported_features_have_no_encoder(contents: CacheContents, tmp_path: Path, onnx: Any) -> None:
    provenance = replace(contents.provenance, weights_sha256="unknown")
    write_cache(tmp_path / "toy.h5", replace(contents, provenance=provenance))
    run = fitted(FeatureCache(tmp_path / "toy.h5"), tmp_path / "runs")
    with pytest.raises(RunError, match="imported features of 'toy', whose encoder is not known here"):
        export_with_encoder(run, tmp_path / "whole.onnx", None)
    assert export_head(run, tmp_path / "head.onnx", None, NO_CACHE).classes == 3


class Branching(nn.Module):
    """A tower that decides by what it sees, which no exporter can follow."""

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        features = pixels.mean(dim=(2, 3))
        return features if features.sum() > 0 else -features


class Huge(nn.Module):
    """A tower with 2.2 GiB of weights that take no memory."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = nn.Linear(30_000, 20_000, device="meta")


def test_towers_that_do_not_export_are_one_line(
    glyph_clip: Backbone, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], onnx: Any
) -> None:
    classifier, written = read_classifier(run), [tmp_path / "whole.onnx"]
    model = Branching()
    model.visual = nn.Identity()
    with pytest.raises(
        ExportError, match="tower of glyph-clip does not export to ONNX .*export the head alone"
    ) as told:
        OnnxForm(replace(glyph_clip, model=model)).write(classifier, written)
    assert len(str(told.value).splitlines()) == 1
    assert len(str(told.value)) < 450
    with pytest.raises(
        ExportError, match=r"its weights take 2\.2 GiB and one ONNX file holds 2 GiB\); export the head"
    ):
        OnnxForm(replace(glyph_clip, model=Huge())).write(classifier, written)
    assert not written[0].exists()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["head.safetensors", "head.onnx", "head.pt"])
def test_a_wrong_write_is_found_and_costs_nothing(
    name: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_without_the_extra(name)
    file = tmp_path / "out" / name
    export_head(run, file, None, NO_CACHE)
    before = {path.name: path.read_bytes() for path in file.parent.iterdir()}
    right = head_forms.directions
    for module in (head_forms, onnx_form):
        monkeypatch.setattr(module, "directions", lambda head: np.roll(right(head), 1, axis=0).copy())  # classes moved
    with pytest.raises(ExportError, match=rf"{name} is not exported: what was written differs from the run by 0?\.?\d"):
        export_head(run, file, None, NO_CACHE)
    for module in (head_forms, onnx_form):
        monkeypatch.setattr(module, "directions", lambda head: right(head) * np.float32(1.01))  # no longer of length 1
    with pytest.raises(ExportError, match=r"at most (1e-05|0\.0001) is rounding; whatever was there before is kept"):
        export_head(run, file, None, NO_CACHE)
    assert {path.name: path.read_bytes() for path in file.parent.iterdir()} == before


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("head.safetensors", head_forms.SafetensorsForm),
        ("head.onnx", onnx_form.OnnxForm),
        ("head.pt", head_forms.OpenClipForm),
    ],
)
def test_half_a_file_is_found(
    name: str, form: type[Any], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_without_the_extra(name)
    whole = form.write

    def half(self: Any, classifier: Classifier, files: Sequence[Path]) -> Any:
        shapes = whole(self, classifier, files)
        files[0].write_bytes(files[0].read_bytes()[: files[0].stat().st_size // 2])
        return shapes

    monkeypatch.setattr(form, "write", half)
    (tmp_path / name).write_bytes(b"what was there before")
    with pytest.raises(ExportError, match=rf"{name} is not exported: what was written cannot be read again"):
        export_head(run, tmp_path / name, None, NO_CACHE)
    assert (tmp_path / name).read_bytes() == b"what was there before"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def asked(found: list[list[float]]) -> agreement.Ask:
    return lambda _files, _inputs: np.array(found)


def test_what_counts_as_agreement() -> None:
    trial = Trial(np.zeros((2, 4)), np.array([[0.5, 0.5, 0.0], [0.7, 0.3, 0.0]]), "inputs")
    file = Path("head.onnx")
    near = compared(asked([[0.4999, 0.5001, 0.0], [0.7, 0.3, 0.0]]), [], trial, 1e-3, file)  # a tie falls either way
    assert (near.rows, near.of, near.tolerance) == (2, "inputs", 1e-3)
    assert near.greatest_difference == pytest.approx(1e-4)
    close = replace(trial, expected=np.array([[0.5005, 0.4995, 0.0], [0.7, 0.3, 0.0]]))
    with pytest.raises(
        ExportError, match=r"differs from the run by 0\.0006 in probability, and by a factor of 1, on 2 inputs"
    ):
        compared(asked([[0.4999, 0.5001, 0.0], [0.7, 0.3, 0.0]]), [], close, 7e-4, file)  # near, but another class
    with pytest.raises(ExportError, match=r"differs from the run by 0\.1 "):
        compared(asked([[0.5, 0.5, 0.0], [0.8, 0.2, 0.0]]), [], trial, 1e-3, file)
    with pytest.raises(ExportError, match="differs from the run by nan"):
        compared(asked([[0.5, 0.5, 0.0], [np.nan, 0.3, 0.0]]), [], trial, 1e-3, file)
    with pytest.raises(ExportError, match=r"gives \(2, 2\), expected \(2, 3\)"):
        compared(asked([[0.5, 0.5], [0.7, 0.3]]), [], trial, 1e-3, file)


def test_a_wrong_logit_is_found_where_one_class_is_all_but_certain() -> None:
    expected, file = np.array([[1 - 1e-9, 1e-9, 1e-35]]), Path("head.onnx")
    trial = Trial(np.zeros((1, 4)), expected, "inputs")
    assert compared(asked((expected * [1, 1.0009, 0]).tolist()), [], trial, 1e-5, file).rows == 1
    with pytest.raises(ExportError, match=r"differs from the run by 1e-09 in probability, and by a factor of 2, on 1"):
        compared(asked((expected * [1, 2, 1]).tolist()), [], trial, 1e-5, file)


def test_a_high_scale_leaves_more_to_rounding(run: Path) -> None:
    classifier = read_classifier(run)
    assert tolerance_at(1e-5, replace(classifier, temperature=2.0)) == 1e-5
    assert tolerance_at(1e-5, replace(classifier, temperature=0.25)) == pytest.approx(4e-5)


def test_what_is_compared_on(any_run: Path, cache_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier, cache = read_classifier(any_run), FeatureCache(cache_file)
    own = head_trial(any_run, classifier, NO_CACHE)
    assert own.of == "test images of the run's own cache"
    assert np.array_equal(own.inputs, cache.image_features(cache.rows("test")))
    assert np.allclose(own.expected, by_hand(any_run, own.inputs), atol=1e-12)
    monkeypatch.setattr(agreement, "MOST_ROWS", 3)
    few = head_trial(any_run, classifier, NO_CACHE)
    assert np.array_equal(few.inputs, own.inputs[[0, 4, 8]])
    monkeypatch.undo()
    cache_file.write_bytes(cache_file.read_bytes()[:2000])  # damaged
    seeded = head_trial(any_run, classifier, NO_CACHE)
    cache_file.unlink()
    again = head_trial(any_run, classifier, NO_CACHE)
    assert np.array_equal(seeded.inputs, again.inputs)
    assert (seeded.inputs.shape, seeded.inputs.dtype) == ((agreement.MOST_ROWS, 8), np.float32)
    assert "the run's own cache is not here" in seeded.of
    assert np.bincount(seeded.expected.argmax(axis=1), minlength=3).min() > 100  # every class has its say
    assert (seeded.expected.max(axis=1) < 0.99).mean() > 0.1  # and not all is certain
    write_run(any_run, classifier, {})  # metrics that name no cache
    assert np.array_equal(head_trial(any_run, classifier, NO_CACHE).inputs, seeded.inputs)


@pytest.mark.parametrize("name", ["head.safetensors", "head.onnx", "head.pt"])
def test_the_lines_that_tell_how_to_use_it_work(
    name: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_without_the_extra(name)
    done = export_head(run, tmp_path / name, None, NO_CACHE)
    monkeypatch.chdir(tmp_path)
    features = drawn(7)
    as_tensor = torch.from_numpy(features)
    model = SimpleNamespace(encode_image=lambda images, normalize: nn.functional.normalize(images, dim=-1))
    names: dict[str, Any] = {"model": model, "images": as_tensor}
    names["image_features"] = features if name == "head.onnx" else as_tensor
    exec("\n".join(done.usage), names)
    assert np.allclose(names["probabilities"], by_hand(run, features), atol=2e-5)


def test_formats_and_suffixes() -> None:
    assert format_of(Path("a/head.safetensors"), None) == "safetensors"
    assert format_of(Path("head.ONNX"), None) == "onnx"
    assert format_of(Path("head.pt"), None) == "open_clip"
    assert format_of(Path("head.pt"), "onnx") == "onnx"
    with pytest.raises(OptionError, match=r"head\.h5: its suffix names no format; known are \.safetensors .*--format"):
        format_of(Path("head.h5"), None)
    with pytest.raises(
        UnknownNameError, match="unknown format 'onxx'; did you mean 'onnx'.*known are safetensors, onnx"
    ):
        format_of(Path("head.onnx"), "onxx")


def test_a_runs_own_files_are_not_written_over(run: Path, tmp_path: Path) -> None:
    before = (run / "classifier.safetensors").read_bytes()
    with pytest.raises(OptionError, match="what a run calls a file of its own; choose another name"):
        export_head(run, run / "classifier.safetensors", None, NO_CACHE)
    assert (run / "classifier.safetensors").read_bytes() == before
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(OptionError, match="that is a folder"):
        export_head(run, tmp_path / "folder.pt", None, NO_CACHE)


def test_one_run_at_a_time(cache_file: Path, tmp_path: Path) -> None:
    cache = FeatureCache(cache_file)
    folders = [fitted(cache, tmp_path / "runs", epochs=epochs) for epochs in (1, 2)]
    with pytest.raises(OptionError, match=f"holds 2 runs; pass one of them, such as {folders[1]}"):
        export_head(tmp_path / "runs", tmp_path / "head.pt", None, NO_CACHE)
    with pytest.raises(RunError, match=r"no classifier\.safetensors at or below"):
        export_head(tmp_path / "none", tmp_path / "head.pt", None, NO_CACHE)
    save_file({"weights": np.eye(2, dtype=np.float32)}, folders[0] / "classifier.safetensors")
    with pytest.raises(RunError, match="not an intact run"):
        export_head(folders[0], tmp_path / "head.pt", None, NO_CACHE)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    require("this test", "onnx", ("json", "torch"))
    for package in ("onnx_is_not_here", "nor_is_this"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError) as told:
        require("this test", "onnx", ("json", "onnx_is_not_here", "nor_is_this"))
    assert str(told.value) == (
        "this test needs onnx_is_not_here, nor_is_this, missing here: pip install 'taskres-cache[onnx]'"
    )


def test_a_missing_extra_is_met_before_anything_is_done(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for export in (
        lambda: export_head(run, tmp_path / "out" / "head.onnx", None, NO_CACHE),
        lambda: export_with_encoder(run, tmp_path / "out" / "head.onnx", None),
    ):
        with pytest.raises(
            MissingExtraError, match=r"`taskres export` to ONNX needs .*onnxruntime, missing here: .*\[onnx\]"
        ):
            export()
    assert not (tmp_path / "out").exists()
    assert export_head(run, tmp_path / "head.pt", None, NO_CACHE).format == "open_clip"  # needs none of it


def test_how_the_run_was_fitted_is_told(run: Path, tmp_path: Path) -> None:
    export_head(run, tmp_path / "head.pt", None, NO_CACHE)
    said = json.loads((tmp_path / "head.pt.json").read_text())
    assert said["method"] == read_classifier(run).recipe.method_name() != Recipe().method_name()
    assert (said["shots"], said["seed"]) == (1, 1)


def test_a_small_difference_is_seen_where_the_best_class_and_every_factor_stay() -> None:
    expected = np.array([[0.6, 0.4], [0.5, 0.5]])
    trial = agreement.Trial(np.zeros((2, 1), np.float32), expected, "rows")

    def compared_with(found: np.ndarray) -> agreement.Comparison:
        return agreement.compared(lambda files, inputs: found, [], trial, 1e-4, Path("head.onnx"))

    assert compared_with(expected + 9e-5 * np.array([1, -1])).greatest_difference == pytest.approx(9e-5)
    with pytest.raises(ExportError, match=r"differs from the run by 0\.0003 in probability, and by a factor of 1"):
        compared_with(expected + 3e-4 * np.array([1, -1]))
