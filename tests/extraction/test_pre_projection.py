"""Stage one with the parts of format 2: inputs of the image projection, and families of views."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.datasets import Dataset
from taskres_cache.encoders.backbone import Backbone
from taskres_cache.encoders.loading import load_backbone, untrained_model
from taskres_cache.encoders.projecting import ProjectedTower, split_projection
from taskres_cache.encoders.streamlining import streamlined
from taskres_cache.encoders.views import augmented_view, view_recipe
from taskres_cache.errors import CacheMismatchError, OptionError
from taskres_cache.extraction.extract import ExtractOptions, extract
from tests.extraction.test_extract import Recorder

OPTIONS = ExtractOptions(shots=(1, 2), seeds=(1,))
WITHOUT = replace(OPTIONS, pre_projection="none")


def test_new_caches_have_the_inputs_of_all_images(dataset: Dataset, glyph_clip: Backbone, path: Path) -> None:
    extract(dataset, glyph_clip, replace(OPTIONS, views=2), path)
    cache = FeatureCache(path)
    cache.verify()
    contents, (weights, bias) = cache.contents(), cache.image_projection()
    assert np.allclose(contents.pre_projection @ weights + bias, contents.image_features, atol=1e-5)
    assert contents.pre_projection.dtype == np.float32
    assert contents.augmented_pre_projection is None
    row = np.array(glyph_clip.framing(dataset.source.read(contents.paths[3])))
    alone = glyph_clip.encode_images_with_inputs(torch.from_numpy(row[None]))[1]
    assert np.allclose(contents.pre_projection[3], alone[0], atol=1e-4 * np.abs(alone).max())


def test_without_them_a_cache_is_of_format_1_and_its_features_are_the_same(
    dataset: Dataset, glyph_clip: Backbone, path: Path
) -> None:
    extract(dataset, glyph_clip, WITHOUT, path)
    extract(dataset, glyph_clip, OPTIONS, path.with_name("new.h5"))
    old, new = FeatureCache(path).contents(), FeatureCache(path.with_name("new.h5")).contents()
    assert np.array_equal(old.image_features, new.image_features)
    assert np.array_equal(old.text.embeddings, new.text.embeddings)
    with h5py.File(path) as file:
        assert file.attrs["format_version"] == 1


def test_images_of_format_1_are_encoded_again_only_if_asked(dataset: Dataset, glyph_clip: Backbone, path: Path) -> None:
    extract(dataset, glyph_clip, replace(WITHOUT, views=2), path)
    before = path.read_bytes()
    again = extract(dataset, glyph_clip, OPTIONS, path)
    assert (again.encoded, again.changed, path.read_bytes()) == (0, False, before)
    features = FeatureCache(path).contents().image_features
    asked = extract(dataset, glyph_clip, replace(OPTIONS, pre_projection="images"), path)
    assert (asked.encoded, asked.views_encoded) == (asked.images, 0)
    cache = FeatureCache(path)
    assert np.array_equal(cache.contents().image_features, features)
    cache.verify()
    views = extract(dataset, glyph_clip, replace(OPTIONS, pre_projection="all"), path)
    assert (views.encoded, views.views_encoded) == (0, 2 * len(cache.rows("train")))
    assert FeatureCache(path).view_families["wide"].has_pre_projection
    FeatureCache(path).verify()
    kept = extract(dataset, glyph_clip, replace(WITHOUT, shots=(4,)), path)  # what is there stays, for new images too
    assert kept.encoded > 0
    assert FeatureCache(path).view_families["wide"].has_pre_projection
    FeatureCache(path).verify()


def test_a_second_family_leaves_the_first_as_it_is(dataset: Dataset, glyph_clip: Backbone, path: Path) -> None:
    extract(dataset, glyph_clip, replace(OPTIONS, views=2), path)
    first = FeatureCache(path).contents()
    train = len(FeatureCache(path).rows("train"))
    narrow = replace(OPTIONS, views=3, view_family="narrow", views_seed=8)
    done = extract(dataset, glyph_clip, narrow, path)
    assert (done.encoded, done.views, done.views_encoded) == (0, 5, 3 * train)
    cache = FeatureCache(path)
    assert np.array_equal(cache.contents().augmented, first.augmented)
    assert cache.provenance.views == first.provenance.views
    assert cache.view_families["narrow"] == (3, view_recipe(8, "narrow"), False)
    row = cache.rows("train")[-1:]
    name = cache.files()[row[0]][0]
    shown = [augmented_view(dataset.source.read(name), (32, 32), 8, name, view, "narrow") for view in range(3)]
    alone = glyph_clip.encode_images(torch.from_numpy(np.stack([np.asarray(one) for one in shown])))
    ((_, found),) = cache.augmented_pieces(row, "narrow")
    assert np.allclose(found[0], alone, atol=1e-4 * np.abs(alone).max())
    more = extract(dataset, glyph_clip, replace(narrow, views=4), path)
    assert (more.encoded, more.views_encoded) == (0, train)
    shots = extract(dataset, glyph_clip, ExtractOptions(shots=(4,), seeds=(1,)), path)  # no views requested
    new = len(FeatureCache(path).rows("train")) - train
    assert (new > 0, shots.views_encoded) == (True, (2 + 4) * new)
    again = extract(dataset, glyph_clip, narrow, path)
    assert (again.encoded, again.views_encoded, again.changed) == (0, 0, False)
    with pytest.raises(CacheMismatchError, match="views of family narrow: cache has .*'seed': 8.*expected .*'seed': 0"):
        extract(dataset, glyph_clip, replace(narrow, views_seed=0), path)


def test_narrow_views_alone(dataset: Dataset, glyph_clip: Backbone, path: Path) -> None:
    extract(dataset, glyph_clip, replace(OPTIONS, views=2, view_family="narrow", pre_projection="all"), path)
    cache = FeatureCache(path)
    assert (cache.views, cache.provenance.views, list(cache.view_families)) == (0, {}, ["narrow"])
    assert cache.view_families["narrow"].has_pre_projection
    cache.verify()


def test_an_interrupted_run_resumes_with_both_parts(
    dataset: Dataset, glyph_clip: Backbone, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskres_cache.extraction.extract.BLOCK_ROWS", 5)
    options = replace(OPTIONS, views=1, pre_projection="all")
    extract(dataset, glyph_clip, options, path.with_name("whole.h5"))

    class Interrupts(Recorder):
        def advance(self, count: int) -> None:
            super().advance(count)
            if self.advanced >= 8:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(dataset, glyph_clip, options, path, Interrupts())
    parts = path.with_name("photos.h5.parts")
    kept = len(list(parts.glob("image-*.npz")))
    assert kept > 1
    next(parts.glob("pre_projection-*.npz")).unlink()  # its features alone do not count
    resumed = extract(dataset, glyph_clip, options, path)
    assert 0 < resumed.encoded < resumed.images
    whole, resumed_contents = (FeatureCache(path.with_name(name)).contents() for name in ("whole.h5", "photos.h5"))
    for name in ("image_features", "pre_projection", "augmented", "augmented_pre_projection"):
        assert np.array_equal(getattr(whole, name), getattr(resumed_contents, name))


def test_low_precision_is_stored_as_float16(dataset: Dataset, glyph_clip: Backbone, path: Path) -> None:
    extract(dataset, replace(glyph_clip, precision="bf16"), OPTIONS, path)
    assert FeatureCache(path).contents().pre_projection.dtype == np.float16
    FeatureCache(path).verify()


def test_a_tower_without_a_last_projection_is_noted(
    dataset: Dataset, glyph_clip: Backbone, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Backbone, "image_projection", None)
    done = extract(dataset, glyph_clip, OPTIONS, path)
    assert "glyph-clip does not end in a linear projection: no pre-projections are stored" in done.notes
    assert not FeatureCache(path).has_pre_projection


def test_a_split_rn50_has_the_same_bits_as_a_whole_one() -> None:
    whole = streamlined(untrained_model("RN50", seed=0)[0].eval().requires_grad_(False).visual)
    split = split_projection(untrained_model("RN50", seed=0)[0].eval().requires_grad_(False).visual)
    assert isinstance(split, ProjectedTower)
    split.tower = streamlined(split.tower)
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(split(pixels), whole(pixels))


@pytest.mark.parametrize("config", ["RN50", "ViT-B-32"])
def test_real_towers_split_into_the_same_features(config: str, tmp_path: Path) -> None:
    model, _ = untrained_model(config, seed=0)
    torch.save(model.state_dict(), tmp_path / "random.pt")
    backbone = load_backbone(config, str(tmp_path / "random.pt"), "cpu", "fp32")
    pixels = torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features, inputs = backbone.encode_images_with_inputs(pixels)
    weights, bias = backbone.image_projection
    assert weights.shape == {"RN50": (2048, 1024), "ViT-B-32": (768, 512)}[config]
    assert (bias is None) == (config == "ViT-B-32")
    computed = inputs.astype(np.float64) @ weights + (0 if bias is None else bias)
    assert np.abs(computed - features).max() <= 1e-5 * np.abs(features).max()


@pytest.mark.parametrize("change", [{"view_family": "tall"}, {"pre_projection": "some"}])
def test_values_out_of_range_are_refused(change: dict) -> None:
    with pytest.raises(OptionError, match="must be one of"):
        ExtractOptions(**change)
