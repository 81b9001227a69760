"""Named sets of prompts: added to a cache without its images, kept when it grows."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.datasets import Dataset
from taskres_cache.encoders.backbone import Backbone
from taskres_cache.errors import CacheMismatchError, OptionError
from taskres_cache.extraction.extract import ExtractOptions, extract
from taskres_cache.extraction.prompt_sets import add_prompts
from tests.conftest import Taskres, one_line
from tests.extraction.test_extract import Recorder

OPTIONS = ExtractOptions(shots=(1,), seeds=(1,))
SENTENCES = [["a black cat.", "night fur.", "a black cat."], ["a dog."], ["summer.", "sun.", "heat."]]


@pytest.fixture
def cached(dataset: Dataset, glyph_clip: Backbone, path: Path) -> Path:
    extract(dataset, glyph_clip, replace(OPTIONS, views=1), path)
    return path


def test_a_set_is_added_without_images(cached: Path, glyph_clip: Backbone, photos: Path) -> None:
    before = FeatureCache(cached).contents()
    shutil.rmtree(photos)
    done = add_prompts(cached, glyph_clip, "cupl", SENTENCES)
    assert (done.prompts, done.changed) == (6, True)
    cache = FeatureCache(cached)
    cache.verify()
    text = cache.text("cupl")
    assert text.texts == ("a black cat.", "night fur.", "a dog.", "summer.", "sun.", "heat.")
    assert text.labels.tolist() == [0, 0, 1, 2, 2, 2]
    assert np.allclose(text.embeddings, glyph_clip.encode_texts(text.texts).embeddings, atol=1e-5)
    after = cache.contents()
    for name in ("image_features", "augmented", "pre_projection"):
        assert np.array_equal(getattr(after, name), getattr(before, name))
    assert not cached.with_name("photos.h5.parts").exists()
    stored = cached.read_bytes()
    assert not add_prompts(cached, glyph_clip, "cupl", SENTENCES).changed
    assert cached.read_bytes() == stored
    add_prompts(cached, glyph_clip, "other", [["x"], ["y"], ["z"]])
    changed = add_prompts(cached, glyph_clip, "cupl", [["x"], ["y"], ["z"]])
    assert changed.notes == ("the prompts 'cupl' were other ones and are replaced",)
    assert FeatureCache(cached).prompt_sets == ("default", "cupl", "other")


def test_a_killed_call_resumes(cached: Path, glyph_clip: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskres_cache.extraction.encode_missing.PROMPTS_PER_BLOCK", 2)

    class Interrupts(Recorder):
        def advance(self, count: int) -> None:
            super().advance(count)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add_prompts(cached, glyph_clip, "cupl", SENTENCES, Interrupts())
    recorder = Recorder()
    add_prompts(cached, glyph_clip, "cupl", SENTENCES, recorder)
    assert recorder.begun == [("prompts of photos", 6, 2)]
    assert recorder.advanced == 4


def test_sets_stay_when_a_cache_grows_and_its_classes_are_the_same(
    cached: Path, dataset: Dataset, glyph_clip: Backbone
) -> None:
    add_prompts(cached, glyph_clip, "cupl", SENTENCES)
    text = FeatureCache(cached).text("cupl")
    assert not extract(dataset, glyph_clip, OPTIONS, cached).changed
    assert extract(dataset, glyph_clip, replace(OPTIONS, shots=(2,)), cached).encoded > 0
    assert np.array_equal(FeatureCache(cached).text("cupl").embeddings, text.embeddings)
    renamed = replace(dataset, classnames=("black_cat", "wolf", "été"))
    done = extract(renamed, glyph_clip, OPTIONS, cached)
    assert "the prompts 'cupl' are left out, because the classes have changed; add them again" in done.notes
    assert FeatureCache(cached).prompt_sets == ("default",)


def test_another_checkpoint_and_unusable_names_are_refused(cached: Path, glyph_clip: Backbone) -> None:
    before = cached.read_bytes()
    with pytest.raises(CacheMismatchError, match="weights_sha256"):
        add_prompts(cached, replace(glyph_clip, weights_sha256="cd" * 32), "cupl", SENTENCES)
    for name in ("default", "descriptions", "a/b", "", ".x"):
        with pytest.raises(OptionError, match="prompts-name .* is not usable"):
            add_prompts(cached, glyph_clip, name, SENTENCES)
    with pytest.raises(OptionError, match="prompts of 1 classes, expected those of the cache's 3 classes"):
        add_prompts(cached, glyph_clip, "cupl", SENTENCES[:1])
    with pytest.raises(OptionError, match="class 'dog' has no prompt or an empty one"):
        add_prompts(cached, glyph_clip, "cupl", [["x"], [], ["y"]])
    assert cached.read_bytes() == before


def test_the_command_adds_a_file_or_templates(cached: Path, tmp_path: Path, taskres: Taskres) -> None:
    (tmp_path / "cupl.json").write_text(json.dumps({"Été": ["sun."], "black cat": ["fur.", "night."], "dog": ["a."]}))
    where = ("--cache-dir", tmp_path / "cache")
    done = taskres("extract", "photos", "--prompts-name", "cupl", "--prompts", tmp_path / "cupl.json", *where)
    assert "4 prompts 'cupl', added" in done.err
    assert FeatureCache(cached).text("cupl").texts == ("fur.", "night.", "a.", "sun.")
    (tmp_path / "templates.txt").write_text("itap of a {}.\nart of the {}.\n")
    taskres("extract", "photos", "--prompts-name", "art", "--templates", tmp_path / "templates.txt", *where)
    assert FeatureCache(cached).text("art").texts[:3] == (
        "itap of a black cat.",
        "art of the black cat.",
        "itap of a dog.",
    )
    (tmp_path / "names.csv").write_text('class,name,prompt\nblack_cat,panther,\ndog,,woof.\nété,,"sun, heat"\n')
    described = ("--class-descriptions", tmp_path / "names.csv")
    mixed = taskres("extract", "photos", "--prompts-name", "mixed", *described, *where)
    assert "3 prompts 'mixed', added" in mixed.err
    assert FeatureCache(cached).text("mixed").texts == ("a photo of a panther.", "woof.", "sun, heat")
    assert FeatureCache(cached).shown_names is None
    wrong = taskres("extract", "photos", "--prompts", tmp_path / "cupl.json", *where)
    assert "--prompts-name NAME goes together with" in one_line(wrong)
