"""`--class-descriptions`: the text that a cache has by default, changed without encoding an image."""

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from taskres_cache.caches.class_halves import open_cache
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.datasets import Dataset
from taskres_cache.datasets.text.class_descriptions import with_descriptions
from taskres_cache.encoders.backbone import Backbone
from taskres_cache.errors import CacheError, CacheMismatchError, OptionError, UnknownNameError
from taskres_cache.extraction.extract import ExtractOptions, extract
from tests.conftest import Taskres
from tests.extraction.test_extract import Recorder

OPTIONS = ExtractOptions(shots=(1,), seeds=(1,))
WORDS = "one two three four five six seven eight nine ten"  # with begin and end 12 of the 16 tokens of glyph-clip
REPLACED = "the cache had other text for its classes, which is replaced; runs that were fitted on it are kept"


def described(dataset: Dataset, folder: Path, **entries: object) -> Dataset:
    file = folder / "text.json"
    file.write_text(json.dumps(entries))
    return with_descriptions(dataset, file)


@pytest.fixture
def named(dataset: Dataset, tmp_path: Path) -> Dataset:
    return described(dataset, tmp_path, black_cat="night panther", dog="dog", été="summer")


@pytest.fixture
def ragged(dataset: Dataset, tmp_path: Path) -> Dataset:
    return described(dataset, tmp_path, black_cat=["fur.", "dark fur."], dog={"name": "good_boy"}, été=["sun."])


def test_names_fill_the_templates_and_are_recorded(
    named: Dataset, glyph_clip: Backbone, path: Path, taskres: Taskres
) -> None:
    extract(named, glyph_clip, OPTIONS, path)
    cache = FeatureCache(path)
    assert cache.classnames == ("black_cat", "dog", "été")
    assert cache.shown_names == ("night panther", "dog", "summer")
    assert cache.text().texts == ("a photo of a night panther.", "a photo of a dog.", "a photo of a summer.")
    expected = glyph_clip.encode_texts(cache.text().texts).embeddings
    assert np.allclose(cache.text_features, expected, atol=1e-5)
    assert open_cache(path, "base").shown_names == ("night panther", "dog")
    assert open_cache(path, "base").text().texts == cache.text().texts[:2]
    with h5py.File(path) as file:
        assert file.attrs["format_version"] == 2
    inspected = json.loads(taskres("inspect", path, "--json").out)
    assert (inspected["shown_names"], inspected["default_prompts"]) == (2, "default")


def test_own_prompts_become_the_default_set(ragged: Dataset, glyph_clip: Backbone, path: Path) -> None:
    extract(ragged, glyph_clip, OPTIONS, path)
    cache = FeatureCache(path)
    assert (cache.prompts, cache.prompt_sets) == ("descriptions", ("default", "descriptions"))
    text = cache.text()
    assert text.texts == ("fur.", "dark fur.", "a photo of a good boy.", "sun.")
    assert text.labels.tolist() == [0, 0, 1, 2]
    by_hand = [text.embeddings[:2].mean(axis=0), text.embeddings[2], text.embeddings[3]]
    assert np.array_equal(cache.text_features, by_hand)
    assert cache.using("default").text().texts[1] == "a photo of a good boy."
    assert np.array_equal(cache.using("default").text_features, cache.text_bases().embeddings.mean(axis=1))
    assert cache.prompts == "descriptions"
    with pytest.raises(UnknownNameError, match="unknown set of prompts 'cupl'.* taskres extract photos --prompts-name"):
        cache.using("cupl")
    half = open_cache(path, "base")
    assert half.text().labels.tolist() == [0, 0, 1]
    assert np.array_equal(half.text_features, by_hand[:2])


def test_text_is_kept_replaced_and_removed_without_encoding_an_image(
    dataset: Dataset, ragged: Dataset, named: Dataset, glyph_clip: Backbone, path: Path
) -> None:
    first = extract(dataset, glyph_clip, OPTIONS, path)
    assert first.encoded > 0
    before = FeatureCache(path).contents()
    steps = {"own prompts": ragged, "kept": dataset, "names": named, "names kept": dataset}
    seen = {}
    for name, one in steps.items():
        done = extract(one, glyph_clip, OPTIONS, path)
        cache = FeatureCache(path)
        cache.verify()
        seen[name] = (done.encoded, done.changed, REPLACED in done.notes, cache.text().texts[0], cache.prompt_sets)
        assert np.array_equal(cache.contents().image_features, before.image_features)
    assert seen == {
        "own prompts": (0, True, True, "fur.", ("default", "descriptions")),
        "kept": (0, False, False, "fur.", ("default", "descriptions")),
        "names": (0, True, True, "a photo of a night panther.", ("default",)),
        "names kept": (0, False, False, "a photo of a night panther.", ("default",)),
    }
    grown = extract(dataset, glyph_clip, replace(OPTIONS, shots=(2,)), path)
    assert (grown.encoded > 0, FeatureCache(path).shown_names) == (True, named.shown_names)


def test_other_sentences_encode_only_what_is_new(
    dataset: Dataset, ragged: Dataset, glyph_clip: Backbone, path: Path, tmp_path: Path
) -> None:
    extract(ragged, glyph_clip, OPTIONS, path)
    earlier = FeatureCache(path).text()
    recorder = Recorder()
    other = described(dataset, tmp_path, black_cat=["fur."], dog=["a bark."], été=["sun.", "heat."])
    extract(other, glyph_clip, OPTIONS, path, recorder)
    assert recorder.begun[-1] == ("prompts of photos", 4, 2)
    assert np.array_equal(FeatureCache(path).text().embeddings[0], earlier.embeddings[0])


def test_text_of_other_classes_is_left_out(
    named: Dataset, ragged: Dataset, dataset: Dataset, glyph_clip: Backbone, path: Path, tmp_path: Path
) -> None:
    extract(ragged, glyph_clip, OPTIONS, path)
    renamed = replace(dataset, classnames=("black_cat", "wolf", "été"))
    done = extract(renamed, glyph_clip, OPTIONS, path)
    assert "the prompts 'descriptions' are left out, because the classes have changed; add them again" in done.notes
    assert FeatureCache(path).prompts == "default"
    extract(described(renamed, tmp_path, black_cat="cat", wolf="wolf", été="sun"), glyph_clip, OPTIONS, path)
    again = extract(dataset, glyph_clip, OPTIONS, path)
    assert any("names of the classes in prompts are left out" in note for note in again.notes)
    assert FeatureCache(path).shown_names is None


def test_what_is_cut_off_is_said_before_anything_is_encoded(
    dataset: Dataset, glyph_clip: Backbone, path: Path, tmp_path: Path
) -> None:
    long = [f"{WORDS} a b c d e", f"{WORDS} a b", f"{WORDS} {WORDS}"]
    done = extract(described(dataset, tmp_path, black_cat=["x"], dog=long, été=["y"]), glyph_clip, OPTIONS, path)
    assert (
        "2 of 5 prompts are longer than the 16 tokens that glyph-clip reads (the longest has 22); their end is cut "
        "off, as in 'one two three four five six seven eight nine ten a b c d e'"
    ) in done.notes
    with pytest.raises(OptionError, match="the class name 'one two .*', which is cut off"):
        extract(described(dataset, tmp_path, black_cat=f"{WORDS} {WORDS}", dog="d", été="e"), glyph_clip, OPTIONS, path)


def test_other_templates_are_a_set_of_their_own(dataset: Dataset, glyph_clip: Backbone, path: Path) -> None:
    extract(dataset, glyph_clip, OPTIONS, path)
    with pytest.raises(CacheMismatchError, match="to add the templates as a set of prompts, pass --prompts-name NAME"):
        extract(replace(dataset, templates=("the {}.",)), glyph_clip, OPTIONS, path)


def test_the_command_takes_a_file(photos: Path, tmp_path: Path, taskres: Taskres) -> None:
    (tmp_path / "text.yaml").write_text("Black Cat: panther\ndog: [a dog., it barks.]\nété: sun\nwolf: wolf\n")
    weights = ("--backbone", "glyph-clip", "--pretrained", "bundled", "--device", "cpu")
    where = ("--cache-dir", tmp_path / "cache", "--shots", "1", "--seeds", "1")
    done = taskres("extract", photos, *weights, *where, "--class-descriptions", tmp_path / "text.yaml")
    assert (done.status, "'Black Cat' for 'black_cat'" in done.err, "not in the data set" in done.err) == (
        0,
        True,
        True,
    )
    cache = FeatureCache(tmp_path / "cache" / "glyph-clip-bundled" / "photos.h5")
    assert cache.text().texts == ("a photo of a panther.", "a dog.", "it barks.", "a photo of a sun.")
    wrong = taskres("extract", photos, *weights, *where, "--class-descriptions", tmp_path / "nowhere.yaml")
    assert "nowhere.yaml: there is no such file" in wrong.err


@pytest.mark.parametrize("value", ["nowhere", "", "../x"])
def test_a_default_set_that_is_not_there_is_refused(
    value: str, ragged: Dataset, glyph_clip: Backbone, path: Path
) -> None:
    extract(ragged, glyph_clip, OPTIONS, path)
    with h5py.File(path, "r+") as file:
        file.attrs["default_prompts"] = value
    with pytest.raises(CacheError, match="attribute default_prompts is .*, which is no set of prompts of it"):
        FeatureCache(path)
