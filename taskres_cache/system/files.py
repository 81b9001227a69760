"""Files that appear whole or not at all: write beside the target, fsync, rename."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from taskres_cache.errors import StorageError


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what was written there takes the place of `path` at the end.

    An error, or a killed process, leaves whatever `path` was before. Raises StorageError when the folder cannot be
    made or written.
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
            f"{path} cannot be written ({error.strerror or error}); choose another folder or make room"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def discard_leftovers(path: Path) -> None:
    """Remove what killed processes left beside `path` while they were writing it; nobody must be writing it now."""
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
