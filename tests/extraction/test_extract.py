"""Stage one: every image is encoded once, only missing ones are encoded, and no work is lost."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.datasets import (
    ALL_SHOTS,
    PAPER_SEEDS,
    PAPER_SHOTS,
    Dataset,
    labels_of,
    load_dataset,
    sample_few_shot,
)
from taskres_cache.datasets.images import ImageFolder
from taskres_cache.encoders.backbone import Backbone
from taskres_cache.errors import (
    CacheMismatchError,
    DatasetError,
    OptionError,
    StorageError,
    UnreadableImagesError,
    WeightsError,
)
from taskres_cache.extraction.extract import ExtractOptions, extract
from tests.conftest import save_image

OPTIONS = ExtractOptions(shots=(1, 2), seeds=(1, 2))


class Recorder:
    """A progress that records its calls."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, int, int]] = []
        self.advanced = 0

    def begin(self, what: str, total: int, done: int) -> None:
        self.begun.append((what, total, done))

    def advance(self, count: int) -> None:
        self.advanced += count


def test_cache_has_the_splits_and_the_features_of_each_image(
    dataset: Dataset, glyph_clip: Backbone, path: Path
) -> None:
    done = extract(dataset, glyph_clip, OPTIONS, path)
    cache = FeatureCache(path)
    contents = cache.contents()
    assert done.encoded == done.images == len(contents.paths) == len(set(contents.paths))
    assert not path.with_name("photos.h5.parts").exists()
    for shots, seed in [(1, 1), (1, 2), (2, 1), (2, 2)]:
        drawn = sample_few_shot(labels_of(dataset.train), labels_of(dataset.val), shots, seed)
        rows = cache.split(shots, seed)
        assert [contents.paths[row] for row in rows.train] == [dataset.train[position].path for position in drawn.train]
        assert [contents.paths[row] for row in rows.val] == [dataset.val[position].path for position in drawn.val]
    assert {contents.paths[row] for row in cache.rows("test")} == {item.path for item in dataset.test}
    for row in (0, len(contents.paths) - 1):
        pixels = np.array(glyph_clip.framing(dataset.source.read(contents.paths[row])))
        alone = glyph_clip.encode_images(glyph_clip.on_device(pixels[None]))[0]
        assert np.allclose(contents.image_features[row], alone, atol=1e-4 * np.abs(alone).max())
    assert contents.provenance.preprocess["orientation"] == "exif-on-white"
    assert contents.provenance.weights_sha256 == glyph_clip.weights_sha256


def test_options_and_path_have_defaults(dataset: Dataset, glyph_clip: Backbone, here: Path) -> None:
    done = extract(dataset, glyph_clip)
    assert done.path == Path("cache/glyph-clip-bundled/photos.h5")
    every = (*PAPER_SHOTS, ALL_SHOTS)  # of data that is not known by name
    assert set(FeatureCache(done.path).splits) == {(shots, seed) for shots in every for seed in PAPER_SEEDS}


def test_path_may_be_a_string(dataset: Dataset, glyph_clip: Backbone, path: Path) -> None:
    assert extract(dataset, glyph_clip, OPTIONS, str(path)).path == path
    assert path.exists()


def test_text_features_are_those_of_the_prompts(dataset: Dataset, glyph_clip: Backbone, path: Path) -> None:
    extract(dataset, glyph_clip, OPTIONS, path)
    text = FeatureCache(path).text_bases()
    direct = glyph_clip.encode_texts(["a photo of a black cat.", "a photo of a dog.", "a photo of a été."])
    assert np.allclose(text.embeddings[:, 0], direct.embeddings, atol=1e-4)
    assert text.pre_projection is not None
    assert np.allclose(text.pre_projection @ text.projection, text.embeddings, atol=1e-5)


def test_raw_class_names_are_another_prompt_set(dataset: Dataset, glyph_clip: Backbone, path: Path) -> None:
    extract(dataset, glyph_clip, replace(OPTIONS, classnames_form="raw"), path)
    embeddings = FeatureCache(path).text_bases().embeddings[:, 0]
    assert np.allclose(embeddings[0], glyph_clip.encode_texts(["a photo of a black_cat."]).embeddings[0], atol=1e-4)
    with pytest.raises(CacheMismatchError, match="classnames_form: cache has 'raw', expected 'spaces'"):
        extract(dataset, glyph_clip, OPTIONS, path)


def test_running_again_encodes_and_writes_nothing(dataset: Dataset, glyph_clip: Backbone, path: Path) -> None:
    extract(dataset, glyph_clip, OPTIONS, path)
    before = path.read_bytes()
    again = extract(dataset, glyph_clip, OPTIONS, path)
    assert (again.encoded, again.changed) == (0, False)
    assert path.read_bytes() == before


def test_more_shots_and_seeds_encode_only_new_images(dataset: Dataset, glyph_clip: Backbone, path: Path) -> None:
    first = extract(dataset, glyph_clip, OPTIONS, path)
    recorder = Recorder()
    more = extract(dataset, glyph_clip, ExtractOptions(shots=(4,), seeds=(3,)), path, recorder)
    assert more.encoded == more.images - first.images > 0
    assert recorder.begun[0] == ("images of photos", more.images, first.images)
    assert recorder.begun[1] == ("prompts of photos", 3, 3)
    assert recorder.advanced == more.encoded
    cache = FeatureCache(path)
    assert set(cache.splits) == {(1, 1), (1, 2), (2, 1), (2, 2), (4, 3)}
    # One extraction of everything gives the same features, up to the last bits, which depend on batching.
    at_once = path.with_name("once.h5")
    extract(dataset, glyph_clip, ExtractOptions(shots=(1, 2, 4), seeds=(1, 2, 3)), at_once)
    reference = FeatureCache(at_once).contents()
    features = dict(zip(reference.paths, reference.image_features, strict=True))
    extended = cache.contents()
    for item_path, row in zip(extended.paths, extended.image_features, strict=True):
        assert np.allclose(row, features[item_path], rtol=1e-4, atol=1e-5)


def test_an_interrupted_run_resumes_with_the_missing_blocks(
    dataset: Dataset, glyph_clip: Backbone, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskres_cache.extraction.extract.BLOCK_ROWS", 5)
    extract(dataset, glyph_clip, OPTIONS, path.with_name("whole.h5"))

    class Interrupts(Recorder):
        def advance(self, count: int) -> None:
            super().advance(count)
            if self.advanced >= 10:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(dataset, glyph_clip, OPTIONS, path, Interrupts())
    assert not path.exists()
    assert len(list(path.with_name("photos.h5.parts").glob("image-*.npz"))) == 2
    resumed = extract(dataset, glyph_clip, OPTIONS, path)
    assert resumed.encoded == resumed.images - 10
    whole, parts = (FeatureCache(path.with_name(name)).contents() for name in ("whole.h5", "photos.h5"))
    assert whole.paths == parts.paths
    assert np.array_equal(whole.image_features, parts.image_features)
    assert np.array_equal(whole.text.embeddings, parts.text.embeddings)


def test_blocks_with_another_orientation_are_not_reused(
    dataset: Dataset, glyph_clip: Backbone, path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskres_cache.extraction.extract.write_cache", lambda *_: None)
    monkeypatch.setattr("taskres_cache.extraction.extract.discard_blocks", lambda *_: None)
    first = extract(dataset, glyph_clip, OPTIONS, path)
    as_stored = replace(dataset, source=ImageFolder(photos, orientation="stored"))
    assert extract(dataset, glyph_clip, OPTIONS, path).encoded == 0
    assert extract(as_stored, glyph_clip, OPTIONS, path).encoded == first.images


def test_unreadable_images_are_listed_after_all_others_are_encoded(
    dataset: Dataset, glyph_clip: Backbone, path: Path, photos: Path
) -> None:
    broken = [dataset.test[0].path, dataset.test[3].path]
    (photos / broken[0]).write_text("no image")
    (photos / broken[1]).write_bytes((photos / broken[1]).read_bytes()[:60])
    with pytest.raises(UnreadableImagesError) as error:
        extract(dataset, glyph_clip, OPTIONS, path)
    assert set(error.value.reasons) == set(broken)
    assert all(name in str(error.value) for name in broken)
    assert not path.exists()
    save_image(photos / broken[0], 901)
    save_image(photos / broken[1], 902)
    fixed = extract(dataset, glyph_clip, OPTIONS, path)
    assert fixed.encoded == 2


def test_missing_images_are_reported_before_encoding(
    dataset: Dataset, glyph_clip: Backbone, path: Path, photos: Path
) -> None:
    for item in dataset.test[:2]:
        (photos / item.path).unlink()
    recorder = Recorder()
    both = f"{dataset.test[0].path}, {dataset.test[1].path}"
    with pytest.raises(DatasetError, match=f"{both} not found below {photos}"):
        extract(dataset, glyph_clip, OPTIONS, path, recorder)
    assert recorder.begun == []
    skipping = extract(dataset, glyph_clip, replace(OPTIONS, unreadable="skip"), path)
    assert list(FeatureCache(path).skipped) == [item.path for item in dataset.test[:2]]
    assert skipping.images == skipping.encoded


def test_unreadable_images_can_be_skipped_and_are_recorded(
    dataset: Dataset, glyph_clip: Backbone, path: Path, photos: Path
) -> None:
    drawn = sample_few_shot(labels_of(dataset.train), [], 2, 1).train[0]
    broken = dataset.train[drawn].path
    (photos / broken).write_bytes((photos / broken).read_bytes()[:60])
    done = extract(dataset, glyph_clip, replace(OPTIONS, unreadable="skip"), path)
    contents = FeatureCache(path).contents()
    assert list(contents.skipped) == [broken]
    assert broken not in contents.paths
    assert len(contents.splits[2, 1].train) == 5
    assert any(note.startswith(f"skipped {broken}") for note in done.notes)


def test_a_changed_image_is_encoded_again(dataset: Dataset, glyph_clip: Backbone, path: Path, photos: Path) -> None:
    extract(dataset, glyph_clip, OPTIONS, path)
    before = FeatureCache(path).contents()
    changed = dataset.test[2].path
    save_image(photos / changed, seed=12345)
    os.utime(photos / changed, (1, 1))
    again = extract(dataset, glyph_clip, OPTIONS, path)
    after = FeatureCache(path).contents()
    assert again.encoded == 1
    differs = [not np.array_equal(a, b) for a, b in zip(before.image_features, after.image_features, strict=True)]
    assert [name for name, differ in zip(after.paths, differs, strict=True) if differ] == [changed]


def test_fewer_images_than_shots_are_all_used_with_a_note(dataset: Dataset, glyph_clip: Backbone, path: Path) -> None:
    done = extract(dataset, glyph_clip, ExtractOptions(shots=(16,), seeds=(1,)), path)
    assert len(FeatureCache(path).split(16, 1).train) == 18
    assert "class 'dog' has 6 train images, fewer than 16 shots; all are used" in done.notes


def test_a_cache_of_another_checkpoint_is_not_changed(dataset: Dataset, glyph_clip: Backbone, path: Path) -> None:
    extract(dataset, glyph_clip, OPTIONS, path)
    before = path.read_bytes()
    other = replace(glyph_clip, weights_sha256="cd" * 32, precision="bf16")
    with pytest.raises(CacheMismatchError) as error:
        extract(dataset, other, OPTIONS, path)
    assert set(error.value.differing) == {"weights_sha256", "precision"}
    assert path.read_bytes() == before


def test_another_folder_of_the_same_name_does_not_replace_a_cache(
    dataset: Dataset, glyph_clip: Backbone, path: Path, tmp_path: Path
) -> None:
    extract(dataset, glyph_clip, OPTIONS, path)
    before = path.read_bytes()
    for label, classname in enumerate(["ant", "bee"]):
        for number in range(4):
            save_image(tmp_path / "elsewhere" / "photos" / classname / f"{number}.png", 50 * label + number)
    with pytest.raises(CacheMismatchError, match="another folder of the same name.*--name"):
        extract(load_dataset(str(tmp_path / "elsewhere" / "photos"), Path()), glyph_clip, OPTIONS, path)
    assert path.read_bytes() == before


def test_features_do_not_depend_on_worker_processes(dataset: Dataset, glyph_clip: Backbone, path: Path) -> None:
    extract(dataset, glyph_clip, replace(OPTIONS, workers=0), path)
    extract(dataset, glyph_clip, replace(OPTIONS, workers=2), path.with_name("two.h5"))
    alone, two = (FeatureCache(path.with_name(name)).contents() for name in ("photos.h5", "two.h5"))
    assert np.array_equal(alone.image_features, two.image_features)


def test_low_precision_is_stored_as_float16(dataset: Dataset, glyph_clip: Backbone, path: Path) -> None:
    extract(dataset, replace(glyph_clip, precision="bf16"), OPTIONS, path)
    cache = FeatureCache(path)
    assert cache.contents().image_features.dtype == np.float16
    assert cache.provenance.precision == "bf16"


def test_a_folder_that_cannot_be_written_is_reported_before_encoding(
    dataset: Dataset, glyph_clip: Backbone, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    recorder = Recorder()
    with pytest.raises(StorageError, match="cannot be written"):
        extract(dataset, glyph_clip, OPTIONS, tmp_path / "file" / "photos.h5", recorder)
    assert recorder.begun == []


@pytest.mark.parametrize(
    "change",
    [{"shots": ()}, {"shots": (0,)}, {"seeds": ()}, {"batch_size": 0}, {"workers": -1}, {"unreadable": "maybe"}],
)
def test_values_out_of_range_are_refused(change: dict) -> None:
    with pytest.raises(OptionError):
        ExtractOptions(**change)


def test_another_split_seed_needs_another_cache(
    dataset: Dataset, glyph_clip: Backbone, path: Path, photos: Path
) -> None:
    extract(dataset, glyph_clip, OPTIONS, path)
    assert FeatureCache(path).provenance.split == "60/20/20 of each class by file name, seed 0"
    with pytest.raises(CacheMismatchError, match="split: cache has '60/20/20 of each class by file name, seed 0'"):
        extract(load_dataset(str(photos), Path(), split_seed=1), glyph_clip, OPTIONS, path)


def test_a_cache_whose_split_was_shuffled_is_kept_and_not_mixed(
    dataset: Dataset, glyph_clip: Backbone, path: Path
) -> None:
    extract(replace(dataset, split="60/20/20 of each class, seed 0"), glyph_clip, OPTIONS, path)
    before = path.read_bytes()
    with pytest.raises(CacheMismatchError, match="an older version split it .*; it stays usable") as error:
        extract(dataset, glyph_clip, OPTIONS, path)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before


def test_the_folder_of_the_images_is_found_from_anywhere(
    glyph_clip: Backbone, path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    extract(load_dataset("photos"), glyph_clip, OPTIONS, path)
    assert FeatureCache(path).provenance.images_folder == str(photos)


def test_no_readable_image_is_an_error_even_when_skipping(
    dataset: Dataset, glyph_clip: Backbone, path: Path, photos: Path
) -> None:
    for image in photos.rglob("image *"):
        image.write_text("no image")
    with pytest.raises(UnreadableImagesError):
        extract(dataset, glyph_clip, replace(OPTIONS, unreadable="skip"), path)
    assert not path.exists()


def test_features_that_are_not_finite_are_refused(dataset: Dataset, glyph_clip: Backbone, path: Path) -> None:
    class Overflows(Backbone):
        def encode_images(self, pixels):
            return super().encode_images(pixels) * np.float32("inf")

    with pytest.raises(WeightsError, match=r"NaN or infinite features for .*image \d.* in precision fp32"):
        extract(dataset, Overflows(**vars(glyph_clip)), OPTIONS, path)
    assert not path.exists()
