"""The forms in which labelled pictures come, and which of them a name refers to."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from taskres_cache.datasets.dataset import Dataset
from taskres_cache.errors import OptionError


@dataclass(frozen=True)
class FormOptions:
    """How a data set in another form than class folders is read.

    Parameters
    ----------
    name : str or None
        Name for the data set. Defaults to the name of the file or folder.
    split_seed : int
        Seed of the 60/20/20 split of images without a part.
    root : Path or None
        Folder of the images of a list. Defaults to the folder of the list.
    path_column, label_column, split_column : str or None
        Names of the columns (or keys) of a list or table. Found by their usual names if None; an empty
        `split_column` means that there is none.
    """

    name: str | None = None
    split_seed: int = 0
    root: Path | None = None
    path_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None


@dataclass(frozen=True)
class Form:
    """A form of input.

    Parameters
    ----------
    title : str
        What it is, for messages and help.
    recognises : callable
        Takes the text that the user typed; returns True if it refers to this form. Reads no more than a file's start.
    read : callable
        Takes that text and the options; returns the data set; raises DatasetError.
    """

    title: str
    recognises: Callable[[str], bool]
    read: Callable[[str, FormOptions], Dataset]


def refuse_columns(options: FormOptions, typed: str) -> None:
    """Raise OptionError if a column was named for a form without columns."""
    if any(column is not None for column in (options.path_column, options.label_column, options.split_column)):
        raise OptionError(
            f"{typed!r} has no columns; --path-column, --label-column and --split-column are for lists and tables"
        )


def default_name(typed: str) -> str:
    """Return the name of a data set from the text that the user typed: the file's name without its suffixes."""
    stem = Path(typed).name
    while Path(stem).suffix and len(Path(stem).suffix) <= 8:
        stem = Path(stem).stem
    return stem or "dataset"
