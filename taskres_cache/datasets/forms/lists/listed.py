"""Rows that files list become a data set; the images are below the folders of the files, or below another one."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from taskres_cache.datasets.dataset import Dataset
from taskres_cache.datasets.forms.form import FormOptions
from taskres_cache.datasets.forms.lists.columns import find_columns
from taskres_cache.datasets.forms.lists.gathering import Gathering, Listed, listed_in
from taskres_cache.datasets.forms.lists.paths import ImageFolderOfList
from taskres_cache.datasets.forms.lists.tables import Table
from taskres_cache.datasets.images import ON_WHITE, ImageFolder
from taskres_cache.errors import DatasetError
from taskres_cache.system.names import shown


@dataclass(frozen=True)
class Listing:
    """What one file lists.

    Parameters
    ----------
    file : Path
        The file.
    rows : iterable of Listed
        Its rows.
    notes : tuple of str
        What was left out while the rows were read.
    stored : callable
        Takes a path as it is listed; returns that of the file.
    part : str
        Part of rows that have none; empty if they are to have none.
    """

    file: Path
    rows: Iterable[Listed]
    notes: tuple[str, ...] = ()
    stored: Callable[[str], str] = str
    part: str = ""


def listing_of_table(file: Path, table: Table, options: FormOptions) -> Listing:
    """Return what a table in a file lists."""
    columns = find_columns(table, options)
    return Listing(file, listed_in(table, columns), columns.notes)


def dataset_of_listings(listings: Sequence[Listing], name: str, options: FormOptions) -> Dataset:
    """Return the data set of what files list.

    Images are below `options.root`, or else below the folder of the file that lists them.

    Parameters
    ----------
    listings : sequence of Listing
        What each file lists.
    name : str
        Name of the data set.
    options : FormOptions
        Folder of the images and seed of the split.

    Raises
    ------
    DatasetError
        A row cannot be used, or none of the images exists.
    """
    folder = options.root or _common_folder([listing.file.parent for listing in listings])
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder; pass the folder that contains the images with --root")
    title = " and ".join(str(listing.file) for listing in listings[:2]) + (" and others" if listings[2:] else "")
    gathering = Gathering(title)
    for listing in listings:
        base = ImageFolderOfList(folder, options.root or listing.file.parent, listing.file.parent)
        for row in listing.rows:
            whole = row if row.split or not listing.part else row._replace(split=listing.part)
            gathering.add(whole, _path_of(row, listing, base))
    _refuse_wrong_folder(folder, gathering)
    notes = [note for listing in listings for note in listing.notes]
    return gathering.dataset(ImageFolder(folder, ON_WHITE), name, options.split_seed, notes)


def _path_of(row: Listed, listing: Listing, base: ImageFolderOfList) -> str:
    """Return the path of a row's image below the folder; raises DatasetError if it leads elsewhere."""
    try:
        return base.relative(listing.stored(row.path))
    except ValueError as error:
        raise DatasetError(f"{row.where}: {error}") from error


def _common_folder(folders: Sequence[Path]) -> Path:
    """Return the folder that contains all folders."""
    if len(set(folders)) == 1:
        return folders[0]
    return Path(os.path.commonpath([folder.absolute() for folder in folders]))


def _refuse_wrong_folder(folder: Path, gathering: Gathering) -> None:
    """Raise DatasetError if no image exists: then paths start in another folder."""
    rows = gathering.known.values()
    if rows and not any(os.path.lexists(folder / row.path) for row in rows):
        first = next(iter(rows))
        raise DatasetError(
            f"none of the {len(rows)} images of {gathering.title} is below {folder}, such as {shown(first.path)} "
            f"({first.where}); paths are relative to the list, or to the folder that you pass with --root"
        )
