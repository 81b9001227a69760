"""Folders, archives, the registry, and invalid data sets."""

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from taskres_cache.datasets import Dataset, Item, default_backbone, load_dataset
from taskres_cache.datasets.images import ImageArchive, ImageFolder
from taskres_cache.datasets.splitting import split_class
from taskres_cache.errors import DatasetError, OptionError, UnknownNameError
from tests.conftest import save_image


def test_folder_of_classes_is_split_60_20_20(photos: Path) -> None:
    dataset = load_dataset(str(photos), Path())
    assert dataset.name == "photos"
    assert dataset.classnames == ("black_cat", "dog", "été")
    assert [len(dataset.train), len(dataset.val), len(dataset.test)] == [18, 6, 6]
    paths = [item.path for part in dataset.partitions.values() for item in part]
    assert len(set(paths)) == 30
    assert all(dataset.classnames[item.label] == item.path.split("/")[0] for item in dataset.train)


def test_split_depends_only_on_its_seed(photos: Path) -> None:
    first, again, other = (load_dataset(str(photos), Path(), split_seed=seed) for seed in (0, 0, 1))
    assert first.test == again.test
    assert first.test != other.test


def test_a_new_class_does_not_change_the_split_of_the_others(photos: Path) -> None:
    before = load_dataset(str(photos), Path())
    save_image(photos / "ant" / "1.png", 1)
    save_image(photos / "ant" / "2.png", 2)
    after = load_dataset(str(photos), Path())
    assert {item.path for item in before.test} <= {item.path for item in after.test}
    assert after.notes == ("class 'ant' has fewer than 3 images, too few for train, val and test",)


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (10, (6, 2, 2)), (12, (6, 3, 3)), (100, (60, 20, 20))],
)
def test_partition_sizes_of_one_class(count: int, sizes: tuple[int, int, int]) -> None:
    split = split_class([f"dog/{number}.png" for number in range(count)], "dog", 0)
    assert (len(split.train), len(split.val), len(split.test)) == sizes


def test_presplit_folder_keeps_its_split(tmp_path: Path) -> None:
    for number, (partition, classname) in enumerate((p, c) for p in ("train", "test") for c in ("cat", "dog")):
        save_image(tmp_path / "pets" / partition / classname / "1.png", number)
    dataset = load_dataset(str(tmp_path / "pets"), Path())
    assert dataset.train == (Item("train/cat/1.png", 0), Item("train/dog/1.png", 1))
    assert dataset.val == ()
    assert dataset.test == (Item("test/cat/1.png", 0), Item("test/dog/1.png", 1))


def test_presplit_folder_without_test_is_rejected(tmp_path: Path) -> None:
    for partition in ("train", "val"):
        for classname in ("cat", "dog"):
            save_image(tmp_path / "pets" / partition / classname / "1.png", 1)
    with pytest.raises(DatasetError, match="no test/<class>/ folder"):
        load_dataset(str(tmp_path / "pets"), Path())


def test_empty_class_is_named(photos: Path) -> None:
    (photos / "zebra").mkdir()
    (photos / "zebra" / "notes.txt").write_text("no image")
    with pytest.raises(DatasetError, match="no image in 'zebra'"):
        load_dataset(str(photos), Path())


def test_a_single_class_is_rejected(photos: Path) -> None:
    shutil.rmtree(photos / "dog")
    shutil.rmtree(photos / "été")
    with pytest.raises(DatasetError, match="only 1 class.*expected at least 2"):
        load_dataset(str(photos), Path())


def test_an_empty_folder_and_a_file_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DatasetError, match="only 0 class"):
        load_dataset(str(tmp_path / "nothing"), Path())
    (tmp_path / "list.txt").write_text("cat")
    with pytest.raises(DatasetError, match="is a file"):
        load_dataset(str(tmp_path / "list.txt"), Path())


def test_unknown_name_offers_near_matches() -> None:
    with pytest.raises(UnknownNameError, match="unknown data set 'digit'; did you mean 'digits'"):
        load_dataset("digit", Path())


def test_a_folder_named_like_a_known_data_set_gets_another_name(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos.rename(photos.parent / "digits")
    monkeypatch.chdir(photos.parent)
    assert load_dataset("./digits", Path()).name == "digits-folder"
    assert load_dataset("digits", Path()).name == "digits"
    with pytest.raises(OptionError, match="keeps its name"):
        load_dataset("digits", Path(), rename="mine")


def test_a_label_out_of_range_and_an_image_in_two_partitions_are_rejected(photos: Path) -> None:
    source, items = ImageFolder(photos), (Item("a.png", 0), Item("b.png", 1))
    with pytest.raises(DatasetError, match=r"c.png has label 2, expected 0 to 1"):
        Dataset("toy", source, ("a", "b"), ("{}",), items, (), (Item("c.png", 2),))
    with pytest.raises(DatasetError, match=r"a.png is listed twice"):
        Dataset("toy", source, ("a", "b"), ("{}",), items, (), (Item("a.png", 0),))
    with pytest.raises(DatasetError, match="no train image for 'b'"):
        Dataset("toy", source, ("a", "b"), ("{}",), items[:1], (), items[1:])


def test_images_are_turned_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 2))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned: width and height swap
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert ImageFolder(tmp_path).read("turned.jpg").size == (2, 4)
    assert ImageFolder(tmp_path, orientation="stored").read("turned.jpg").size == (4, 2)


def test_stamp_changes_with_the_file(photos: Path) -> None:
    source, path = ImageFolder(photos), "dog/image 1.jpg"
    before = source.stamp(path)
    save_image(photos / path, seed=999, size=(41, 30))
    assert source.stamp(path) != before
    assert source.stamp("dog/none.jpg") == "absent"


def test_a_file_that_is_not_an_archive_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "broken.zip").write_bytes(b"PK no archive")
    with pytest.raises(DatasetError, match="not a readable zip archive"):
        ImageArchive.at(tmp_path / "broken.zip")


def test_default_backbones() -> None:
    assert (default_backbone("digits").name, default_backbone("digits").pretrained) == ("glyph-clip", "bundled")
    assert (default_backbone("photos").name, default_backbone("photos").pretrained) == ("RN50", "openai")


def test_links_are_followed_and_loops_end(photos: Path) -> None:
    (photos.parent / "cats").mkdir()
    save_image(photos.parent / "cats" / "1.png", 1)
    for number in range(2, 6):
        save_image(photos.parent / "cats" / f"{number}.png", number)
    (photos / "lynx").symlink_to(photos.parent / "cats")
    (photos / "dog" / "up").symlink_to(photos)
    dataset = load_dataset(str(photos), Path())
    assert dataset.classnames == ("black_cat", "dog", "lynx", "été")
    assert sum(len(part) for part in dataset.partitions.values()) == 35


def test_a_file_name_that_cannot_be_stored_is_rejected_first(photos: Path) -> None:
    (photos / "dog" / "image 1.jpg").rename(photos / "dog" / os.fsdecode(b"image \xff.jpg"))
    with pytest.raises(DatasetError, match=r"file name 'dog/image \\udcff.jpg' is not UTF-8; rename the file"):
        load_dataset(str(photos), Path())


def test_the_root_has_a_default_and_may_be_text(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = load_dataset("digits")
    assert repr(digits) == "Dataset('digits': 1079 train, 359 val, 359 test images, 10 classes)"
    assert load_dataset("digits", str(photos)) == digits
    with pytest.raises(DatasetError, match=f"missing {photos}/dtd;"):
        load_dataset("dtd", str(photos))
    monkeypatch.chdir(photos)
    with pytest.raises(DatasetError, match="missing dtd;"):
        load_dataset("dtd")


@pytest.mark.parametrize("name", ["..", "///", "x" * 300, "\n"])
def test_a_name_that_cannot_be_part_of_a_path_is_refused(photos: Path, name: str) -> None:
    with pytest.raises(OptionError, match="is not usable as a name"):
        load_dataset(str(photos), rename=name)
