"""Image tower and head in one ONNX graph, and heads in an open_clip loop, compared with the encoder."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import nn

from taskres_cache.bundled import GLYPH_CLIP_WEIGHTS
from taskres_cache.caches.contents import CacheContents
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.hdf5 import write_cache
from taskres_cache.datasets import load_dataset
from taskres_cache.encoders.backbone import Backbone
from taskres_cache.encoders.checkpoints import digest_of_weights
from taskres_cache.encoders.loading import plain_preprocess, untrained_model
from taskres_cache.errors import ExportError, OptionError, RunError, WeightsError
from taskres_cache.exporting import comparison
from taskres_cache.exporting.export import export_head, export_with_encoder
from taskres_cache.exporting.onnx_graph import OnnxForm
from taskres_cache.extraction.extract import extract
from taskres_cache.extraction.options import ExtractOptions
from taskres_cache.runs.run import read_classifier, read_metrics, write_run
from tests.conftest import metrics_of
from tests.encoders.test_streamlining import as_after_training
from tests.exporting.exported import NO_CACHE, by_hand, fitted, session_of, skip_without_the_extra


@pytest.fixture
def onnx() -> Any:
    skip_without_the_extra("head.onnx")
    return pytest.importorskip("onnx")


@pytest.fixture
def run(cache_file: Path, tmp_path: Path) -> Path:
    return fitted(FeatureCache(cache_file), tmp_path / "runs")


@pytest.fixture(scope="module")
def digits_run(glyph_clip: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the bundled digits through the bundled CLIP."""
    folder = tmp_path_factory.mktemp("digits")
    cache = folder / "cache" / "glyph-clip-bundled" / "digits.h5"
    extract(load_dataset("digits", Path()), glyph_clip, ExtractOptions(shots=(4,), seeds=(1,)), cache)
    return fitted(FeatureCache(cache), folder / "runs", epochs=50)


@pytest.fixture(scope="module")
def test_images() -> tuple[list[Image.Image], list[int]]:
    """The test images of the digits, and their labels."""
    digits = load_dataset("digits", Path())
    items = digits.partitions["test"]
    return [digits.source.read(item.path) for item in items], [item.label for item in items]


def test_an_open_clip_loop_gets_the_accuracy_of_the_run(
    digits_run: Path, test_images: tuple[list[Image.Image], list[int]], tmp_path: Path
) -> None:
    export_head(digits_run, tmp_path / "head.pt", None, NO_CACHE)
    model, _, preprocess = open_clip.create_model_and_transforms("glyph-clip", pretrained=str(GLYPH_CLIP_WEIGHTS))
    classifier = torch.load(tmp_path / "head.pt", weights_only=True)
    images, labels = torch.stack([preprocess(image) for image in test_images[0]]), torch.tensor(test_images[1])
    with torch.no_grad():
        logits = 100.0 * model.eval().encode_image(images, normalize=True) @ classifier
    accuracy = 100.0 * (logits.argmax(dim=-1) == labels).sum().item() / len(labels)
    assert accuracy == read_metrics(digits_run).test_accuracy


def test_one_graph_from_pixels_to_probabilities(
    digits_run: Path,
    test_images: tuple[list[Image.Image], list[int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    onnx: Any,
) -> None:
    done = export_with_encoder(digits_run, tmp_path / "whole.onnx", None)
    session = session_of(tmp_path / "whole.onnx")
    cache = FeatureCache(Path(read_metrics(digits_run).cache))
    expected = by_hand(digits_run, cache.image_features(cache.rows("test")))
    pixels = as_pixels(test_images[0], "glyph-clip")
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
    assert done.comparison.rows == comparison.RANDOM_IMAGES
    assert str(Path(open_clip.__file__).parent).encode() not in (tmp_path / "whole.onnx").read_bytes()


def as_pixels(images: Sequence[Image.Image], config: str) -> np.ndarray:
    """Return images (N, 3, H, W) as open_clip preprocesses them, but before normalisation."""
    _, _, preprocess = open_clip.create_model_and_transforms(config)
    return np.stack([_without_normalisation(preprocess)(image).numpy() for image in images])


def _without_normalisation(preprocess: Any) -> Any:
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
    """Write a local checkpoint with random weights and trained batch norms; return its model."""
    model = as_after_training(untrained_model(config, seed)[0])
    torch.save(model.state_dict(), file)
    return model


def a_run_of(model: nn.Module, config: str, folder: Path, run: Path) -> Path:
    """Write a run as if it had been fitted on features of a model, with weights that separate its features.

    The features of a random tower are nearly equal for all images; weights orthogonal to their mean see the difference.
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
    write_run(
        folder, replace(classifier, **{name: part.astype(np.float32) for name, part in tensors.items()}), metrics_of()
    )
    return folder


def coloured(count: int) -> list[Image.Image]:
    """Return some images with a few colours each."""
    grids = np.random.default_rng(count).integers(0, 256, (count, 3, 3, 3), dtype=np.uint8)
    return [Image.fromarray(grid).resize((70, 50), Image.Resampling.NEAREST) for grid in grids]


def features_of(model: nn.Module, config: str, images: Sequence[Image.Image]) -> np.ndarray:
    """Return features (N, D) computed by open_clip."""
    _, _, preprocess = open_clip.create_model_and_transforms(config)
    with torch.no_grad():
        return model.encode_image(torch.stack([preprocess(image) for image in images])).numpy()


@pytest.mark.parametrize("config", ["exported-vit", "exported-vit-quickgelu", "exported-rn"])
def test_towers_of_both_kinds_export(config: str, run: Path, tmp_path: Path, onnx: Any) -> None:
    """Compared with open_clip's model and preprocessing; the QuickGELU of a run is kept for a local file."""
    model = a_checkpoint(config, tmp_path / "weights.pt")
    own = a_run_of(model, config, tmp_path / "own", run)
    export_with_encoder(own, tmp_path / "whole.onnx", str(tmp_path / "weights.pt"))
    session = session_of(tmp_path / "whole.onnx")
    images = coloured(7)
    expected = by_hand(own, features_of(model, config, images))
    assert expected.std(axis=0).max() > 1e-3  # predictions differ between images
    pixels = as_pixels(images, config)
    for count in (1, 7):
        (found,) = session.run(None, {"pixels": pixels[:count]})
        assert np.allclose(found, expected[:count], atol=1e-4)
    (swapped,) = session.run(None, {"pixels": pixels[:, ::-1]})
    assert np.abs(swapped - expected).max() > 1e-3  # and between colours


def test_a_different_checkpoint_is_refused(run: Path, tmp_path: Path, onnx: Any) -> None:
    model = a_checkpoint("exported-vit", tmp_path / "weights.pt")
    a_checkpoint("exported-vit", tmp_path / "other.pt", seed=1)
    own = a_run_of(model, "exported-vit", tmp_path / "own", run)
    file = tmp_path / "out" / "whole.onnx"
    with pytest.raises(
        RunError, match="'other' of exported-vit are not the run's encoder: weights_sha256: the run has"
    ):
        export_with_encoder(own, file, str(tmp_path / "other.pt"))
    with pytest.raises(OptionError, match="checkpoint 'weights', which is not a tag of exported-vit; pass"):
        export_with_encoder(own, file, None)
    with pytest.raises(WeightsError, match=r"checkpoint .*none\.pt does not exist"):
        export_with_encoder(own, file, str(tmp_path / "none.pt"))
    assert not file.parent.exists()


def test_a_file_is_exported_with_the_preprocessing_of_the_run(run: Path, tmp_path: Path, onnx: Any) -> None:
    """A file does not record its preprocessing; the run was made with that of a tag."""
    model = a_checkpoint("exported-vit", tmp_path / "weights.pt")
    own = a_run_of(model, "exported-vit", tmp_path / "own", run)
    darker = read_classifier(own)
    preprocess = {**darker.provenance.preprocess, "mean": [0.0, 0.0, 0.0]}
    write_run(own, replace(darker, provenance=replace(darker.provenance, preprocess=preprocess)), metrics_of())
    export_with_encoder(own, tmp_path / "whole.onnx", str(tmp_path / "weights.pt"))
    described = session_of(tmp_path / "whole.onnx").get_modelmeta().custom_metadata_map["preprocess"]
    assert json.loads(described)["mean"] == [0.0, 0.0, 0.0]


def test_imported_features_have_no_encoder(contents: CacheContents, tmp_path: Path, onnx: Any) -> None:
    provenance = replace(contents.provenance, weights_sha256="unknown")
    write_cache(tmp_path / "toy.h5", replace(contents, provenance=provenance))
    run = fitted(FeatureCache(tmp_path / "toy.h5"), tmp_path / "runs")
    with pytest.raises(RunError, match="imported features of 'toy', whose encoder is unknown"):
        export_with_encoder(run, tmp_path / "whole.onnx", None)
    assert export_head(run, tmp_path / "head.onnx", None, NO_CACHE).classes == 3


class Branching(nn.Module):
    """A tower whose code branches on values, which the exporter cannot trace."""

    def encode_image(self, pixels: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        features = pixels.mean(dim=(2, 3))
        return features if features.sum() > 0 else -features


class Huge(nn.Module):
    """A tower with 2.2 GiB of weights on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = nn.Linear(30_000, 20_000, device="meta")


def test_a_tower_that_cannot_be_exported_is_a_one_line_error(
    glyph_clip: Backbone, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], onnx: Any
) -> None:
    classifier, written = read_classifier(run), [tmp_path / "whole.onnx"]
    model = Branching()
    model.visual = nn.Identity()
    with pytest.raises(
        ExportError, match="could not export the image tower of glyph-clip to ONNX .*export the head alone"
    ) as caught:
        OnnxForm(replace(glyph_clip, model=model)).write(classifier, written)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 450
    with pytest.raises(
        ExportError, match=r"its weights take 2\.2 GiB and one ONNX file holds 2 GiB\); export the head"
    ):
        OnnxForm(replace(glyph_clip, model=Huge())).write(classifier, written)
    assert not written[0].exists()
    assert capfd.readouterr() == ("", "")
