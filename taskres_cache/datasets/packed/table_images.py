"""Images in the rows of tables."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from itertools import accumulate
from pathlib import Path

from PIL import Image

from taskres_cache.datasets.images import ABSENT, ON_WHITE, Orientation, decode
from taskres_cache.datasets.packed.members import LARGEST_IMAGE
from taskres_cache.datasets.packed.tables import DAMAGE, TableFile


@dataclass(frozen=True)
class TableImages:
    """Images in the rows of tables; the path of an image is `<table>/<row>`.

    Parameters
    ----------
    location : Path
        What the user typed.
    tables : dict of str to sequence of TableFile
        Table -> its files, in row order.
    column : str
        Column of the images: bytes, or a struct of `bytes` and `path`.
    reference : str
        Text with which the images are found again.
    orientation : {"exif", "stored", "exif-on-white"}
        How pixels are read, see `decode`.
    folders : tuple of Path
        Folders below which a row without bytes may name an image file.
    """

    location: Path
    tables: Mapping[str, Sequence[TableFile]] = field(repr=False, compare=False)
    column: str
    reference: str
    orientation: Orientation = ON_WHITE
    folders: tuple[Path, ...] = ()

    def stamp(self, path: str) -> str:
        """Return size of the image, if known, size and modification time of the file, and row; ABSENT if missing."""
        try:
            table, row = self._place(path)
            status = table.path.stat()
            size = table.size(self.column, row)
        except (*DAMAGE, LookupError):
            return ABSENT
        return f"{size}-{status.st_size}-{status.st_mtime_ns}-{row}"

    def read(self, path: str) -> Image.Image:
        """Return the image, decoded and in RGB."""
        return decode(BytesIO(self.content(path)), self.orientation)

    def content(self, path: str) -> bytes:
        """Return the bytes of an image.

        Raises
        ------
        OSError
            The row has no image, the table cannot be read, or the image is a file outside of the folders.
        """
        try:
            table, row = self._place(path)
            cell = table.cell(self.column, row)
        except (*DAMAGE, LookupError) as error:
            raise OSError(f"could not read the row ({' '.join(str(error).split())})") from error
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if content is None and isinstance(cell, dict) and cell.get("path"):
            content = self._file(str(cell["path"]))
        if not isinstance(content, bytes):
            raise OSError("the row has no image")
        if len(content) > LARGEST_IMAGE:
            raise OSError(f"the image has {len(content) >> 20} MiB, expected at most {LARGEST_IMAGE >> 20}")
        return content

    def _place(self, path: str) -> tuple[TableFile, int]:
        """Return the file of an image and the row in it."""
        name, _, number = path.rpartition("/")
        files, row = self.tables[name], int(number)
        starts = list(accumulate((file.rows for file in files), initial=0))
        if not 0 <= row < starts[-1]:
            raise IndexError(row)
        position = bisect_right(starts, row) - 1
        return files[position], row - starts[position]

    def _file(self, named: str) -> bytes:
        """Return the content of an image file that a row names."""
        file = Path(named).resolve()
        if not any(file.is_relative_to(folder.resolve()) for folder in self.folders) or not file.is_file():
            raise OSError("the row has no image, only the path of a file elsewhere; save the data set with its images")
        if file.stat().st_size > LARGEST_IMAGE:
            raise OSError(f"the image has more than {LARGEST_IMAGE >> 20} MiB")
        return file.read_bytes()
