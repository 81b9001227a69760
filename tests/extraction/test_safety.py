"""Nothing is lost by kills, full disks, read-only folders, or decoders that die."""

import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.datasets import Dataset, load_dataset
from taskres_cache.datasets.images import ImageFolder
from taskres_cache.encoders.backbone import Backbone
from taskres_cache.errors import (
    DatasetError,
    DecodingError,
    OptionError,
    StorageError,
)
from taskres_cache.extraction.extract import LIBRARIES, ExtractOptions, extract
from tests.conftest import save_image
from tests.extraction.children import forked, in_a_child

OPTIONS = ExtractOptions(shots=(1, 2), seeds=(1,), views=1)
PATIENCE = 30.0


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskres_cache.extraction.extract.BLOCK_ROWS", 5)


def rows_of(path: Path) -> dict[tuple[object, ...], bytes]:
    """Return every feature of a cache by file and view, after checking every checksum."""
    cache = FeatureCache(path)
    cache.verify()
    contents, files = cache.contents(), cache.files()
    rows = {file: row.tobytes() for file, row in zip(files, contents.image_features[:], strict=True)}
    of_views = zip(cache.augmented_rows.tolist(), contents.augmented[:], strict=True)
    return rows | {(*files[row], view): one.tobytes() for row, several in of_views for view, one in enumerate(several)}


def test_kill_9_at_any_moment_loses_no_finished_block(dataset: Dataset, glyph_clip: Backbone, path: Path) -> None:
    whole = path.with_name("whole.h5")
    extract(dataset, glyph_clip, OPTIONS, whole)
    started = time.monotonic()
    in_a_child(lambda: extract(dataset, glyph_clip, OPTIONS, path.with_name("timed.h5"))).join()
    lasted = time.monotonic() - started

    parts = path.with_name("photos.h5.parts")
    moments, kills, finished = Random(0), 0, set()
    deadline = time.monotonic() + 4 * PATIENCE
    while kills < 20 and time.monotonic() < deadline:
        child = in_a_child(lambda: extract(dataset, glyph_clip, OPTIONS, path))
        child.join(moments.uniform(0, lasted))
        kills += child.exitcode is None
        child.kill()
        child.join()
        blocks = set(parts.glob("image-*.npz"))
        assert path.exists() or finished <= blocks, "a finished block is gone"
        finished = blocks
        if path.exists():
            assert rows_of(path) == rows_of(whole)
            path.unlink()
            shutil.rmtree(parts, ignore_errors=True)  # a killed child may have discarded only some of its blocks
            finished = set()
    assert kills >= 20
    extract(dataset, glyph_clip, OPTIONS, path)
    assert rows_of(path) == rows_of(whole)
    assert sorted(file.name for file in path.parent.iterdir()) == ["photos.h5", "timed.h5", "whole.h5"]


@pytest.mark.parametrize("room", [4500, 20_000])
def test_a_full_disk_leaves_the_cache_unchanged(dataset: Dataset, glyph_clip: Backbone, path: Path, room: int) -> None:
    """A limit on file sizes replaces the full disk: the same calls fail with an OSError."""
    extract(dataset, glyph_clip, OPTIONS, path)
    before = path.read_bytes()
    more = replace(OPTIONS, shots=(1, 2, 4), views=9)
    messages = forked.Queue()

    def in_little_room() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        try:
            extract(dataset, glyph_clip, more, path)
        except StorageError as error:
            messages.put(str(error))

    child = in_a_child(in_little_room)
    message = messages.get(timeout=PATIENCE)
    child.join()
    assert child.exitcode == 0
    assert re.search(
        r"photos\.h5.* cannot be written \(File too large\); choose another folder, or free disk space", message
    )
    assert path.read_bytes() == before
    done = extract(dataset, glyph_clip, more, path)
    if room == 20_000:  # enough for the blocks but not for the cache: no work is lost
        assert (done.encoded, done.views_encoded) == (0, 0)
    assert FeatureCache(path).views == 9


def test_a_read_only_folder(
    dataset: Dataset, glyph_clip: Backbone, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The user `nobody` may have no access to the folder of this checkout and its packages.
    monkeypatch.setattr("taskres_cache.extraction.extract.version", {name: version(name) for name in LIBRARIES}.get)
    extract(dataset, glyph_clip, OPTIONS, path)
    before = path.read_bytes()
    messages = forked.Queue()

    def as_nobody() -> None:
        if os.geteuid() == 0:  # root ignores permissions
            os.setuid(65534)
        messages.put(extract(dataset, glyph_clip, OPTIONS, path).changed)
        for folder in (path, path.with_name("new.h5")):
            try:
                extract(dataset, glyph_clip, replace(OPTIONS, shots=(4,)), folder)
            except StorageError as error:
                messages.put(str(error))

    for folder in path.parents[: len(path.parents) - 2]:
        folder.chmod(folder.stat().st_mode | 0o055)
    path.parent.chmod(0o555)
    try:
        child = in_a_child(as_nobody)
        assert messages.get(timeout=PATIENCE) is False  # nothing is missing: the cache can be used
        assert "photos.h5.parts cannot be created (Permission denied); choose another --cache-dir" in messages.get(
            timeout=5
        )
        assert "new.h5 cannot be written (Permission denied); choose another --cache-dir" in messages.get(timeout=5)
        child.join()
    finally:
        path.parent.chmod(0o755)
    assert path.read_bytes() == before


class Deadly(ImageFolder):
    """A folder with an image that kills the process reading it."""

    def read(self, path: str) -> Image.Image:
        if "poison" in path and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(path)


def test_a_decoding_process_that_dies_is_reported_and_nothing_hangs(
    dataset: Dataset, glyph_clip: Backbone, path: Path, photos: Path
) -> None:
    item = dataset.test[-1]
    (photos / item.path).rename(photos / Path(item.path).with_name("poison.png"))
    poisoned = str(Path(item.path).with_name("poison.png"))
    deadly = replace(dataset, source=Deadly(photos), test=(*dataset.test[:-1], item._replace(path=poisoned)))
    with pytest.raises(DecodingError, match=r"a decoding process died.*poison\.png.*fewer --workers"):
        extract(deadly, glyph_clip, replace(OPTIONS, workers=2, batch_size=2), path)
    done = extract(deadly, glyph_clip, replace(OPTIONS, workers=0), path)
    assert 0 < done.encoded < done.images


def test_a_damaged_block_is_encoded_again(dataset: Dataset, glyph_clip: Backbone, path: Path) -> None:
    whole = path.with_name("whole.h5")
    extract(dataset, glyph_clip, OPTIONS, whole)
    with pytest.raises(KeyboardInterrupt):
        extract(dataset, glyph_clip, OPTIONS, path, StopsAt(15))
    blocks = sorted(path.with_name("photos.h5.parts").glob("image-*.npz"))
    lost = sum(len(np.load(block)["keys"]) for block in blocks[:2])
    blocks[0].write_bytes(blocks[0].read_bytes()[:-300])
    damaged = bytearray(blocks[1].read_bytes())
    damaged[len(damaged) // 2] ^= 4
    blocks[1].write_bytes(damaged)
    kept = sum(len(np.load(block)["keys"]) for block in blocks[2:])
    done = extract(dataset, glyph_clip, OPTIONS, path)
    assert lost > 0
    assert done.encoded + done.views_encoded == len(rows_of(whole)) - kept
    assert rows_of(path) == rows_of(whole)


class StopsAt:
    """A progress that raises KeyboardInterrupt after `count` images."""

    def __init__(self, count: int) -> None:
        self.left = count

    def begin(self, what: str, total: int, done: int) -> None:
        pass

    def advance(self, count: int) -> None:
        self.left -= count
        if self.left <= 0:
            raise KeyboardInterrupt


def test_an_image_that_changes_during_extraction_is_encoded_by_the_next_run(
    dataset: Dataset, glyph_clip: Backbone, path: Path, photos: Path
) -> None:
    """Its feature is stored under the stamp from before the change, so the next run sees a changed file."""
    changed = photos / dataset.test[-1].path

    class ChangesImage(StopsAt):
        def advance(self, count: int) -> None:
            save_image(changed, 4321)
            os.utime(changed, (5, 5))

    extract(dataset, glyph_clip, OPTIONS, path, ChangesImage(1))
    assert extract(dataset, glyph_clip, OPTIONS, path).encoded == 1
    assert extract(dataset, glyph_clip, OPTIONS, path).encoded == 0


@pytest.mark.parametrize("where", ["transfer", "convolution"])
def test_a_device_with_little_memory_uses_smaller_batches(
    where: str, dataset: Dataset, glyph_clip: Backbone, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskres_cache.extraction.extract.BLOCK_ROWS", 256)
    seen: list[int] = []

    class Small(Backbone):
        room = 3

        def on_device(self, pixels: np.ndarray) -> torch.Tensor:
            seen.append(len(pixels))
            if where == "transfer" and len(pixels) > self.room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().on_device(pixels)

        def encode_images(self, pixels: torch.Tensor) -> np.ndarray:
            if where == "convolution" and len(pixels) > self.room:
                raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
            return super().encode_images(pixels)

    small = Small(**vars(glyph_clip))
    done = extract(dataset, small, replace(OPTIONS, views=0), path)
    assert max(seen) > 3
    extract(dataset, glyph_clip, replace(OPTIONS, views=0), path.with_name("whole.h5"))
    ours, whole = (FeatureCache(one).contents().image_features for one in (path, path.with_name("whole.h5")))
    assert np.allclose(ours, whole, rtol=1e-4, atol=1e-5)
    assert done.images == len(ours)
    Small.room = 0
    with pytest.raises(OptionError, match="too little memory to encode one image with glyph-clip"):
        extract(dataset, small, replace(OPTIONS, views=0), path.with_name("none.h5"))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
@pytest.mark.parametrize("place", ["file", "class", "parent"])
def test_names_that_are_not_utf8_are_refused_before_anything_is_encoded(
    place: str, photos: Path, glyph_clip: Backbone, tmp_path: Path
) -> None:
    name = os.fsdecode(b"caf\xe9")
    folder = photos
    if place == "file":
        save_image(photos / "dog" / f"{name}.png", 77)
    elif place == "class":
        (photos / "dog").rename(photos / name)
    else:
        (tmp_path / name).mkdir()
        folder = photos.rename(tmp_path / name / "photos")
    with pytest.raises(DatasetError, match=r"caf\\udce9.*' is not UTF-8"):
        extract(load_dataset(str(folder), Path()), glyph_clip, ExtractOptions(), tmp_path / "out" / "photos.h5")
    assert not (tmp_path / "out").exists()
