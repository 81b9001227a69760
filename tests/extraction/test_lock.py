"""One process at a time makes a cache: who holds the lock, and what a crash leaves."""

import errno
import fcntl
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from taskres_cache.datasets import Dataset
from taskres_cache.encoders.backbone import Backbone
from taskres_cache.errors import BusyError, StorageError, UnreadableImagesError
from taskres_cache.extraction.extract import ExtractOptions, extract
from taskres_cache.extraction.lock import exclusive_lock
from tests.conftest import save_image
from tests.extraction.children import in_a_child

OPTIONS = ExtractOptions(shots=(1, 2), seeds=(1,), views=1)
PATIENCE = 30.0


def test_a_second_process_learns_who_holds_the_cache(dataset: Dataset, glyph_clip: Backbone, path: Path) -> None:
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


def test_a_failed_extraction_is_no_crash(dataset: Dataset, glyph_clip: Backbone, path: Path, photos: Path) -> None:
    broken = photos / dataset.test[0].path
    broken.write_text("no image")
    with pytest.raises(UnreadableImagesError):
        extract(dataset, glyph_clip, OPTIONS, path)
    assert not lock_of(path).exists()
    save_image(broken, 1)
    assert not any("ended before" in note for note in extract(dataset, glyph_clip, OPTIONS, path).notes)


def test_only_one_process_at_a_time_holds_the_lock(path: Path, tmp_path: Path) -> None:
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
