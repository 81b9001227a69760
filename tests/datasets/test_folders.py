"""Folders as people have them: every file is used or counted, and an image keeps its place in the split."""

import os
import unicodedata
from pathlib import Path
from random import Random

import pytest
from PIL import Image

from taskres_cache.datasets import Dataset, load_dataset
from taskres_cache.datasets.images import READS_AVIF, READS_HEIC, ImageFolder
from taskres_cache.datasets.splitting import split_class
from taskres_cache.errors import DatasetError
from tests.conftest import save_image


def fill(folder: Path, *classes: str, images: int = 5) -> None:
    for seed, name in enumerate(classes):
        for number in range(images):
            save_image(folder / name / f"{number}.png", 100 * seed + number, (8, 8))


def sizes(dataset: Dataset) -> tuple[int, int, int]:
    return len(dataset.train), len(dataset.val), len(dataset.test)


def notes_of(folder: Path) -> str:
    return " | ".join(load_dataset(str(folder)).notes)


def test_every_file_is_used_or_counted(photos: Path) -> None:
    for name in ("a.txt", "dog/b.TXT", "dog/labels.csv", "dog/noext", "dog/x.heic", "été/y.webm"):
        (photos / name).write_bytes(b"x")
    for name in (".DS_Store", "dog/.DS_Store", "dog/Thumbs.db", "__MACOSX/dog/._1.jpg", "@eaDir/1.jpg", ".git/x.png"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(b"x")
    for number in range(3):
        save_image(photos / f"overview{number}.jpg", number)
    dataset = load_dataset(str(photos))
    assert sum(sizes(dataset)) == 30 + READS_HEIC
    assert dataset.classnames == ("black_cat", "dog", "été")
    (note,) = dataset.notes
    assert note.startswith("9 files not used: " if not READS_HEIC else "8 files not used: ")
    for part in ("3 in no class folder", "2 .txt", "1 .csv", "1 .webm", "1 without a usual suffix"):
        assert part in note
    assert READS_HEIC or "1 .heic (to read them: pip install 'taskres-cache[heic]')" in note


def test_nothing_is_noted_if_every_file_is_used(photos: Path) -> None:
    assert load_dataset(str(photos)).notes == ()


def test_images_at_any_depth_belong_to_their_class(tmp_path: Path) -> None:
    fill(tmp_path / "pets", "cat", "dog")
    fill(tmp_path / "pets" / "dog", "puppies/2024", images=3)
    dataset = load_dataset(str(tmp_path / "pets"))
    assert dataset.classnames == ("cat", "dog")
    assert sum(sizes(dataset)) == 13
    assert dataset.notes == ("3 images in folders below a class folder belong to the class",)


def test_a_folder_around_the_classes_is_entered(tmp_path: Path) -> None:
    fill(tmp_path / "pets" / "pets" / "images", "cat", "dog")
    dataset = load_dataset(str(tmp_path / "pets"))
    assert dataset.classnames == ("cat", "dog")
    assert dataset.notes == ("the classes are in 'pets/images'",)
    fill(tmp_path / "more" / "data" / "Train", "cat", "dog")
    fill(tmp_path / "more" / "data" / "TEST", "cat", "dog")
    assert sizes(load_dataset(str(tmp_path / "more"))) == (10, 0, 10)


@pytest.mark.parametrize("train", ["train", "Train", "training"])
@pytest.mark.parametrize("val", ["val", "valid", "Validation", "DEV"])
def test_partitions_have_the_names_that_people_give_them(tmp_path: Path, train: str, val: str) -> None:
    for folder, images in ((train, 4), (val, 2), ("Test", 3)):
        fill(tmp_path / "pets" / folder, "cat", "dog", images=images)
    save_image(tmp_path / "pets" / train / "overview.png", 1)
    (tmp_path / "pets" / "docs").mkdir()
    dataset = load_dataset(str(tmp_path / "pets"))
    assert (dataset.classnames, sizes(dataset), dataset.split) == (("cat", "dog"), (8, 4, 6), "given")
    assert dataset.notes == ("1 file not used: 1 in no class folder",)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    fill(tmp_path / "vehicles", "bus", "car", "train")
    assert load_dataset(str(tmp_path / "vehicles")).classnames == ("bus", "car", "train")


def test_test_alone_is_a_test_set_and_train_alone_is_split(tmp_path: Path) -> None:
    fill(tmp_path / "a" / "test", "cat", "dog")
    tested = load_dataset(str(tmp_path / "a"))
    assert (tested.test_only, sizes(tested)) == (True, (0, 0, 10))
    fill(tmp_path / "b" / "train", "cat", "dog")
    split = load_dataset(str(tmp_path / "b"))
    assert sizes(split) == (6, 2, 2)
    assert split.split == "60/20/20 of each class by file name, seed 0"
    assert split.notes == ("there is no folder but 'train'; its classes are split",)


def test_own_caches_and_runs_are_passed_over(tmp_path: Path) -> None:
    fill(tmp_path, "cat", "dog")
    for name in ("cache/RN50-openai/x.h5", "runs/RN50-openai/x/m/shots_1/seed_1/metrics.json"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"")
    assert load_dataset(str(tmp_path), rename="x").classnames == ("cat", "dog")
    assert load_dataset(str(tmp_path), rename="x").notes == ()
    fill(tmp_path, "runs")  # now the folder has images of its own, next to what this program wrote
    assert load_dataset(str(tmp_path), rename="x").classnames == ("cat", "dog")


def test_class_names_in_two_forms_of_unicode_or_case_are_matched(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "été") for form in ("NFC", "NFD"))
    fill(tmp_path / "pets" / "train", composed, "Dog")
    fill(tmp_path / "pets" / "test", decomposed, "dog")
    dataset = load_dataset(str(tmp_path / "pets"))
    assert (dataset.classnames, sizes(dataset)) == (("Dog", composed), (10, 0, 10))
    assert "class folders 'Dog' and 'dog' in test are taken as one class, 'Dog'" in dataset.notes
    assert len(dataset.notes) == 2
    fill(tmp_path / "pets" / "train", "dog")
    both = load_dataset(str(tmp_path / "pets"))
    assert both.classnames == ("Dog", "dog", composed)
    fill(tmp_path / "alone", composed, decomposed, "Ox", "ox")
    alone = load_dataset(str(tmp_path / "alone"))
    assert alone.classnames == ("Ox", decomposed, "ox")
    assert "classes 'Ox', 'ox' differ only in case" in alone.notes


def test_a_folder_that_cannot_be_read_is_called_unreadable(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = os.scandir

    def refuse(folder: str):
        if str(folder).endswith("dog"):
            raise PermissionError(13, "Permission denied", folder)
        return listing(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DatasetError, match=r"could not read the folder .*dog \(Permission denied\); check its perm"):
        load_dataset(str(photos))


def test_no_message_advises_to_delete(photos: Path) -> None:
    (photos / "zebra").mkdir()
    with pytest.raises(DatasetError, match="no image in 'zebra'; add images, or move the folder elsewhere") as error:
        load_dataset(str(photos))
    assert "remove" not in str(error.value)
    assert "delete" not in str(error.value)


def test_links_in_a_ring_end(tmp_path: Path) -> None:
    fill(tmp_path / "pets", "cat", "dog")
    (tmp_path / "pets" / "cat" / "x").symlink_to(tmp_path / "pets" / "dog")
    (tmp_path / "pets" / "dog" / "y").symlink_to(tmp_path / "pets" / "cat")
    assert sum(sizes(load_dataset(str(tmp_path / "pets")))) == 20


@pytest.mark.skipif(not READS_AVIF, reason="needs Pillow 11.3")
def test_avif_is_read(tmp_path: Path) -> None:
    fill(tmp_path / "pets", "cat", "dog")
    Image.new("RGB", (9, 7), "red").save(tmp_path / "pets" / "cat" / "9.avif")
    assert sum(sizes(load_dataset(str(tmp_path / "pets")))) == 11
    assert ImageFolder(tmp_path / "pets").read("cat/9.avif").size == (9, 7)


@pytest.mark.skipif(not READS_HEIC, reason="needs the extra heic")
def test_heic_is_read(tmp_path: Path) -> None:
    import pillow_heif

    image = Image.new("RGB", (64, 48), "red")
    pillow_heif.from_pillow(image).save(tmp_path / "a.heic")
    assert ImageFolder(tmp_path).read("a.heic").size == (64, 48)


def named(draw: Random, numbered: bool, count: int) -> list[str]:
    if numbered:
        return [f"dog/IMG_{number:04}.jpg" for number in sorted(draw.sample(range(count, 3 * count), count))]
    return [f"dog/{draw.getrandbits(64):016x}.jpg" for _ in range(count)]


@pytest.mark.parametrize("numbered", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_an_image_in_test_stays_there_when_others_come_or_go(numbered: bool, seed: int) -> None:
    draw = Random(seed)
    paths = named(draw, numbered, 60)
    before = split_class(paths, "dog", 0)
    assert not before.moved
    for step in range(40):
        paths = [path for path in paths if draw.random() > 0.02] + [f"dog/new {step} {draw.random()}.png"]
        after = split_class(paths, "dog", 0)
        assert set(before.test) & set(paths) <= set(after.test)
        assert set(before.train) & set(paths) <= set(after.train)


@pytest.mark.parametrize("numbered", [True, False])
@pytest.mark.parametrize("count", [4, 5, 8, 10, 20, 100])
def test_shares_are_near_60_20_20(numbered: bool, count: int) -> None:
    draw = Random(count)
    splits = [split_class(named(draw, numbered, count), f"class {number}", 0) for number in range(200)]
    assert min(len(split.train) for split in splits) >= 1
    assert min(len(split.test) for split in splits) >= 1
    shares = [sum(len(getattr(split, part)) for split in splits) / 200 / count for part in ("train", "val", "test")]
    assert shares == pytest.approx([0.6, 0.2, 0.2], abs=0.03 if count >= 10 else 0.18)


def test_the_suffix_and_the_form_of_unicode_do_not_count() -> None:
    names = [f"été {number}" for number in range(50)]
    one = split_class([f"c/{name}.jpg" for name in names], "été", 0)
    other = split_class(
        [f"c/{unicodedata.normalize('NFD', name)}.png" for name in names], unicodedata.normalize("NFD", "été"), 0
    )
    assert [Path(path).stem for path in one.test] == [unicodedata.normalize("NFC", Path(p).stem) for p in other.test]


def test_a_small_class_borrows_with_a_note(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for number in range(3):
            save_image(tmp_path / "pets" / name / f"{name * number}x.png", number)
    dataset = load_dataset(str(tmp_path / "pets"))
    assert (len(dataset.classnames), sum(sizes(dataset))) == (2, 6)
    assert "too few images for an even split by file name" in dataset.notes[0]
