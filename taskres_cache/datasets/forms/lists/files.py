"""Files that list images: CSV, TSV, JSON Lines, and JSON of several programs, told apart by their keys."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from taskres_cache.datasets.class_names import listed
from taskres_cache.datasets.dataset import Dataset
from taskres_cache.datasets.forms.form import Form, FormOptions
from taskres_cache.datasets.forms.lists.coco import Coco, read_coco
from taskres_cache.datasets.forms.lists.label_studio import Task, is_annotated, read_annotated, table_of_tasks
from taskres_cache.datasets.forms.lists.listed import dataset_of_table
from taskres_cache.datasets.forms.lists.tables import (
    TABLE_SUFFIXES,
    Record,
    Table,
    encoding_of,
    open_table,
    refuse_encoding,
    table_of_objects,
)
from taskres_cache.errors import DatasetError

JSON_SUFFIX = ".json"
KINDS = "an export of Label Studio, in the COCO form, or a list of objects with path and label"
Content = TypeVar("Content")


def read_list(typed: str, options: FormOptions) -> Dataset:
    """Read a CSV, TSV or JSON Lines file; images are below its folder, or below `options.root`.

    Raises
    ------
    DatasetError
        The list or one of its rows cannot be read, or none of its images exists.
    """
    file = Path(typed)
    given = (options.path_column, options.label_column, options.split_column)
    return _dataset_of(file, open_table(file, filter(None, given)), options)


def read_export(typed: str, options: FormOptions) -> Dataset:
    """Read a JSON file; images are below its folder, or below `options.root`.

    Raises
    ------
    DatasetError
        It has none of the known forms, or one of its entries cannot be used.
    """
    file = Path(typed)
    content = _as_utf8(file)
    if content.lstrip()[:1] == b"{":
        keys = _decoded(content, dict[str, msgspec.Raw], file)
        if not {"images", "annotations", "categories"} <= set(keys):
            raise DatasetError(f"{file} has the keys {listed(keys)}, expected {KINDS}; check the file")
        return read_coco(file, _decoded(content, Coco, file), options)
    objects = _decoded(content, list[dict[str, object]], file)
    if objects and any({"annotations", "completions"} & set(one) and "data" in one for one in objects):
        table, options = table_of_tasks(str(file), _decoded(content, list[Task], file), options)
        return read_annotated(file, table, options)
    return _dataset_of(file, table_of_objects(str(file), partial(_numbered, objects)), options)


def _dataset_of(file: Path, table: Table, options: FormOptions) -> Dataset:
    return read_annotated(file, table, options) if is_annotated(table) else dataset_of_table(file, table, options)


def _numbered(objects: Sequence[Mapping[str, object]]) -> Iterator[Record]:
    for number, one in enumerate(objects):
        yield f"entry {number}", one


def _decoded(content: bytes, kind: type[Content], file: Path) -> Content:
    """Return JSON as a type; raises DatasetError that says where the file differs from it."""
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        reason = re.sub(r"\s+", " ", str(error))
        raise DatasetError(f"{file}: {reason}; expected {KINDS}") from error


def _as_utf8(file: Path) -> bytes:
    """Return the content of a text file in UTF-8 without a byte-order mark."""
    encoding = encoding_of(file)
    try:
        content = file.read_bytes()
        content.decode(encoding)
        return content if encoding == "utf-8" else content.decode(encoding).encode()
    except UnicodeError as error:
        raise refuse_encoding(file, encoding) from error
    except OSError as error:
        raise DatasetError(f"could not read {file} ({error.strerror}); check its permissions") from error


LIST = Form(
    "a CSV, TSV or JSONL list of images and classes",
    lambda typed: typed.lower().endswith(TABLE_SUFFIXES) and not os.path.isdir(typed),
    read_list,
)
EXPORT = Form(
    "an export of Label Studio or in the COCO form (JSON)",
    lambda typed: typed.lower().endswith(JSON_SUFFIX) and not os.path.isdir(typed),
    read_export,
)
