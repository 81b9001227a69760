"""One process at a time makes a cache: whoever comes second is told who is at it."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from taskres_cache.errors import BusyError, StorageError

TAKEN = (errno.EACCES, errno.EAGAIN)
UNABLE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # file systems without locks: better unguarded than not at all
LONGEST = 1000  # bytes that a holder may write about itself


@contextmanager
def held(target: Path) -> Iterator[str | None]:
    """Hold `target` while it is being made; yields who held it and died of it, or None.

    A target that is there in a folder that may only be read is held by nobody: it can be used, and not be made.

    The system keeps the lock and drops it when the process ends, whatever ends it, so that a dead holder keeps nobody
    out; what it wrote about itself tells that it was there. (A POSIX lock: decoding processes do not inherit it.)

    Raises
    ------
    BusyError : another process holds it.
    StorageError : its folder cannot be made or written.
    """
    path = target.with_name(f".{target.name}.lock")
    if target.exists() and not os.access(target.parent, os.W_OK):
        yield None
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(path, target)
        died = _holder(descriptor)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, _myself().encode(), 0)
    except OSError as error:
        raise StorageError(
            f"{target} cannot be written ({error.strerror or error}); choose another --cache-dir or make room"
        ) from error
    try:
        yield died
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _locked(path: Path, target: Path) -> int:
    """Return a descriptor of the file at `path`, locked."""
    import fcntl  # there is none on Windows, where the rest of the library has no need of it

    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in UNABLE:
                return descriptor
            holder = _holder(descriptor) or "another process"
            os.close(descriptor)
            if error.errno in TAKEN:
                raise BusyError(f"{target} is being made by {holder}; wait for it, or stop it") from None
            raise
        if _is_at(descriptor, path):
            return descriptor
        os.close(descriptor)  # its holder has just finished and removed it: a lock on it guards nothing


def _is_at(descriptor: int, path: Path) -> bool:
    """Return whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str | None:
    """Return what the last holder wrote about itself and did not take back."""
    return os.pread(descriptor, LONGEST, 0).decode(errors="replace") or None


def _myself() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}, begun {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
