"""Splits of a user's own data, validation images, and corrected labels: what a cache records and what is encoded."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from taskres_cache.caches.drawing import drawing_of
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.finding import describe_cache
from taskres_cache.datasets import ALL_SHOTS, Dataset, sample_few_shot
from taskres_cache.datasets.dataset import labels_of
from taskres_cache.datasets.labels.changes import Change
from taskres_cache.datasets.labels.corrections import corrected
from taskres_cache.encoders.backbone import Backbone
from taskres_cache.errors import CacheError, OptionError
from taskres_cache.extraction.extract import extract
from taskres_cache.extraction.options import ExtractOptions
from taskres_cache.extraction.prompt_sets import add_prompts
from tests.conftest import Taskres, one_line

FEW = ExtractOptions(shots=(1, ALL_SHOTS), seeds=(1,), workers=0)


def fixes(folder: Path, text: str, name: str = "fixes.csv") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_defaults_follow_the_kind_of_data() -> None:
    own, paper = (drawing_of(name, None, (1,), None, None) for name in ("photos", "dtd"))
    assert (own.shots, own.val_per_class, own.defaults) == ((1, 2, 4, 8, 16, ALL_SHOTS), ALL_SHOTS, "own")
    assert (paper.shots, paper.val_per_class, paper.defaults) == ((1, 2, 4, 8, 16), 4, "paper")
    assert drawing_of("photos", (3,), (7, 8), 5, None).names == {(3, 7), (3, 8)}


def test_all_images_of_own_data_are_used(dataset: Dataset, glyph_clip: Backbone, path: Path) -> None:
    extract(dataset, glyph_clip, ExtractOptions(workers=0), path)
    cache = FeatureCache(path)
    assert {shots for shots, _ in cache.splits} == {1, 2, 4, 8, 16, ALL_SHOTS}
    assert (cache.provenance.defaults, cache.provenance.val_per_class) == ("own", "all")
    files = [name for name, _ in cache.files()]
    assert [files[row] for row in cache.split(ALL_SHOTS, 3).train] == [item.path for item in dataset.train]
    assert [files[row] for row in cache.split(ALL_SHOTS, 3).val] == [item.path for item in dataset.val]
    with h5py.File(path) as file:
        assert set(file["splits"]) == {"shots_1", "shots_2", "shots_4", "shots_8", "shots_16", "shots_all"}


def test_asking_for_other_val_images_draws_every_split_again(
    dataset: Dataset, glyph_clip: Backbone, path: Path
) -> None:
    first = extract(dataset, glyph_clip, ExtractOptions((1, 4), (1,), workers=0, val_per_class=1), path)
    assert len(FeatureCache(path).split(4, 1).val) == 3
    assert not any("validation images" in note for note in first.notes)
    kept = extract(dataset, glyph_clip, ExtractOptions((1, 4), (1,), workers=0), path)
    assert not kept.changed
    more = extract(dataset, glyph_clip, ExtractOptions((1,), (1,), workers=0, val_per_class=ALL_SHOTS), path)
    assert "validation images per class: all, before: 1; all splits of the cache are drawn again" in more.notes
    assert more.encoded == 3  # the second val image of each class
    cache = FeatureCache(path)
    train, val = labels_of(dataset.train), labels_of(dataset.val)
    files = [name for name, _ in cache.files()]
    for shots in (1, 4):
        drawn = sample_few_shot(train, val, shots, 1, ALL_SHOTS)
        assert [files[row] for row in cache.split(shots, 1).val] == [dataset.val[place].path for place in drawn.val]
    assert cache.provenance.val_per_class == "all"


def test_an_earlier_cache_keeps_the_paper_protocol(dataset: Dataset, glyph_clip: Backbone, path: Path) -> None:
    extract(dataset, glyph_clip, ExtractOptions((1,), (1,), workers=0, val_per_class=4), path)
    with h5py.File(path, "r+") as file:
        for name in ("defaults", "val_per_class", "corrections"):
            del file.attrs[name]
    assert (FeatureCache(path).provenance.defaults, FeatureCache(path).provenance.val_per_class) == ("paper", "4")
    extract(dataset, glyph_clip, ExtractOptions(workers=0), path)
    cache = FeatureCache(path)
    assert {shots for shots, _ in cache.splits} == {1, 2, 4, 8, 16}
    assert (cache.provenance.defaults, cache.provenance.val_per_class) == ("paper", "4")


@pytest.mark.parametrize(("name", "value"), [("defaults", "mine"), ("val_per_class", "0"), ("val_per_class", "many")])
def test_other_values_of_the_attributes_are_refused(cache_file: Path, name: str, value: str) -> None:
    with h5py.File(cache_file, "r+") as file:
        file.attrs[name] = value
    with pytest.raises(CacheError, match=f"attribute {name} is '{value}', expected"):
        FeatureCache(cache_file)


@pytest.mark.parametrize("change", [{"val_per_class": 0}, {"shots": ()}])
def test_numbers_that_draw_nothing_are_refused(change: dict) -> None:
    with pytest.raises(OptionError, match="must be positive"):
        ExtractOptions(**change)


def test_corrected_labels_encode_nothing_but_new_prompts(
    dataset: Dataset, glyph_clip: Backbone, path: Path, tmp_path: Path
) -> None:
    extract(dataset, glyph_clip, FEW, path)
    before = FeatureCache(path)
    features = dict(zip(before.files(), before.contents().image_features[:], strict=True))
    moved, out, wolf = dataset.train[0].path, dataset.train[1].path, dataset.train[-1].path
    file = fixes(tmp_path, f"path,label,part\n{moved},dog,val\n{out},-,\n{wolf},wolf,\n")
    changed = corrected(dataset, [file])
    done = extract(changed, glyph_clip, FEW, path)
    assert (done.encoded, done.changed) == (0, True)
    cache = FeatureCache(path)
    assert cache.classnames == ("black_cat", "dog", "été", "wolf")
    contents = cache.contents()
    for row, one in enumerate(cache.files()):
        assert np.array_equal(contents.image_features[row], features[one])
    label_of = {name: cache.classnames[label] for (name, _), label in zip(cache.files(), cache.labels, strict=True)}
    part_of = dict(zip((name for name, _ in cache.files()), cache.partitions.tolist(), strict=True))
    assert (label_of[moved], part_of[moved], label_of[wolf]) == ("dog", 1, "wolf")
    assert out not in label_of
    assert cache.text_bases().embeddings.shape[0] == 4
    assert cache.corrections.changes == changed.corrections.changes
    assert Change(out, "black_cat", "", "train", "train") in cache.corrections.changes
    assert describe_cache(cache)["corrections"]["relabelled"] == 2
    assert describe_cache(cache)["corrections"]["files"].keys() == {"fixes.csv"}
    assert not extract(changed, glyph_clip, FEW, path).changed
    renamed = corrected(dataset, [file.rename(tmp_path / "renamed.csv")])
    assert extract(renamed, glyph_clip, FEW, path).changed
    assert FeatureCache(path).corrections.files[0][0] == "renamed.csv"
    with h5py.File(path) as stored:
        assert stored.attrs["format_version"] == 2


def test_corrections_are_never_undone_unasked(
    dataset: Dataset, glyph_clip: Backbone, path: Path, tmp_path: Path
) -> None:
    first, second = dataset.train[0].path, dataset.train[1].path
    extract(corrected(dataset, [fixes(tmp_path, f"{first},dog\n{second},dog\n")]), glyph_clip, FEW, path)
    content = path.read_bytes()
    other = corrected(dataset, [fixes(tmp_path, f"{first},été\n", "other.csv")])
    for unaware, count in ((dataset, 2), (other, 1)):
        with pytest.raises(
            OptionError, match=f"2 corrected labels of fixes.csv, and this would undo {count} of them.*--labels keep"
        ):
            extract(unaware, glyph_clip, FEW, path)
    assert path.read_bytes() == content
    both = corrected(dataset, [tmp_path / "other.csv"], FeatureCache(path).corrections)
    extract(both, glyph_clip, FEW, path)
    assert {change.path: change.label for change in FeatureCache(path).corrections.changes} == {
        first: "été",
        second: "dog",
    }
    undone = extract(dataset, glyph_clip, ExtractOptions((1,), (1,), workers=0, undo_corrections=True), path)
    assert undone.encoded == 0
    assert FeatureCache(path).corrections.changes == ()
    assert FeatureCache(path).provenance.corrections == {}


def test_corrections_stay_when_prompts_are_added(
    dataset: Dataset, glyph_clip: Backbone, path: Path, tmp_path: Path
) -> None:
    file = fixes(tmp_path, f"{dataset.train[0].path},dog\n")
    extract(corrected(dataset, [file]), glyph_clip, FEW, path)
    before = FeatureCache(path)
    add_prompts(path, glyph_clip, "art", [["art"], ["a dog"], ["summer"]])
    after = FeatureCache(path)
    assert after.corrections == before.corrections
    assert after.provenance == before.provenance
    assert after.prompt_sets == ("default", "art")


def test_the_commands_from_corrections_to_a_prediction(here: Path, photos: Path, taskres: Taskres) -> None:
    where = (photos, "--backbone", "glyph-clip", "--pretrained", "bundled", "--workers", "0")
    assert taskres("extract", *where).status == 0
    image = "black_cat/image 0.png"
    (here / "fixes.csv").write_text(f"path,label\n{image},dog\n")
    assert "0 newly encoded" in taskres("extract", *where, "--labels", "fixes.csv").err
    assert "would undo 1 of them" in one_line(taskres("extract", *where))
    kept = taskres("extract", *where, "--labels", "keep")
    assert "nothing was missing" in kept.err
    shown = taskres("inspect", "photos").out
    assert "fixes.csv" in shown
    assert "relabelled 1" in shown
    stored = json.loads(taskres("inspect", "photos", "--json").out)
    assert stored["corrections"]["relabelled"] == 1
    (run,) = json.loads(taskres("fit", "photos", "--json").out)["runs"]
    assert (run["shots"], run["method"]) == ("all", "auto")
    assert run["folder"].replace("\\", "/") == "runs/glyph-clip-bundled/photos/auto/shots_all/seed_1"
    assert taskres("predict", "runs/glyph-clip-bundled/photos", photos / "dog").status == 0
    one_with_alpha = json.loads(taskres("fit", "photos", "--alpha", "1", "--epochs", "2", "--json").out)["runs"]
    assert [(run["shots"], run["method"]) for run in one_with_alpha] == [("all", "taskres-regular-alpha1-epochs2")]
    assert "nothing" not in taskres("extract", *where, "--labels", "none").err
    conflict = one_line(taskres("extract", *where, "--labels", "keep,none"))
    assert "pass one of them" in conflict


def test_without_a_split_of_all_the_most_shots_are_fitted(here: Path, photos: Path, taskres: Taskres) -> None:
    where = (photos, "--backbone", "glyph-clip", "--pretrained", "bundled", "--workers", "0")
    taskres("extract", *where, "--shots", "16", "--seeds", "1", "--val", "1")
    (run,) = json.loads(taskres("fit", "photos", "--json").out)["runs"]
    assert (run["shots"], run["method"], run["images"]["val"]) == (16, "auto", 3)
    taskres("extract", *where, "--shots", "2", "--seeds", "1", "--name", "two")
    (of_two,) = json.loads(taskres("fit", "two", "--json").out)["runs"]
    assert of_two["shots"] == 2
    for wrong in ("0", "1,2", "some"):
        assert "--val" in one_line(taskres("extract", *where, "--val", wrong))
