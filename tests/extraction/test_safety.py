"""Nothing is lost by kills, full disks, read-only folders, two processes at once, or decoders that die."""

import errno
import fcntl
import multiprocessing
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from multiprocessing.context import ForkProcess
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
    BusyError,
    DatasetError,
    DecodingError,
    OptionError,
    StorageError,
    UnreadableImagesError,
)
from taskres_cache.extraction.extract import LIBRARIES, ExtractOptions, extract
from taskres_cache.extraction.lock import exclusive_lock
from tests.conftest import save_image

OPTIONS = ExtractOptions(shots=(1, 2), seeds=(1,), views=1)
PATIENCE = 30.0

forked = multiprocessing.get_context("fork")  # a forked child has torch and the model loaded: it starts in milliseconds


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskres_cache.extraction.extract.BLOCK_ROWS", 5)


def in_a_child(work: Callable[[], object]) -> ForkProcess:
    """Start `work` in a forked process without output."""

    def run() -> None:
        torch.set_num_threads(1)  # OpenMP threads do not survive a fork
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        work()

    child = forked.Process(target=run)
    child.start()
    return child


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
            finished = set()
    assert kills >= 20
    extract(dataset, glyph_clip, OPTIONS, path)
    assert rows_of(path) == rows_of(whole)
    assert sorted(file.name for file in path.parent.iterdir()) == ["photos.h5", "timed.h5", "whole.h5"]


def test_the_second_is_told_who_holds_a_cache(dataset: Dataset, glyph_clip: Backbone, path: Path) -> None:
    def slowly() -> None:
        with exclusive_lock(path):
            time.sleep(PATIENCE)

    holder = in_a_child(slowly)
    wait_until(lambda: lock_of(path).exists() and str(holder.pid) in lock_of(path).read_text())
    with pytest.raises(
        BusyError, match=f"photos.h5 is being made by process {holder.pid} on .*, started 20.* UTC; wait"
    ):
        extract(dataset, glyph_clip, OPTIONS, path)
    assert lock_of(path).exists()
    holder.kill()
    holder.join()
    done = extract(dataset, glyph_clip, OPTIONS, path)
    assert done.notes[0].startswith(f"process {holder.pid} on ")
    assert "ended before its work was done" in done.notes[0]
    assert not lock_of(path).exists()
    assert not any("ended before" in note for note in extract(dataset, glyph_clip, OPTIONS, path).notes)


def test_an_error_is_no_death(dataset: Dataset, glyph_clip: Backbone, path: Path, photos: Path) -> None:
    broken = photos / dataset.test[0].path
    broken.write_text("no image")
    with pytest.raises(UnreadableImagesError):
        extract(dataset, glyph_clip, OPTIONS, path)
    assert not lock_of(path).exists()
    save_image(broken, 1)
    assert not any("ended before" in note for note in extract(dataset, glyph_clip, OPTIONS, path).notes)


def test_only_one_of_many_gets_hold_of_a_cache(path: Path, tmp_path: Path) -> None:
    """Ten processes grab the same cache fifty times each; whoever has it is alone with it."""
    overlaps = tmp_path / "overlaps"
    overlaps.mkdir()

    def grab(name: str) -> None:
        for _ in range(50):
            try:
                with exclusive_lock(path):
                    mine = tmp_path / "mine"
                    descriptor = os.open(mine, os.O_CREAT | os.O_EXCL)  # fails when another is in here as well
                    os.close(descriptor)
                    mine.unlink()
                    (overlaps / f"{name}.had").touch()
            except BusyError:
                pass
            except FileExistsError:
                (overlaps / f"{name}.overlap").touch()

    children = [in_a_child(lambda name=str(number): grab(name)) for number in range(10)]
    for child in children:
        child.join()
    assert list(overlaps.glob("*.overlap")) == []
    assert list(overlaps.glob("*.had"))
    assert [child.exitcode for child in children] == [0] * 10


def test_a_lock_on_a_removed_file_is_taken_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening the file and locking it, its holder finishes and removes it."""
    flock, locked = fcntl.flock, []

    def after_its_holder(descriptor: int, operation: int) -> None:
        if operation & fcntl.LOCK_EX:
            locked.append(descriptor)
            if len(locked) == 1:
                lock_of(path).unlink()
        flock(descriptor, operation)

    monkeypatch.setattr("fcntl.flock", after_its_holder)
    with exclusive_lock(path):
        assert lock_of(path).exists()
        assert len(locked) == 2
    assert not lock_of(path).exists()


def test_a_lock_file_that_cannot_be_removed_while_open_is_removed_after(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows: an open file cannot be removed."""
    unlink = Path.unlink

    def not_while_open(file: Path, missing_ok: bool = False) -> None:
        if any(os.path.samestat(file.stat(), one.stat()) for one in Path("/proc/self/fd").iterdir() if one.exists()):
            raise PermissionError(errno.EACCES, "another process has it open")
        unlink(file, missing_ok)

    monkeypatch.setattr(Path, "unlink", not_while_open)
    for _ in range(2):
        with exclusive_lock(path) as notes:
            assert notes == ()
            assert lock_of(path).exists()
        assert not lock_of(path).exists()


def test_a_forked_process_does_not_keep_the_lock_of_a_crashed_parent(path: Path, tmp_path: Path) -> None:
    """As decoding processes do: they are forked while the lock is held, and outlive a killed parent for a moment."""
    orphan = tmp_path / "orphan"

    def lock_and_fork() -> None:
        with exclusive_lock(path):
            if os.fork() == 0:
                orphan.write_text(str(os.getpid()))
            time.sleep(PATIENCE)

    holder = in_a_child(lock_and_fork)
    wait_until(lambda: orphan.exists() and orphan.read_text() != "")
    with pytest.raises(BusyError), exclusive_lock(path):
        pass
    holder.kill()
    holder.join()
    try:
        os.kill(int(orphan.read_text()), 0)  # it is still running
        with exclusive_lock(path) as notes:
            assert notes[0].startswith(f"process {holder.pid} on ")
    finally:
        os.kill(int(orphan.read_text()), signal.SIGKILL)


def lock_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_used_unlocked_with_a_note(
    dataset: Dataset, glyph_clip: Backbone, path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", unsupported)
    with exclusive_lock(path) as notes, exclusive_lock(path) as second:
        assert notes == second
        assert notes[0].endswith("on a file system without locks: run one extraction of this cache at a time")
    assert extract(dataset, glyph_clip, OPTIONS, path).notes[0] == notes[0]
    assert [file.name for file in path.parent.iterdir()] == ["photos.h5"]


def test_a_lock_that_fails_for_another_reason_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("fcntl.flock", fails)
    with (
        pytest.raises(StorageError, match=r"photos\.h5 cannot be written \(Input/output error\)"),
        exclusive_lock(path),
    ):
        pass


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


def test_a_device_with_little_memory_uses_smaller_batches(
    dataset: Dataset, glyph_clip: Backbone, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskres_cache.extraction.extract.BLOCK_ROWS", 256)
    seen: list[int] = []

    class Small(Backbone):
        room = 3

        def encode_images(self, pixels: torch.Tensor) -> np.ndarray:
            seen.append(len(pixels))
            if len(pixels) > self.room:
                raise torch.OutOfMemoryError("CUDA out of memory")
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
