"""Byte-identical files, images with the same feature, and caches whose images an earlier version read otherwise."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.datasets import load_dataset
from taskres_cache.encoders.backbone import Backbone
from taskres_cache.errors import DatasetError
from taskres_cache.extraction.copies import note_on_equal_features, without_copies
from taskres_cache.extraction.extract import ExtractOptions, extract
from tests.conftest import save_image

ALL = ExtractOptions(shots=(50,), seeds=(1,), workers=0)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    folder = tmp_path / "parts"
    for number, name in enumerate(("cat", "dog")):
        for part, count in (("train", 4), ("val", 2), ("test", 2)):
            for image in range(count):
                save_image(folder / part / name / f"{image}.png", 100 * number + 10 * len(part) + image + count)
    return folder


def test_a_copy_stays_in_one_part_only(parts: Path, glyph_clip: Backbone, tmp_path: Path) -> None:
    shutil.copy(parts / "test" / "cat" / "0.png", parts / "train" / "cat" / "copy.png")
    shutil.copy(parts / "test" / "cat" / "0.png", parts / "val" / "dog" / "copy.png")
    shutil.copy(parts / "val" / "dog" / "0.png", parts / "train" / "dog" / "copy.png")
    shutil.copy(parts / "train" / "dog" / "0.png", parts / "train" / "dog" / "twin.png")
    done = extract(load_dataset(str(parts)), glyph_clip, ALL, tmp_path / "parts.h5")
    paths = FeatureCache(tmp_path / "parts.h5").contents().paths
    assert [path for path in paths if "copy" in path] == []
    assert "train/dog/twin.png" in paths
    assert done.notes[-3:-1] == (
        "3 train or val images are left out, as copies of images in test or val: val/dog/copy.png (of test/cat/0.png), "
        "train/cat/copy.png (of test/cat/0.png), train/dog/copy.png (of val/dog/0.png)",
        "1 image has the same bytes as another image of its part",
    )
    assert not extract(load_dataset(str(parts)), glyph_clip, ALL, tmp_path / "parts.h5").changed


def test_a_class_of_copies_is_refused(parts: Path) -> None:
    shutil.rmtree(parts / "train" / "cat")
    shutil.copytree(parts / "test" / "cat", parts / "train" / "cat")
    with pytest.raises(DatasetError, match="all train images of class 'cat' are copies of images in test or val"):
        without_copies(load_dataset(str(parts)))


def test_broken_files_and_known_data_sets_are_not_copies(parts: Path) -> None:
    for part in ("train", "test"):
        (parts / part / "cat" / "broken.png").write_bytes(b"junk")
        (parts / part / "cat" / "empty.png").write_bytes(b"")
    dataset = load_dataset(str(parts))
    assert without_copies(dataset) == (dataset, ())
    shutil.copy(parts / "test" / "cat" / "0.png", parts / "train" / "cat" / "copy.png")
    published = replace(load_dataset(str(parts)), source=replace(dataset.source, orientation="stored"))
    assert without_copies(published) == (published, ())
    digits = load_dataset("digits")
    assert without_copies(digits) == (digits, ())


def test_many_images_with_one_feature_get_a_note(parts: Path, glyph_clip: Backbone, tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (20 + number, 20), "white").save(parts / "train" / "cat" / f"blank {number}.png")
    done = extract(load_dataset(str(parts)), glyph_clip, ALL, tmp_path / "parts.h5")
    assert done.notes[-1] == (
        "3 of 19 images have the same feature as another one, such as train/cat/blank 0.png, train/cat/blank 1.png, "
        "train/cat/blank 2.png: the encoder sees the same picture; are they blank, or copies?"
    )
    features = np.arange(600, dtype=np.float32).reshape(300, 2)
    paths = [str(row) for row in range(300)]
    assert note_on_equal_features(paths, features) == ()
    features[299] = features[0]
    assert note_on_equal_features(paths, features) == ()
    features[7] = features[0]
    assert (
        "3 of 300 images have the same feature as another one, such as 0, 7, 299:"
        in note_on_equal_features(paths, features)[0]
    )


def test_a_cache_of_an_earlier_version_keeps_its_reading(parts: Path, glyph_clip: Backbone, tmp_path: Path) -> None:
    """Earlier versions left transparent parts black; new images of such a cache are read in the same way."""
    current = load_dataset(str(parts))
    earlier = replace(current, source=replace(current.source, orientation="exif"))
    few = replace(ALL, shots=(1,))
    extract(earlier, glyph_clip, few, tmp_path / "parts.h5")
    clear = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    clear.save(parts / "test" / "cat" / "clear.png")
    done = extract(load_dataset(str(parts)), glyph_clip, few, tmp_path / "parts.h5")
    cache = FeatureCache(tmp_path / "parts.h5")
    assert (done.encoded, cache.provenance.preprocess["orientation"]) == (1, "exif")
    contents = cache.contents()
    row = contents.paths.index("test/cat/clear.png")
    black = glyph_clip.encode_images(glyph_clip.on_device(np.zeros((1, 32, 32, 3), np.uint8)))[0]
    assert np.allclose(contents.image_features[row], black, atol=1e-4 * np.abs(black).max())
