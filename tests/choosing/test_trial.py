"""Models tried on a sample: ranked, and a model that cannot be loaded does not stop the others."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from taskres_cache.choosing.sample import stratified_sample
from taskres_cache.choosing.trial import Failed, Tried, named_checkpoint, ranked, try_models
from taskres_cache.datasets import load_dataset
from taskres_cache.encoders.encoding import EncodingOptions
from taskres_cache.encoders.loading import untrained_model
from taskres_cache.errors import OptionError
from tests.conftest import Taskres

QUICK = EncodingOptions(workers=0)


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "random.safetensors"
    save_file(untrained_model("glyph-clip", seed=0)[0].state_dict(), file)
    return file


def test_a_trained_model_is_ranked_before_a_random_one(random_weights: Path) -> None:
    digits = load_dataset("digits", Path())
    sample = stratified_sample(digits, 100)
    models = [f"glyph-clip:{random_weights}", "glyph-clip", "glyph-clip:nowhere.pt", "RN55"]
    results = list(try_models(models, digits, sample, "cpu", "fp32", QUICK))
    tried = ranked([one for one in results if isinstance(one, Tried)])
    assert [(one.name, one.pretrained) for one in tried] == [("glyph-clip", "bundled"), ("glyph-clip", "random")]
    failed = [one for one in results if isinstance(one, Failed)]
    assert [one.model for one in failed] == models[2:]
    assert "nowhere.pt does not exist" in failed[0].reason
    assert "unknown backbone 'RN55'" in failed[1].reason
    best, random = tried
    assert (best.images, best.dim) == (100, 64)
    low, high = best.interval
    assert low < best.accuracy <= high
    assert best.accuracy > 90 > random.accuracy > random.zero_shot_accuracy
    assert random.behind(best)[0] == pytest.approx(random.accuracy - best.accuracy)
    assert best.images_per_second > 0


def test_features_are_those_of_a_cache(digits_cache: Path) -> None:
    """Zero-shot accuracy on the sample equals that of the cached features of the same images."""
    from taskres_cache.caches.feature_cache import FeatureCache

    digits = load_dataset("digits", Path())
    cache = FeatureCache(digits_cache)
    rows = {path: row for row, (path, _) in enumerate(cache.files())}
    sample = stratified_sample(digits)
    (tried,) = try_models(["glyph-clip:bundled"], digits, sample, "cpu", "fp32", QUICK)
    assert isinstance(tried, Tried)
    known = [place for place, path in enumerate(sample.paths) if path in rows]
    features = cache.image_features(np.array([rows[sample.paths[place]] for place in known]))
    embeddings = cache.text_bases().embeddings
    text = (embeddings / np.linalg.norm(embeddings, axis=2, keepdims=True)).mean(axis=1)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    correct = (features @ text.T).argmax(axis=1) == sample.labels[known]
    assert len(known) > 50
    assert (correct == tried.correct.zero_shot[known]).all()


def test_unreadable_images_are_left_out(photos: Path) -> None:
    (photos / "dog" / "image 3.jpg").write_bytes(b"no image")
    (photos / "dog" / "image 5.jpg").write_bytes(b"no image")
    dataset = load_dataset(str(photos), Path())
    (tried,) = try_models(["glyph-clip"], dataset, stratified_sample(dataset), "cpu", "fp32", QUICK)
    assert isinstance(tried, Tried)
    assert 1 <= len(tried.unreadable) <= 2
    assert tried.images == 24 - len(tried.unreadable)


def test_names_of_models() -> None:
    assert named_checkpoint("RN50") == ("RN50", None)
    assert named_checkpoint("RN50:weights/my.pt") == ("RN50", "weights/my.pt")
    assert named_checkpoint("hf-hub:owner/model") == ("hf-hub:owner/model", None)
    for wrong in ("", ":openai", "RN50:"):
        with pytest.raises(OptionError, match="names no model"):
            named_checkpoint(wrong)


def test_nothing_is_left_behind(here: Path, photos: Path, taskres: Taskres) -> None:
    before = sorted(here.rglob("*"))
    outcome = taskres("backbones", "--try", photos, "--models", "glyph-clip", "--device", "cpu", "--workers", "0")
    assert outcome.status == 0, outcome.err
    assert "photos: 24 images, 3 classes" in outcome.out
    assert sorted(here.rglob("*")) == before
