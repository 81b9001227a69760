"""Archives, shards and tables of images through `taskres extract`, killed in the middle and run again."""

import io
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.datasets import load_dataset
from taskres_cache.datasets.images import PackedSource
from taskres_cache.encoders.backbone import Backbone
from taskres_cache.extraction.extract import ExtractOptions, extract
from taskres_cache.reporting.thumbnails import thumbnail
from taskres_cache.runs.image_files import find_images
from tests.datasets.forms.packing import class_folders, contents_below, tar_of, zip_of
from tests.extraction.test_kill import ATTEMPTS, BLOCKS_MADE, folder, stopped
from tests.extraction.test_kill import extract as command

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
            contents = {}
            for file in files[start : start + 500]:
                contents |= {file.name: file.read_bytes(), f"{file.stem}.cls": file.parent.name.encode()}
            tar_of(place / f"{part}-{start // 500:03d}.tar", contents)
    return str(place / "t*-*.tar")


def as_parquet(folder: Path, place: Path) -> str:
    """Write each part as a Parquet file with row groups of 100 images, as `datasets` does."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for part in ("train", "test"):
        files = sorted((folder / part).rglob("*.png"), key=lambda file: int(file.stem))
        images = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
        table = pyarrow.table({"image": images, "label": [file.parent.name for file in files]})
        parquet.write_table(table, place / f"{part}.parquet", row_group_size=100)
    return str(place)


def as_saved(folder: Path, place: Path) -> str:
    """Save the images with `datasets` as `save_to_disk` does: memory-mapped Arrow files."""
    datasets = pytest.importorskip("datasets")
    parts = {}
    for part in ("train", "test"):
        files = sorted((folder / part).rglob("*.png"), key=lambda file: int(file.stem))
        images = [{"bytes": file.read_bytes(), "path": None} for file in files]
        table = datasets.Dataset.from_dict({"image": images, "label": [file.parent.name for file in files]})
        parts[part] = table.cast_column("image", datasets.Image())
    datasets.DatasetDict(parts).save_to_disk(str(place))
    return str(place)


@pytest.mark.parametrize("pack", [as_zip, as_compressed_tar, as_shards, as_parquet, as_saved])
def test_a_killed_extraction_resumes(folder: Path, tmp_path: Path, pack: Callable[[Path, Path], str]) -> None:
    place = tmp_path / "noise"
    place.mkdir()
    typed = pack(folder, place)
    cache_dir = tmp_path / "cache"
    parts = cache_dir / "glyph-clip-bundled" / "noise.h5.parts"
    typed_command = [*command(Path(typed), cache_dir), "--name", "noise"]
    for _ in range(ATTEMPTS):
        status, printed = stopped(Path(typed), cache_dir, signal.SIGKILL, "--name", "noise")
        if not parts.with_name("noise.h5").exists():
            break
        shutil.rmtree(parts.parent)
    assert status == -signal.SIGKILL
    assert "Traceback" not in printed
    kept = sum(len(np.load(block)["keys"]) for block in parts.glob(BLOCKS_MADE))
    assert 0 < kept < 1212

    again = subprocess.run(typed_command, capture_output=True, text=True, check=True)
    assert f"1212 images, {1212 - kept} newly encoded" in again.stderr
    whole = tmp_path / "whole"
    subprocess.run([*command(Path(typed), whole), "--name", "noise"], capture_output=True, check=True)
    resumed = FeatureCache(parts.with_name("noise.h5")).contents()
    expected = FeatureCache(whole / "glyph-clip-bundled" / "noise.h5").contents()
    assert resumed.paths == expected.paths
    assert np.array_equal(resumed.image_features, expected.image_features)
    unchanged = subprocess.run(typed_command, capture_output=True, text=True, check=True)
    assert "nothing was missing; the cache is unchanged" in unchanged.stderr


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.xz"])
def test_features_are_those_of_the_folder(tmp_path: Path, glyph_clip: Backbone, suffix: str) -> None:
    pets = class_folders(tmp_path / "pets")
    pack = zip_of if suffix == ".zip" else tar_of
    mode = {"mode": "w:xz"} if suffix == ".tar.xz" else {}
    archive = pack(tmp_path / f"pets{suffix}", contents_below(pets), **mode)
    folder_cache, archive_cache = (
        FeatureCache(extract(load_dataset(str(one)), glyph_clip, ONE_SHOT, tmp_path / f"{one.name}.h5").path)
        for one in (pets, archive)
    )
    assert archive_cache.contents().paths == folder_cache.contents().paths
    assert np.array_equal(archive_cache.contents().image_features, folder_cache.contents().image_features)
    assert archive_cache.provenance.images_folder == str(archive)


def test_thumbnails_come_from_the_archive(tmp_path: Path, glyph_clip: Backbone) -> None:
    archive = zip_of(tmp_path / "pets.zip", contents_below(class_folders(tmp_path / "pets")))
    cache = FeatureCache(extract(load_dataset(str(archive)), glyph_clip, ONE_SHOT, tmp_path / "pets.h5").path)
    source = find_images(cache.provenance, None, cache.path)
    assert isinstance(source, PackedSource)
    path, stamp = cache.files()[0]
    assert thumbnail(source, path, stamp) is not None
    assert thumbnail(source, path, "other") is None
    archive.unlink()
    assert find_images(cache.provenance, None, cache.path) is None


def test_copies_in_train_of_test_images_are_left_out(tmp_path: Path, glyph_clip: Backbone) -> None:
    contents = contents_of(tmp_path)
    archive = tar_of(tmp_path / "pets.tar", contents)
    with tarfile.open(archive, "a") as tar:
        copy = tarfile.TarInfo("train/cat/copy.png")  # with another modification time, and so another stamp
        copy.size = len(contents["test/cat/0.png"])
        tar.addfile(copy, io.BytesIO(contents["test/cat/0.png"]))
    dataset = load_dataset(str(archive))
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
