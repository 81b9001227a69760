"""The data sets that are known by name; to add one, add an entry here."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from taskres_cache.bundled import DIGITS_ARCHIVE
from taskres_cache.datasets.dataset import Dataset
from taskres_cache.datasets.folder import read_folder
from taskres_cache.datasets.forms.form import FormOptions
from taskres_cache.datasets.forms.opening import FORMS, read_form
from taskres_cache.datasets.images import ON_WHITE, ImageArchive, ImageFolder
from taskres_cache.datasets.paper.descriptions import PAPER_DATASETS
from taskres_cache.datasets.paper.paper_dataset import Counts, PaperDataset
from taskres_cache.errors import DatasetError, OptionError, UnknownNameError
from taskres_cache.recipe import Recipe
from taskres_cache.system.names import shown, unsafe_name


@dataclass(frozen=True)
class DefaultBackbone:
    """An open_clip model and one of its checkpoints.

    Parameters
    ----------
    name, pretrained : str
        Model name and checkpoint tag.
    """

    name: str
    pretrained: str


PAPER_BACKBONE = DefaultBackbone("RN50", "openai")


@dataclass(frozen=True)
class Entry:
    """A known data set.

    Parameters
    ----------
    name, title : str
        Name on the command line, and description.
    read : callable
        Takes the root folder of all data sets and returns the data set; raises DatasetError if files are missing.
    missing : callable
        Takes the root folder and returns the missing paths below it; empty if the data set can be read.
    warnings : callable
        Takes the root folder and returns warnings about a data set that can be read.
    steps : callable
        Takes the root folder and returns how to get the data set, one line per step.
    counts : Counts or None
        Published counts.
    backbone : DefaultBackbone
        Backbone that `extract` uses by default.
    """

    name: str
    title: str
    read: Callable[[Path], Dataset]
    missing: Callable[[Path], tuple[str, ...]]
    warnings: Callable[[Path], tuple[str, ...]]
    steps: Callable[[Path], tuple[str, ...]]
    counts: Counts | None = None
    backbone: DefaultBackbone = PAPER_BACKBONE

    @property
    def test_only(self) -> bool:
        """True for a data set on which only runs of another data set are evaluated."""
        return self.counts is not None and self.counts.train == 0


# Best mean val accuracy of alpha 0.1 to 2 at the paper's learning rate; test was not used. Table: bundled/README.md.
DIGITS_RECIPE = Recipe(alpha=2.0)
DIGITS_TEMPLATES = ("a handwritten digit {}.", "a photo of the digit {}.", "the number {}.")


def read_digits(root: Path) -> Dataset:
    """Return the bundled UCI digits; `root` is not used."""
    dataset = read_folder(ImageArchive.at(DIGITS_ARCHIVE), "digits", templates=DIGITS_TEMPLATES)
    return replace(dataset, recipe=DIGITS_RECIPE)


DIGITS = Entry(
    name="digits",
    title="UCI digits: 1,797 images of 8x8 pixels, 10 classes",
    read=read_digits,
    missing=lambda root: (),
    warnings=lambda root: (),
    steps=lambda root: ("bundled with taskres-cache",),
    backbone=DefaultBackbone("glyph-clip", "bundled"),
)


def _entry_of(paper: PaperDataset) -> Entry:
    described = (paper.name, paper.title, paper.dataset, paper.missing, paper.warnings, paper.steps)
    return Entry(*described, counts=paper.counts)


ENTRIES: dict[str, Entry] = {entry.name: entry for entry in (DIGITS, *map(_entry_of, PAPER_DATASETS))}


def load_dataset(
    name_or_folder: str,
    root: str | Path | None = None,
    split_seed: int = 0,
    rename: str | None = None,
    *,
    path_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
) -> Dataset:
    """Load a known data set by name, or the images in a folder or in another form, such as a list.

    Only lists are read, no images.

    Parameters
    ----------
    name_or_folder : str
        Name of a known data set (`taskres datasets` lists them), path of a folder with one folder of images per
        class, path of a list, archive, export or table, a pattern of WebDataset shards, or `hf:owner/name`. "digits" is
        the data set, "./digits" a folder.
    root : str or Path, optional
        Folder of the known data sets, by default the current one; for a list, the folder of its images, by default
        that of the list. Not used for folders and for the bundled "digits".
    split_seed : int, optional
        Seed of the 60/20/20 split of images that have no part.
    rename : str, optional
        Name for the data set in a folder or file. Defaults to the name of the folder or file.
    path_column, label_column, split_column : str, optional
        Columns or keys of a list. Found by their usual names; an empty `split_column` means that there is none.

    Returns
    -------
    Dataset
        Lists of image paths and labels for train, val and test; class names, templates and recipe. `source` reads the
        images.

    Raises
    ------
    UnknownNameError
        `name_or_folder` is neither a known name, nor a folder, nor another form.
    OptionError
        `rename` or a column was given for a known data set, `rename` cannot be a file name, or a column was given for
        a folder.
    DatasetError
        Files of the data set are missing or invalid, or it has fewer than two classes or an empty one.

    Examples
    --------
    >>> from taskres_cache import load_dataset
    >>> dataset = load_dataset("digits")
    >>> dataset
    Dataset('digits': 1079 train, 359 val, 359 test images, 10 classes)
    >>> dataset.classnames[:3], dataset.templates[0]
    (('0', '1', '2'), 'a handwritten digit {}.')
    >>> item = dataset.test[-1]
    >>> dataset.classnames[item.label]
    '9'
    >>> dataset.source.read(item.path).size
    (8, 8)
    """
    columns = (path_column, label_column, split_column)
    if name_or_folder in ENTRIES:
        if rename is not None:
            raise OptionError(f"{name_or_folder!r} is a known data set and keeps its name; --name is for folders")
        _refuse_columns(columns, name_or_folder)
        return ENTRIES[name_or_folder].read(Path(root or "."))
    name = None if rename is None else dataset_name(rename)
    options = FormOptions(name, split_seed, None if root is None else Path(root), *columns)
    dataset = read_form(name_or_folder, options)
    if dataset is not None:
        usable = dataset_name(dataset.name)
        return dataset if usable == dataset.name else replace(dataset, name=usable)
    _refuse_columns(columns, name_or_folder)
    folder = Path(name_or_folder)
    if not folder.is_dir():
        if folder.exists():
            raise DatasetError(
                f"{folder} is a file of no known form; pass a folder with one folder of images per class, "
                f"{', '.join(form.title for form in FORMS)}"
            )
        raise UnknownNameError("data set", name_or_folder, ENTRIES, "pass a name from `taskres datasets`, or a folder")
    source = ImageFolder(folder, ON_WHITE)
    return read_folder(source, dataset_name(rename or folder.resolve().name), split_seed)


def _refuse_columns(columns: Iterable[str | None], name: str) -> None:
    """Raise OptionError if a column was named for a data set without columns."""
    if any(column is not None for column in columns):
        raise OptionError(
            f"{name!r} has no columns; --path-column, --label-column and --split-column are for lists and tables"
        )


def is_named(name: str) -> bool:
    """Return True for a data set that is known by name, False for data of a user's own."""
    return name in ENTRIES


def default_backbone(name: str) -> DefaultBackbone:
    """Return the default backbone of a data set; the paper's for folders."""
    return ENTRIES[name].backbone if name in ENTRIES else PAPER_BACKBONE


def published_counts(name: str) -> Counts | None:
    """Return the published counts of a known data set, or None."""
    return ENTRIES[name].counts if name in ENTRIES else None


def dataset_name(wish: str) -> str:
    """Return a name for the data set in a folder, usable as a file name and different from known data sets.

    Raises
    ------
    OptionError
        `wish` has no usable character or is too long.
    """
    name = re.sub(r"[^\w.+-]+", "-", wish).strip("-.")
    fault = unsafe_name(name)
    if fault is not None:
        raise OptionError(f"{shown(wish)} is not usable as a name (it {fault}); pass --name with letters or digits")
    return f"{name}-folder" if name in ENTRIES else name
