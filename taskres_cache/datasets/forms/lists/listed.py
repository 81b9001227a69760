"""A CSV, TSV or JSON Lines file with one row per image: path, class and, if it has one, part."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from taskres_cache.datasets.dataset import Dataset
from taskres_cache.datasets.forms.form import Form, FormOptions, default_name
from taskres_cache.datasets.forms.lists.columns import find_columns
from taskres_cache.datasets.forms.lists.gathering import Gathering, Listed, listed_in
from taskres_cache.datasets.forms.lists.paths import ImageFolderOfList
from taskres_cache.datasets.forms.lists.tables import TABLE_SUFFIXES, Table, open_table
from taskres_cache.datasets.images import ON_WHITE, ImageFolder
from taskres_cache.errors import DatasetError


def read_list(typed: str, options: FormOptions) -> Dataset:
    """Read a list; images are below its folder, or below `options.root`.

    Raises
    ------
    DatasetError
        The list or one of its rows cannot be read, or none of its images exists.
    """
    file = Path(typed)
    given = (options.path_column, options.label_column, options.split_column)
    return dataset_of_table(file, open_table(file, filter(None, given)), options)


def dataset_of_table(file: Path, table: Table, options: FormOptions) -> Dataset:
    """Return the data set of a table in a file."""
    columns = find_columns(table, options)
    return dataset_of_listed(file, listed_in(table, columns), options, columns.notes)


def dataset_of_listed(file: Path, rows: Iterable[Listed], options: FormOptions, notes: Sequence[str] = ()) -> Dataset:
    """Return the data set of rows that a file lists.

    Raises
    ------
    DatasetError
        A row cannot be used, or none of the images exists.
    """
    folder = options.root or file.parent
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder; pass the folder that contains the images with --root")
    gathering = Gathering(str(file), ImageFolderOfList(folder, file.parent).relative)
    for row in rows:
        gathering.add(row)
    _refuse_wrong_folder(file, folder, gathering)
    name = options.name or default_name(str(file))
    return gathering.dataset(ImageFolder(folder, ON_WHITE), name, options.split_seed, notes)


def _refuse_wrong_folder(file: Path, folder: Path, gathering: Gathering) -> None:
    """Raise DatasetError if no image exists: then paths start in another folder."""
    rows = gathering.known.values()
    if rows and not any(os.path.lexists(folder / row.path) for row in rows):
        first = next(iter(rows))
        raise DatasetError(
            f"none of the {len(rows)} images of {file} is below {folder}, such as {first.path} ({first.where}); paths "
            "are relative to the list, or to the folder that you pass with --root"
        )


LIST = Form(
    "a CSV, TSV or JSONL list of images and classes",
    lambda typed: typed.lower().endswith(TABLE_SUFFIXES) and not os.path.isdir(typed),
    read_list,
)
