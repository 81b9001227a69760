"""Resize, crop and normalisation in the exported graph, compared with Pillow and with predict on real photographs."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from taskres_cache.errors import ExportError
from taskres_cache.exporting.export import export_with_preprocessing
from taskres_cache.exporting.picture_graph import preprocessing
from taskres_cache.runs.run import load_run
from tests.exporting.exported import session_of, skip_without_the_extra
from tests.exporting.test_export_encoder import digits_run

__all__ = ["digits_run"]  # a fixture

OPENAI = {"resize_mode": "shortest", "interpolation": "bicubic"}


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    """200 pieces of two real photographs, upright, lying, square, larger and smaller than a model's images."""
    rng, found = np.random.default_rng(0), []
    photos = [Image.fromarray(one) for one in load_sample_images().images]
    for number in range(200):
        photo = photos[number % 2]
        width, height = (int(rng.integers(20, side)) for side in photo.size)
        left, top = (
            int(rng.integers(0, side - part + 1)) for side, part in zip(photo.size, (width, height), strict=True)
        )
        piece = photo.crop((left, top, left + width, top + height))
        factor = float(rng.uniform(0.3, 2.5))
        found.append(piece.resize((max(9, int(width * factor)), max(9, int(height * factor)))))
    return found


def pixels_of(preprocess: dict[str, Any], size: tuple[int, int], picture: Image.Image) -> np.ndarray:
    """Run the exported preprocessing alone; (H, W, 3) from 0 to 255."""
    onnxruntime = pytest.importorskip("onnxruntime")
    model = preprocessing(preprocess, size)
    model.ir_version = 9
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"picture": np.asarray(picture)})
    return found[0].transpose(1, 2, 0) * 255


@pytest.mark.parametrize(
    ("preprocess", "size", "largest", "mean"),
    [
        (OPENAI, (224, 224), 1.01, 0.01),
        ({"resize_mode": "squash", "interpolation": "bicubic"}, (224, 224), 6.01, 0.2),
        ({"resize_mode": "shortest", "interpolation": "bilinear"}, (224, 224), 1.01, 0.01),
    ],
)
def test_pixels_are_those_of_open_clip(
    preprocess: dict[str, Any], size: tuple[int, int], largest: float, mean: float, photographs: list[Image.Image]
) -> None:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    pytest.importorskip("onnx")
    steps = image_transform_v2(PreprocessCfg(size=size, **preprocess), is_train=False).transforms[:-2]
    differences = []
    for picture in photographs[:40]:
        expected = picture
        for step in steps:
            expected = step(expected)
        found = pixels_of(preprocess, size, picture)
        differences.append(np.abs(found - np.asarray(expected, float)))
    assert np.max(differences) < largest
    assert np.mean(differences) < mean


def test_a_graph_from_a_picture_gives_what_predict_gives(
    digits_run: Path, photographs: list[Image.Image], tmp_path: Path
) -> None:
    skip_without_the_extra("head.onnx")
    done = export_with_preprocessing(digits_run, tmp_path / "all.onnx", None, digits_run.parents[0] / "nowhere")
    assert done.shapes["picture"] == ("H", "W", 3)
    session = session_of(tmp_path / "all.onnx")
    run = load_run(digits_run, device="cpu", precision="fp32")
    expected = run.predict(photographs).probabilities
    found = np.concatenate([session.run(None, {"picture": np.asarray(one)})[0] for one in photographs])
    assert np.abs(found - expected).max() < 0.01
    assert np.ptp(expected, axis=0).max() > 0.1  # the pictures are not all alike to this model
    photographs[0].save(tmp_path / "photo.png")
    example = [
        sys.executable,
        "examples/classify_with_onnx.py",
        str(tmp_path / "all.onnx"),
        str(tmp_path / "photo.png"),
    ]
    said = subprocess.run(example, capture_output=True, text=True, check=True).stdout
    label, share = run.classifier.classnames[found[0].argmax()], 100 * found[0].max()
    assert said == f"{tmp_path / 'photo.png'}: {label} {share:.1f} %\n"


def test_test_images_of_the_cache_are_compared(digits_run: Path, tmp_path: Path) -> None:
    skip_without_the_extra("head.onnx")
    done = export_with_preprocessing(digits_run, tmp_path / "all.onnx", None, digits_run.parents[4] / "cache")
    assert (done.comparison.rows, done.comparison.of) == (200, "test images")
    assert done.comparison.greatest_difference < 0.01


def test_what_cannot_be_expressed_is_refused() -> None:
    pytest.importorskip("onnx")
    with pytest.raises(ExportError, match="resize_mode longest.*export it without --with-preprocessing"):
        preprocessing({"resize_mode": "longest", "interpolation": "bicubic"}, (224, 224))
    with pytest.raises(ExportError, match="interpolation random"):
        preprocessing({"resize_mode": "squash", "interpolation": "random"}, (224, 224))
    with pytest.raises(ExportError, match="expected shortest to a square"):
        preprocessing(OPENAI, (224, 336))
