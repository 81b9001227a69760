"""A data set of rows in Python: a data frame, or a list of image or path, class and, if known, part.

Axes: H and W height and width.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL import Image

from taskres_cache.datasets.dataset import Dataset
from taskres_cache.datasets.forms.form import FormOptions
from taskres_cache.datasets.forms.lists.columns import Columns, find_columns
from taskres_cache.datasets.forms.lists.gathering import Gathering, Listed, is_missing, text_of
from taskres_cache.datasets.forms.lists.listed import Listing, dataset_of_listings
from taskres_cache.datasets.forms.lists.names import looks_like_image
from taskres_cache.datasets.forms.lists.tables import Record, Table, table_of_objects
from taskres_cache.datasets.images import ON_WHITE, Orientation, in_rgb
from taskres_cache.datasets.registry import dataset_name
from taskres_cache.errors import DatasetError

CHANNELS = (1, 2, 3, 4)  # grey, grey with alpha, RGB, RGB with alpha
EXPECTED = "a path, a PIL image or an array (H, W) or (H, W, 3) of uint8"
SHOWN_DIGITS = 24  # of a digest, in the name of an image


@dataclass(frozen=True)
class ImagesInMemory:
    """Images that are no files; their names are digests of their pixels.

    Parameters
    ----------
    images : mapping of str to PIL.Image.Image or ndarray
        The images by name.
    stamps : mapping of str to str
        Bytes of the pixels and their digest, by name.
    orientation : {"exif", "stored", "exif-on-white"}
        How pixels are read, see `decode`.
    location : Path
        What messages call the images.
    """

    images: Mapping[str, Any] = field(repr=False)
    stamps: Mapping[str, str] = field(repr=False)
    orientation: Orientation = ON_WHITE
    location: Path = Path("images in memory")

    def stamp(self, path: str) -> str:
        """Return size and digest of the pixels."""
        return self.stamps[path]

    def read(self, path: str) -> Image.Image:
        """Return the image in RGB."""
        return in_rgb(_as_image(self.images[path]), self.orientation)


def dataset_of(
    rows: Any,
    name: str,
    *,
    root: str | Path = ".",
    classnames: Sequence[str] | None = None,
    split_seed: int = 0,
    path_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
) -> Dataset:
    """Return the data set of a data frame or list: images or their paths, with classes.

    Parameters
    ----------
    rows : data frame, mapping of str to sequence, or iterable of tuple or mapping
        Tuples have an image, its class and, if known, its part (train, val or test). Images are paths, PIL images or
        uint8 arrays of shape (H, W), (H, W, 3) or (H, W, 4); either all are paths, or none.
    name : str
        Name of the data set in caches and runs.
    root : str or Path, optional
        The folder that contains all image files; paths are relative to it, or absolute and below it.
    classnames : sequence of str, optional
        The classes, if labels are positions in it.
    split_seed : int, optional
        Seed of the 60/20/20 split of images without a part.
    path_column, label_column, split_column : str, optional
        Columns of a data frame or keys of mappings. Found by their usual names; an empty `split_column` means that
        there is none.

    Returns
    -------
    Dataset
        For `extract`. Images in memory are named by digests of their pixels, so that they keep their place in the split
        when others come or go.

    Raises
    ------
    DatasetError
        A row has no image or class, an image is neither a file below `root` nor pixels, or classes are too few. The
        message names the row, counted from 0.

    Examples
    --------
    >>> from PIL import Image
    >>> from taskres_cache import dataset_of
    >>> rows = [(Image.new("L", (8, 8), shade), "dark" if shade < 100 else "light") for shade in range(0, 200, 10)]
    >>> dataset_of(rows, "shades")
    Dataset('shades': 12 train, 4 val, 4 test images, 2 classes)
    """
    table = _table_of(list(rows) if isinstance(rows, Iterator) else rows)
    options = FormOptions(dataset_name(name), split_seed, Path(root), path_column, label_column, split_column)
    columns = _columns_of(table, options)
    listed = _listed(table, columns, classnames)
    first = next((record.get(columns.path) for _, record in table.sample()), None)
    if _is_pixels(first):
        return _of_pixels(table.title, listed, options, columns.notes)
    listing = Listing(Path(table.title), _of_paths(listed), columns.notes)
    return dataset_of_listings([listing], options.name or "", options)


def _table_of(rows: Any) -> Table:
    """Return rows as a table; its columns are numbered if rows are tuples."""
    if hasattr(rows, "columns") or isinstance(rows, Mapping):
        names = list(rows.columns if hasattr(rows, "columns") else rows)
        return Table("data frame", tuple(map(str, names)), True, partial(_of_columns, rows, names))
    first: Any = next(iter(rows), ())
    if isinstance(first, Mapping):
        return table_of_objects("list", partial(_numbered, rows))
    columns = tuple(str(number) for number in range(1, _length(first, 0) + 1))
    return Table("list", columns, False, partial(_of_tuples, rows, columns))


def _columns_of(table: Table, options: FormOptions) -> Columns:
    """Return the columns of image, class and part; raises DatasetError that says what was found instead of images."""
    try:
        return find_columns(table, options, _is_image)
    except DatasetError as error:
        values = [value for _, record in table.sample() for value in record.values()]
        if any(map(_is_image, values)):
            raise
        found = ", ".join(dict.fromkeys(type(value).__name__ for value in values)) or "no row"
        raise DatasetError(f"{table.title}: no image, found {found}; expected {EXPECTED}, and a class") from error


def _of_columns(rows: Any, names: Sequence[Any]) -> Iterator[Record]:
    for number, values in enumerate(zip(*(rows[name] for name in names), strict=True)):
        yield f"row {number}", dict(zip(map(str, names), values, strict=True))


def _numbered(rows: Iterable[Mapping[str, object]]) -> Iterator[Record]:
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DatasetError(f"list, row {number}: {type(row).__name__}, expected a mapping as row 0; fix the row")
        yield f"row {number}", row


def _of_tuples(rows: Iterable[Sequence[object]], columns: Sequence[str]) -> Iterator[Record]:
    for number, row in enumerate(rows):
        if _length(row, number) != len(columns):
            raise DatasetError(f"list, row {number}: {len(row)} values, expected {len(columns)} as in row 0")
        yield f"row {number}", dict(zip(columns, row, strict=True))


def _length(row: object, number: int) -> int:
    """Return the number of values of a tuple; raises DatasetError for a row of another type."""
    if not isinstance(row, Sequence) or isinstance(row, str | bytes):
        found = type(row).__name__
        raise DatasetError(f"list, row {number}: {found}, expected a tuple of image, class and, if known, part")
    return len(row)


def _listed(table: Table, columns: Columns, classnames: Sequence[str] | None) -> Iterator[tuple[object, Listed]]:
    """Yield each image and its row, with an empty path."""
    for place, record in table.records():
        where = f"{table.title}, {place}"
        label = record.get(columns.label)
        split = None if columns.split is None else record.get(columns.split)
        named = label if classnames is None else _named(label, classnames, where)
        yield record.get(columns.path), Listed("", named, split, where)


def _named(label: object, classnames: Sequence[str], where: str) -> str:
    """Return the class at a position."""
    text = text_of(label, "label", where)
    if not (text.isascii() and text.isdigit() and int(text) < len(classnames)):
        raise DatasetError(f"{where}: label {text!r}, expected 0 to {len(classnames) - 1}; fix the row or classnames")
    return classnames[int(text)]


def _of_paths(listed: Iterable[tuple[object, Listed]]) -> Iterator[Listed]:
    for image, row in listed:
        if isinstance(image, str | os.PathLike):
            yield row._replace(path=os.fsdecode(image))
        elif _is_pixels(image) or not is_missing(image):
            raise DatasetError(f"{row.where}: {_described(image)}, but the first image is a path; pass one kind")
        else:
            yield row


def _of_pixels(
    title: str, listed: Iterable[tuple[object, Listed]], options: FormOptions, notes: Sequence[str]
) -> Dataset:
    """Return the data set of images in memory; equal images have a number after the digest."""
    images: dict[str, object] = {}
    stamps: dict[str, str] = {}
    copies: Counter[str] = Counter()
    gathering = Gathering(title)
    for image, row in listed:
        stamp = _stamp(image, row.where)
        copies[stamp] += 1
        path = f"image-{stamp.partition('-')[2][:SHOWN_DIGITS]}"
        path += f"-{copies[stamp]}" if copies[stamp] > 1 else ""
        images[path], stamps[path] = image, stamp
        gathering.add(row, path)
    source = ImagesInMemory(images, stamps)
    return gathering.dataset(source, options.name or "", options.split_seed, notes)


def _is_image(value: object) -> bool:
    return _is_pixels(value) or looks_like_image(os.fsdecode(value) if isinstance(value, os.PathLike) else value)


def _is_pixels(value: object) -> bool:
    if isinstance(value, Image.Image):
        return True
    return hasattr(value, "__array_interface__") and getattr(value, "shape", ()) != ()  # NumPy's scalars are no images


def _stamp(image: object, where: str) -> str:
    """Return size and digest of the pixels as they are encoded; raises DatasetError if they cannot be read."""
    if not _is_pixels(image):
        raise DatasetError(f"{where}: {_described(image)}, but the first image is in memory; pass one kind")
    try:
        pixels = in_rgb(_as_image(image), ON_WHITE)
    except Exception as error:  # Pillow's decoders raise nearly any exception on broken files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DatasetError(f"{where}: could not read the image ({reason}); remove the row or fix the image") from error
    content = pixels.tobytes()
    return f"{len(content)}-{sha256(f'{pixels.size}'.encode() + content).hexdigest()}"


def _as_image(pixels: Any) -> Image.Image:
    """Return an image or array as an image; raises ValueError for an array of another shape or type."""
    if isinstance(pixels, Image.Image):
        return pixels
    shape, kind = tuple(pixels.shape), pixels.__array_interface__["typestr"][1:]
    known = kind == "u1" if len(shape) == 3 and shape[2] in CHANNELS else len(shape) == 2 and kind in ("u1", "u2")
    if not known or 0 in shape:
        raise ValueError(f"an array of shape {shape} and type {pixels.dtype}, expected {EXPECTED}")
    return Image.fromarray(pixels.reshape(shape[:2]) if shape[2:] == (1,) else pixels)


def _described(value: object) -> str:
    return f"{type(value).__name__}, expected {EXPECTED}" if not _is_image(value) else f"{type(value).__name__}"
