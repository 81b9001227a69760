"""Rows that a file lists become a data set; the images are below its folder, or below another one."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from taskres_cache.datasets.dataset import Dataset
from taskres_cache.datasets.forms.form import FormOptions, default_name
from taskres_cache.datasets.forms.lists.columns import find_columns
from taskres_cache.datasets.forms.lists.gathering import Gathering, Listed, listed_in
from taskres_cache.datasets.forms.lists.paths import ImageFolderOfList
from taskres_cache.datasets.forms.lists.tables import Table
from taskres_cache.datasets.images import ON_WHITE, ImageFolder
from taskres_cache.errors import DatasetError
from taskres_cache.system.names import shown


def dataset_of_table(file: Path, table: Table, options: FormOptions) -> Dataset:
    """Return the data set of a table in a file."""
    columns = find_columns(table, options)
    return dataset_of_listed(file, listed_in(table, columns), options, columns.notes)


def dataset_of_listed(
    file: Path,
    rows: Iterable[Listed],
    options: FormOptions,
    notes: Sequence[str] = (),
    stored: Callable[[str], str] = str,
) -> Dataset:
    """Return the data set of rows that a file lists.

    Parameters
    ----------
    file : Path
        The file.
    rows : iterable of Listed
        Its rows.
    options : FormOptions
        Name, folder of the images and seed of the split.
    notes : sequence of str
        What was left out while the rows were read.
    stored : callable
        Takes a path as it is listed; returns that of the file.

    Raises
    ------
    DatasetError
        A row cannot be used, or none of the images exists.
    """
    folder = options.root or file.parent
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder; pass the folder that contains the images with --root")
    base = ImageFolderOfList(folder, file.parent)
    gathering = Gathering(str(file), lambda written: base.relative(stored(written)))
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
            f"none of the {len(rows)} images of {file} is below {folder}, such as {shown(first.path)} ({first.where}); "
            "paths are relative to the list, or to the folder that you pass with --root"
        )
