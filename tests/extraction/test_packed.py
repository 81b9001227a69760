"""Archives, shards and tables of images through `taskres extract`, killed in the middle and run again."""

from pathlib import Path

from taskres_cache.datasets import load_dataset
from taskres_cache.encoders.backbone import Backbone
from taskres_cache.extraction.extract import ExtractOptions, extract
from tests.datasets.forms.packing import class_folders, contents_below, tar_of, zip_of
from tests.extraction.test_kill import folder

ONE_SHOT = ExtractOptions(shots=(1,), seeds=(1,))
__all__ = ["folder"]  # a fixture


def as_zip(folder: Path, place: Path) -> str:
    return str(zip_of(place / "noise.zip", contents_below(folder)))


def as_compressed_tar(folder: Path, place: Path) -> str:
    return str(tar_of(place / "noise.tar.gz", contents_below(folder), "w:gz", compresslevel=1))


def as_shards(folder: Path, place: Path) -> str:
    """Pack each part as shards of 500 samples; the same images in the same parts, but in another order."""
    for part in ("train", "test"):
        files = sorted((folder / part).rglob("*.png"), key=lambda file: int(file.stem))
        for start in range(0, len(files), 500):
            contents = contents_of(tmp_path)
    contents["train/cat/copy.png"] = contents["test/cat/0.png"]
    dataset = load_dataset(str(tar_of(tmp_path / "pets.tar", contents)))
    notes = extract(dataset, glyph_clip, ONE_SHOT, tmp_path / "pets.h5").notes
    assert "1 train or val images are left out, as copies of images in test or val: train/cat/copy.png (of" in notes[0]


def contents_of(folder: Path) -> dict[str, bytes]:
    """Return images of two classes in train and test, all different."""
    train = contents_below(class_folders(folder / "train", 8, ("cat", "dog")))
    test = contents_below(class_folders(folder / "test", 8, ("x", "y", "cat", "dog")))  # other seeds
    return {f"train/{name}": one for name, one in train.items()} | {
        f"test/{name}": one for name, one in test.items() if name.startswith(("cat", "dog"))
    }


def test_an_image_that_is_damaged_in_the_archive_is_named_or_skipped(tmp_path: Path, glyph_clip: Backbone) -> None:
    contents = contents_of(tmp_path)
    archive = zip_of(tmp_path / "pets.zip", contents)
    content = archive.read_bytes()
    at = content.find(b"test/dog/0.png") + 200
    archive.write_bytes(content[:at] + bytes(20) + content[at + 20 :])
    options = ExtractOptions(shots=(1,), seeds=(1,), unreadable="skip")
    done = extract(load_dataset(str(archive)), glyph_clip, options, tmp_path / "pets.h5")
    assert any("test/dog/0.png" in note and "damaged in the archive" in note for note in done.notes)
    assert done.images == 16 + 2 - 1
