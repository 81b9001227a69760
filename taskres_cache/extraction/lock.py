"""One process at a time makes a cache; a second one fails at once and names the first.

The operating system keeps the lock (through filelock: flock on Unix, LockFileEx on Windows), so a crashed process
releases its lock. The lock file's text says who holds it; text in an unlocked file was left by a crash.
"""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import lock_descriptor, unlock_descriptor

from taskres_cache.errors import BusyError, StorageError
from taskres_cache.system.files import NO_LINKS, NO_WAIT, is_at, kind_of

UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
MAX_HOLDER_BYTES = 1000
CLOSED = -1
TEXT_START = 1  # Windows locks byte 0, which no other process can read then


@contextmanager
def exclusive_lock(target: Path) -> Iterator[tuple[str, ...]]:
    """Lock `target` while it is being made; yields notes for the user.

    A finished cache in a read-only folder is not locked: it can be used and cannot change.

    On a file system without locks the work goes on unlocked, with a note. filelock's `SoftFileLock` would refuse
    instead: it takes the existence of a file for a lock, which a process that crashed on another computer never
    releases. Two unlocked extractions lose time rather than results: blocks and caches are renamed into place.

    Parameters
    ----------
    target : Path
        The cache. The lock file is next to it: `.NAME.lock`, removed at the end.

    Raises
    ------
    BusyError
        Another process holds the lock.
    StorageError
        The folder cannot be created or written.
    """
    if target.exists() and not os.access(target.parent, os.W_OK):
        yield ()
        return
    path = target.with_name(f".{target.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _acquired(path, target)
    except OSError as error:
        raise StorageError(
            f"{target} cannot be written ({error.strerror or error}); choose another --cache-dir or make room"
        ) from error
    if lock is None:
        yield (f"{target.parent} is on a file system without locks: run one extraction of this cache at a time",)
        return
    try:
        yield lock.notes
    finally:
        lock.release()


class _Lock:
    """A locked file with our name in it; `notes` names the last holder if that one crashed.

    A forked process inherits the descriptor and with it the lock, so it closes its copy at once: decoding processes
    must not keep the lock of a parent that was killed.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._close)
        crashed = _holder(descriptor)
        self.notes = (f"{crashed}, ended before its work was done; its finished blocks were reused",) if crashed else ()
        try:
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, b" " * TEXT_START + _this_process().encode())
        except OSError:
            self.release()
            raise

    def release(self) -> None:
        """Remove the file and unlock it; do nothing in a forked process."""
        if self._descriptor == CLOSED:
            return
        with suppress(OSError):
            os.ftruncate(self._descriptor, 0)
        # Unix: removed while locked, so that whoever opened it meanwhile sees that it is gone. Windows: an open file
        # cannot be removed; after closing, it can unless somebody else has opened it.
        removed = _removed(self._path)
        with suppress(OSError):
            unlock_descriptor(self._descriptor)
        self._close()
        if not removed:
            _removed(self._path)

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, CLOSED
        if descriptor != CLOSED:
            os.close(descriptor)


def _acquired(path: Path, target: Path) -> _Lock | None:
    """Return the lock, or None on a file system without locks."""
    while True:
        descriptor = _opened(path, target)
        try:
            locked = lock_descriptor(descriptor, blocking=False)
        except OSError as error:
            unused = os.fstat(descriptor).st_size == 0  # another computer may well be able to lock it
            os.close(descriptor)
            if error.errno not in UNSUPPORTED:
                raise
            if unused:
                _removed(path)
            return None
        if locked and is_at(descriptor, path):
            return _Lock(path, descriptor)
        holder = _holder(descriptor) or "another process"
        os.close(descriptor)
        if not locked:
            raise BusyError(f"{target} is being made by {holder}; wait for it, or stop it")
        # locked, but its holder has just finished and removed it: a lock on a removed file protects nothing


def _removed(path: Path) -> bool:
    """Remove a file; return True if it is gone."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def _opened(path: Path, target: Path) -> int:
    """Return the open lock file; raises StorageError if a link or a special file was put in its place."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | NO_LINKS | NO_WAIT, 0o666)
    except OSError:
        if os.path.lexists(path) and (kind := kind_of(path.lstat().st_mode)):
            raise _planted(path, target, kind) from None
        raise
    status = os.fstat(descriptor)
    kind = kind_of(status.st_mode) or ("a hard link" if status.st_nlink > 1 else "")
    if kind:
        os.close(descriptor)
        raise _planted(path, target, kind)
    return descriptor


def _planted(path: Path, target: Path, kind: str) -> StorageError:
    return StorageError(f"{target} cannot be written: its lock file {path} is {kind}; remove it")


def _holder(descriptor: int) -> str:
    """Return the text in a lock file; empty if it was released."""
    os.lseek(descriptor, TEXT_START, os.SEEK_SET)
    return os.read(descriptor, MAX_HOLDER_BYTES).decode(errors="replace")


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}, started {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
