"""Files that list images: CSV, TSV, JSON Lines, and JSON of several programs, told apart by their keys."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from taskres_cache.datasets.class_names import listed
from taskres_cache.datasets.dataset import Dataset
from taskres_cache.datasets.forms.form import Form, FormOptions, default_name
from taskres_cache.datasets.forms.lists.coco import Coco, coco_listing
from taskres_cache.datasets.forms.lists.label_studio import Task, annotated_listing, is_annotated, table_of_tasks
from taskres_cache.datasets.forms.lists.listed import Listing, dataset_of_listings, listing_of_table
from taskres_cache.datasets.forms.lists.tables import (
    TABLE_SUFFIXES,
    Record,
    Table,
    encoding_of,
    open_table,
    refuse_encoding,
    table_of_objects,
)
from taskres_cache.datasets.forms.shard_names import PART, is_pattern, parts_of, pattern_name, shards_of
from taskres_cache.errors import DatasetError

JSON_SUFFIX = ".json"
KINDS = "an export of Label Studio, in the COCO form, or a list of objects with path and label"
BEFORE_PART = re.compile(rf".*?(?<![a-z])(?={PART.pattern})", re.IGNORECASE)  # as in instances_train2017.json
Content = TypeVar("Content")


def read_lists(typed: str, options: FormOptions) -> Dataset:
    """Read a file that lists images, or several such files.

    Images are below the folder of the file, or below `options.root`. Of several files, the names or folders say the
    parts, if each has one and `options.split_column` is not empty; rows may have others.

    Raises
    ------
    DatasetError
        A list or one of its rows cannot be read, or none of its images exists.
    """
    if not is_pattern(typed):
        file = Path(typed)
        return dataset_of_listings([_listing_of(file, options)], options.name or default_name(typed), options)
    files = shards_of(typed)
    by_name = [file.with_name(BEFORE_PART.sub("", file.name, count=1)) for file in files]
    parts = parts_of(by_name) if options.split_column != "" else [""] * len(files)
    listings = [replace(_listing_of(file, options), part=part) for file, part in zip(files, parts, strict=True)]
    return dataset_of_listings(listings, options.name or pattern_name(typed), options)


def _listing_of(file: Path, options: FormOptions) -> Listing:
    """Return what a file lists."""
    if file.suffix.lower() == JSON_SUFFIX:
        return _listing_of_json(file, options)
    given = (options.path_column, options.label_column, options.split_column)
    return _listing_of_table(file, open_table(file, filter(None, given)), options)


def _listing_of_json(file: Path, options: FormOptions) -> Listing:
    content = _as_utf8(file)
    if content.lstrip()[:1] == b"{":
        keys = _decoded(content, dict[str, msgspec.Raw], file)
        if not {"images", "annotations", "categories"} <= set(keys):
            raise DatasetError(f"{file} has the keys {listed(keys)}, expected {KINDS}; check the file")
        return coco_listing(file, _decoded(content, Coco, file), options)
    objects = _decoded(content, list[dict[str, object]], file)
    if any({"annotations", "completions"} & set(one) and "data" in one for one in objects):
        table, options = table_of_tasks(str(file), _decoded(content, list[Task], file), options)
        return annotated_listing(file, table, options)
    return _listing_of_table(file, table_of_objects(str(file), partial(_numbered, objects)), options)


def _listing_of_table(file: Path, table: Table, options: FormOptions) -> Listing:
    return annotated_listing(file, table, options) if is_annotated(table) else listing_of_table(file, table, options)


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
    read_lists,
)
EXPORT = Form(
    "an export of Label Studio or in the COCO form (JSON)",
    lambda typed: typed.lower().endswith(JSON_SUFFIX) and not os.path.isdir(typed),
    read_lists,
)
