"""Atomic file writing: write next to the target, fsync, rename. Nothing is written through a link.

The temporary file `.NAME.<16 random hex digits>.tmp` is created by its writer alone (O_EXCL, no links) and locked while
the writer lives. The next writer of the same target removes temporary files that nobody holds: their processes were
killed. On file systems without locks they stay.
"""

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from secrets import token_hex

from filelock import lock_descriptor

from taskres_cache.errors import StorageError

LONGEST_STEM = 200  # bytes of a target's name in that of its temporary file; names have 255 at most
NO_LINKS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # opening a FIFO waits for its other end
WINDOWS = os.name == "nt"  # where a lock keeps its own process from writing
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; on success the file written there replaces `path` and keeps its mode.

    After an error or in a killed process, `path` is unchanged.

    Raises
    ------
    StorageError
        The folder cannot be created, the file cannot be written, or `path` is a link, a device or another special file.
    """
    temporary, descriptor = None, -1
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = _mode_of(path)
        discard_leftovers(path)
        temporary, descriptor = locked_temporary(path, mode)
        yield temporary
        if not is_at(descriptor, temporary):
            raise StorageError(f"{path} cannot be written: another program replaced {temporary}; run the command again")
        if mode is not None:
            os.chmod(temporary, mode)
        os.fsync(descriptor)
        _mode_of(path)
        if WINDOWS:  # an open file cannot be renamed
            descriptor = _closed(descriptor)
        os.replace(temporary, path)
        _fsync(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()
        _closed(descriptor)


def refuse_unwritable(path: Path) -> None:
    """Check that a file can be written, before work that ends with writing it; nothing is created.

    Raises
    ------
    StorageError
        It is a link, a device or another special file, or its folder cannot be written or created.
    """
    try:
        _mode_of(path)
        above = next(folder for folder in path.absolute().parents if folder.exists())
    except OSError as error:
        raise _unwritable(path, error) from error
    if not above.is_dir() or not os.access(above, os.W_OK):
        reason = "is not a folder" if not above.is_dir() else "is not writable"
        raise StorageError(f"{path} cannot be written ({above} {reason}); choose another folder")


def refuse_special(path: Path) -> None:
    """Raise StorageError for a target that is a link, a device or another special file."""
    _mode_of(path)


def discard_leftovers(path: Path) -> None:
    """Remove temporary files of killed processes that were writing `path`; those of live ones are locked and stay."""
    pattern = re.compile(rf"\.{re.escape(_stem(path))}\.[0-9a-f]{{16}}\.tmp")
    with suppress(OSError):
        for name in os.listdir(path.parent):
            if pattern.fullmatch(name):
                _discard_abandoned(path.with_name(name))


def locked_temporary(path: Path, mode: int | None) -> tuple[Path, int]:
    """Return a new temporary file next to `path` and its descriptor, locked; private unless `mode` is None."""
    permissions = 0o666 if mode is None else 0o600
    while True:
        temporary = path.with_name(f".{_stem(path)}.{token_hex(8)}.tmp")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | NO_LINKS, permissions)
        _locked(descriptor)
        if is_at(descriptor, temporary):
            return temporary, descriptor
        os.close(descriptor)  # another process took it for a leftover before it was locked


def is_at(descriptor: int, path: Path) -> bool:
    """Return True if a path leads to an open file, not through a link."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def kind_of(mode: int) -> str:
    """Return what a special file is, such as "a FIFO", from its mode; empty for a regular file."""
    return "" if stat.S_ISREG(mode) else KINDS.get(stat.S_IFMT(mode), "a special file")


def _mode_of(path: Path) -> int | None:
    """Return the permissions of a file, or None if there is none; raises StorageError if it is not a regular file."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return None
    if kind := kind_of(mode):
        raise StorageError(f"{path} cannot be written: it is {kind}, not a file; choose another name")
    return stat.S_IMODE(mode)


def _stem(path: Path) -> str:
    """Return the target's name, or its digest if the name of a temporary file would become too long."""
    name = os.fsencode(path.name)
    return path.name if len(name) <= LONGEST_STEM else sha256(name).hexdigest()


def _discard_abandoned(file: Path) -> None:
    """Remove a temporary file if no process holds its lock."""
    with suppress(OSError):
        descriptor = os.open(file, os.O_RDWR | NO_LINKS | NO_WAIT)
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode) and _locked(descriptor) and is_at(descriptor, file):
                file.unlink()
        finally:
            os.close(descriptor)


def _locked(descriptor: int) -> bool:
    """Lock an open file and return True; False if another process holds it, or if files cannot be locked here."""
    if WINDOWS:
        return False
    try:
        return lock_descriptor(descriptor, blocking=False)
    except OSError:
        return False


def _closed(descriptor: int) -> int:
    """Close a file, and return what stands for none."""
    if descriptor != -1:
        os.close(descriptor)
    return -1


def _unwritable(path: Path, error: OSError) -> StorageError:
    remedy = (
        "choose a shorter name" if error.errno == errno.ENAMETOOLONG else "choose another folder, or free disk space"
    )
    return StorageError(f"{path} cannot be written ({error.strerror or error}); {remedy}")


def _fsync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
