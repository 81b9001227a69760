"""The bundled files: the digits are the real ones, and glyph-clip has the accuracy in the README."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from taskres_cache.bundled import GLYPH_CLIP_CONFIG, GLYPH_CLIP_WEIGHTS
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.datasets import Dataset, load_dataset
from taskres_cache.encoders.backbone import Backbone
from taskres_cache.extraction.extract import ExtractOptions, extract
from taskres_cache.runs.fitting.study import fit_each, recipe_of
from taskres_cache.runs.results import summarise


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits", Path())


def test_digits_equal_scikit_learns_in_every_pixel(digits: Dataset) -> None:
    original = load_digits()
    items = [item for part in digits.partitions.values() for item in part]
    assert len(items) == len(original.target) == 1797
    for item in items:
        index = int(Path(item.path).stem)
        pixels = np.asarray(digits.source.read(item.path).convert("L"))
        assert item.label == original.target[index]
        assert np.array_equal(np.round(pixels.astype(float) * 16 / 255), original.images[index])


def test_partitions_and_classnames_of_the_digits(digits: Dataset) -> None:
    assert [len(part) for part in digits.partitions.values()] == [1079, 359, 359]
    assert digits.classnames == tuple("0123456789")


def test_glyph_clip_loads_with_open_clips_functions() -> None:
    open_clip.add_model_config(GLYPH_CLIP_CONFIG)
    model, _, preprocess = open_clip.create_model_and_transforms("glyph-clip", pretrained=str(GLYPH_CLIP_WEIGHTS))
    model.eval()
    tokens = open_clip.get_tokenizer("glyph-clip")(["a handwritten digit 3."])
    with torch.no_grad():
        assert model.encode_text(tokens).shape == model.encode_image(preprocess(Image.new("RGB", (8, 8)))[None]).shape


def test_text_features_of_glyph_clip_have_the_size_that_the_recipe_assumes(
    glyph_clip: Backbone, digits: Dataset
) -> None:
    prompts = [template.replace("{}", name) for template in digits.templates for name in digits.classnames]
    root_mean_square = float(np.sqrt((glyph_clip.encode_texts(prompts).embeddings ** 2).mean()))
    assert root_mean_square == pytest.approx(0.3, rel=0.2)
    assert glyph_clip.logit_scale == pytest.approx(100, rel=0.2)
    assert GLYPH_CLIP_WEIGHTS.stat().st_size < 10_500_000


def test_the_residual_beats_zero_shot_and_improves_with_shots(
    glyph_clip: Backbone, digits: Dataset, tmp_path: Path
) -> None:
    extract(digits, glyph_clip, ExtractOptions(), tmp_path / "digits.h5")
    cache = FeatureCache(tmp_path / "digits.h5")
    runs = fit_each(cache, list(cache.splits), [recipe_of(cache)], torch.device("cpu"), tmp_path / "runs")
    table = summarise(run.metrics for run in runs)
    accuracies = [row.mean_test_accuracy for row in table]
    zero_shot = table[0].zero_shot_accuracy
    assert zero_shot >= 75
    assert accuracies[-1] >= 92
    assert accuracies[-1] >= zero_shot + 1
    one_image = 100 / 359 / 3  # in the mean of three seeds; a difference of one image may be chance
    assert all(later >= earlier - one_image for earlier, later in pairwise(accuracies))
