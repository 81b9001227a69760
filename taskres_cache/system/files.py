"""Atomic file writing: write next to the target, fsync, rename."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from taskres_cache.errors import StorageError


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; on success the file written there replaces `path`.

    After an error or in a killed process, `path` is unchanged.

    Raises
    ------
    StorageError
        The folder cannot be created, or the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _fsync(temporary)
        os.replace(temporary, path)
        _fsync(path.parent)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written ({error.strerror or error}); choose another folder, or free disk space"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def discard_leftovers(path: Path) -> None:
    """Remove temporary files of killed processes that were writing `path`; no process may be writing it now."""
    if path.parent.is_dir():
        for file in path.parent.iterdir():
            if file.name.startswith(f".{path.name}.") and file.suffix == ".tmp":
                with suppress(OSError):
                    file.unlink()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
