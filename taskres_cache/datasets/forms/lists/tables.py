"""Tables in files: their encoding, their columns, and their records one by one."""

import csv
import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE, BOM_UTF32_LE
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import msgspec

from taskres_cache.datasets.forms.lists.names import is_usual_name, looks_like_image
from taskres_cache.errors import DatasetError
from taskres_cache.system.names import shown
from taskres_cache.system.text import command

TAB_SUFFIXES = (".tsv", ".tab")
LINES_SUFFIXES = (".jsonl", ".ndjson")
TABLE_SUFFIXES = (".csv", *TAB_SUFFIXES, *LINES_SUFFIXES)
DELIMITERS = (",", ";", "\t", "|")
START_BYTES = 1 << 16  # from which encoding, delimiter and header are found
SAMPLE = 100  # records, the same
BOMS = (  # that of UTF-32 begins with that of UTF-16
    (BOM_UTF8, "utf-8-sig"),
    (BOM_UTF32_LE, "utf-32"),
    (BOM_UTF32_BE, "utf-32"),
    (BOM_UTF16_LE, "utf-16"),
    (BOM_UTF16_BE, "utf-16"),
)

Record = tuple[str, Mapping[str, object]]  # where it is, such as "row 3", and column -> value


@dataclass(frozen=True)
class Table:
    """Records with the same columns.

    Parameters
    ----------
    title : str
        The file, for messages.
    columns : tuple of str
        Their names; "1", "2" and so on if the file does not name them.
    named : bool
        Whether the file names them.
    records : callable
        Returns an iterator over the records, from the first one; it raises DatasetError for a record that is malformed.
    """

    title: str
    columns: tuple[str, ...]
    named: bool
    records: Callable[[], Iterator[Record]]

    def sample(self) -> list[Record]:
        """Return the first records."""
        return list(islice(self.records(), SAMPLE))


def open_table(file: Path, names: Iterable[str] = ()) -> Table:
    """Open a CSV, TSV or JSON Lines file.

    Parameters
    ----------
    file : Path
        The file; its suffix says which of these it is.
    names : iterable of str
        Names of columns that the user gave: a first row with one of them is a header.

    Raises
    ------
    DatasetError
        The file cannot be read, is in another encoding than UTF-8, 16 or 32, or its start is malformed.
    """
    encoding = encoding_of(file)
    if file.suffix.lower() in LINES_SUFFIXES:
        return table_of_objects(str(file), partial(_objects_in_lines, file, encoding))
    lines = _first_lines(file, encoding)
    delimiter = _delimiter(lines, file)
    first = next((row for row in csv.reader(lines, delimiter=delimiter) if any(row)), [])
    rows = [row for row in csv.reader(lines, delimiter=delimiter) if any(row)][1:]
    named = _is_header(first, rows, names)
    columns = _unique(first) if named else tuple(str(number) for number in range(1, len(first) + 1))
    return Table(str(file), columns, named, partial(_records, file, encoding, delimiter, columns, named))


def table_of_objects(title: str, objects: Callable[[], Iterator[Record]]) -> Table:
    """Return the table of objects; columns are the keys of the first ones."""
    first = islice(objects(), SAMPLE)
    return Table(title, tuple(dict.fromkeys(key for _, found in first for key in found)), True, objects)


def encoding_of(file: Path) -> str:
    """Return the encoding of a text file by its first bytes; UTF-8 if nothing says otherwise.

    Raises
    ------
    DatasetError
        The file is missing, is not a file, or cannot be read.
    """
    if not file.is_file():
        state = "is not a file" if file.exists() else "does not exist"
        raise DatasetError(f"{file} {state}; check the path of the list")
    try:
        with file.open("rb") as stream:
            start = stream.read(START_BYTES)
    except OSError as error:
        raise DatasetError(f"could not read {file} ({error.strerror}); check its permissions") from error
    known = next((encoding for mark, encoding in BOMS if start.startswith(mark)), None)
    if known is not None:
        return known
    zeros = start[0::2].count(0), start[1::2].count(0)  # every second byte of Western text in UTF-16
    if max(zeros) * 4 > len(start):
        return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
    return "utf-8"


def refuse_encoding(file: Path, encoding: str) -> DatasetError:
    """Return the error for a file that is not in its encoding."""
    if encoding != "utf-8":
        return DatasetError(f"{file} is not valid {encoding.upper()}, which its first bytes say; save it as UTF-8")
    with file.open("rb") as stream:
        line, byte = next((number, bad) for number, bad in enumerate(map(_bad_byte, stream), 1) if bad is not None)
    convert = command("iconv", "-f", "WINDOWS-1252", "-t", "UTF-8", file)
    return DatasetError(
        f"{file}, line {line}: byte 0x{byte:02x} is not UTF-8; if the file is Latin-1 or Windows-1252, convert it: "
        f"{convert} > {command(file.with_name(f'{file.stem}-utf8{file.suffix}'))}"
    )


def _bad_byte(line: bytes) -> int | None:
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return line[error.start]
    return None


def _first_lines(file: Path, encoding: str) -> list[str]:
    """Return the lines at the start of a file; the last one may be cut."""
    try:
        with file.open(encoding=encoding, newline="") as stream:
            return stream.read(START_BYTES).splitlines(keepends=True)
    except UnicodeError as error:
        raise refuse_encoding(file, encoding) from error


def _delimiter(lines: Sequence[str], file: Path) -> str:
    """Return what separates the fields: that with usual names of columns, or with as many fields in each row."""
    usual = "\t" if file.suffix.lower() in TAB_SUFFIXES else ","
    candidates = (usual, *(one for one in DELIMITERS if one != usual))
    try:
        rows = {one: [row for row in islice(csv.reader(lines, delimiter=one), SAMPLE) if row] for one in candidates}
    except csv.Error:
        return usual  # reading all records says where the fault is
    wide = {one: found for one, found in rows.items() if found and min(map(len, found)) > 1}
    named = [one for one, found in wide.items() if any(map(is_usual_name, found[0]))]
    even = [one for one, found in wide.items() if len(set(map(len, found[:-1] or found))) == 1]
    return next(iter([*named, *even, *wide, usual]))


def _is_header(first: Sequence[str], rows: Sequence[Sequence[str]], names: Iterable[str]) -> bool:
    """Return True if the first row names the columns."""
    if any(map(looks_like_image, first)):
        return False
    if any(map(is_usual_name, first)) or not set(names).isdisjoint(first):
        return True
    return any(looks_like_image(cell) for row in rows for cell in row)


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    """Return names of columns, numbered where they are empty or repeat."""
    stripped = [name.strip() for name in names]
    return tuple(
        name if name and name not in stripped[:place] else f"{name or 'column'}.{place + 1}"
        for place, name in enumerate(stripped)
    )


def _records(file: Path, encoding: str, delimiter: str, columns: tuple[str, ...], named: bool) -> Iterator[Record]:
    """Yield the records of a CSV file; rows count from 1 with the header and with blank rows, as in a spreadsheet."""
    number = 0
    try:
        with file.open(encoding=encoding, newline="") as stream:
            header = named
            for number, row in enumerate(csv.reader(stream, delimiter=delimiter, strict=True), 1):
                if not any(map(str.strip, row)):
                    continue
                if header:
                    header = False
                    continue
                while len(row) > len(columns) and not row[-1]:
                    row.pop()
                if len(row) != len(columns):
                    raise DatasetError(
                        f"{file}, row {number}: {_fields(len(row))}, expected {len(columns)} as in the first row; put "
                        f"text with {shown(delimiter)} in double quotes"
                    )
                yield f"row {number}", dict(zip(columns, row, strict=True))
    except UnicodeError as error:
        raise refuse_encoding(file, encoding) from error
    except csv.Error as error:
        raise DatasetError(f"{file}, row {number + 1}: {error}; check its double quotes") from error


def _fields(count: int) -> str:
    return "1 field" if count == 1 else f"{count} fields"


def _objects_in_lines(file: Path, encoding: str) -> Iterator[Record]:
    """Yield the objects of a file with one JSON object per line."""
    try:
        with file.open(encoding=encoding) as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield f"line {number}", _object_of(line, f"{file}, line {number}")
    except UnicodeError as error:
        raise refuse_encoding(file, encoding) from error


def _object_of(line: str, where: str) -> dict[str, object]:
    try:
        return msgspec.json.decode(line.encode("utf-8", "surrogatepass"), type=dict[str, object])
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        reason = re.sub(r"\s+", " ", str(error))
        raise DatasetError(
            f'{where}: {reason}; expected one object per line, such as {{"path": "a.png", "label": "cat"}}'
        ) from error
