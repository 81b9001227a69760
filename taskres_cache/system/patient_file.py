"""A file handle for HDF5 that survives a full disk."""

from collections.abc import Callable
from typing import BinaryIO


class PatientFile:
    """A file handle for HDF5 whose writes never fail; the first error is kept in `failure`.

    When a write to a full disk fails inside HDF5, HDF5 is left with a file that it can neither close nor forget.

    Parameters
    ----------
    stream : BinaryIO
        The open file.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None
        self.read, self.readinto, self.seek, self.tell = stream.read, stream.readinto, stream.seek, stream.tell  # type: ignore[attr-defined]

    def write(self, content: bytes) -> int:
        """Write, or record the error."""
        return self._tried(lambda: self._stream.write(content), len(content))

    def truncate(self, size: int) -> int:
        """Set the file's size, or record the error."""
        return self._tried(lambda: self._stream.truncate(size), size)

    def flush(self) -> None:
        """Flush, or record the error."""
        self._tried(lambda: self._stream.flush() or 0, 0)

    def _tried(self, action: Callable[[], int], otherwise: int) -> int:
        if self.failure is None:
            try:
                return action()
            except OSError as error:
                self.failure = error
        return otherwise
