"""The data sets that are known by name. A new one joins by an entry here; nothing else has to know of it."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from taskres_cache.bundled import DIGITS_ARCHIVE
from taskres_cache.datasets.dataset import Dataset
from taskres_cache.datasets.folder import read_folder
from taskres_cache.datasets.images import ImageArchive, ImageFolder
from taskres_cache.datasets.paper.descriptions import PAPER_DATASETS
from taskres_cache.datasets.paper.paper_dataset import Counts, PaperDataset
from taskres_cache.errors import DatasetError, OptionError, UnknownNameError
from taskres_cache.recipe import Recipe


@dataclass(frozen=True)
class DefaultBackbone:
    """An open_clip model and a tag of it."""

    name: str
    pretrained: str


PAPER_BACKBONE = DefaultBackbone("RN50", "openai")


@dataclass(frozen=True)
class Entry:
    """A known data set.

    Parameters
    ----------
    name, title : the name on the command line, and what it is.
    read : takes the root folder of all data sets, returns the data set, or raises DatasetError saying what lacks.
    lacking : takes the root folder, returns what lacks as paths below it; nothing when the data set can be read.
    warnings : takes the root folder, returns what a user should know of a data set that can be read.
    steps : takes the root folder, returns how to get the data set, one line a step.
    counts : as published, where they are.
    backbone : what `extract` takes when nothing else is said.
    """

    name: str
    title: str
    read: Callable[[Path], Dataset]
    lacking: Callable[[Path], tuple[str, ...]]
    warnings: Callable[[Path], tuple[str, ...]]
    steps: Callable[[Path], tuple[str, ...]]
    counts: Counts | None = None
    backbone: DefaultBackbone = PAPER_BACKBONE

    @property
    def test_only(self) -> bool:
        """Whether it is there to test classifiers of another data set on."""
        return self.counts is not None and self.counts.train == 0


# The best mean val accuracy of alpha 0.1 to 2 at the paper's lr; test was not looked at. Table: README of `bundled`.
DIGITS_RECIPE = Recipe(alpha=2.0)
DIGITS_TEMPLATES = ("a handwritten digit {}.", "a photo of the digit {}.", "the number {}.")


def read_digits(root: Path) -> Dataset:
    """Return the bundled UCI digits; they need no root."""
    dataset = read_folder(ImageArchive.at(DIGITS_ARCHIVE), "digits", templates=DIGITS_TEMPLATES)
    return replace(dataset, recipe=DIGITS_RECIPE)


DIGITS = Entry(
    name="digits",
    title="UCI digits: 1,797 images of 8x8 pixels, 10 classes",
    read=read_digits,
    lacking=lambda root: (),
    warnings=lambda root: (),
    steps=lambda root: ("bundled with taskres-cache",),
    backbone=DefaultBackbone("glyph-clip", "bundled"),
)


def _entry_of(paper: PaperDataset) -> Entry:
    described = (paper.name, paper.title, paper.dataset, paper.lacking, paper.warnings, paper.steps)
    return Entry(*described, counts=paper.counts)


ENTRIES: dict[str, Entry] = {entry.name: entry for entry in (DIGITS, *map(_entry_of, PAPER_DATASETS))}


def load_dataset(name_or_folder: str, root: Path, split_seed: int = 0, rename: str | None = None) -> Dataset:
    """Return a known data set by its name, or the one in a folder.

    Parameters
    ----------
    name_or_folder : a name of the registry, else a folder's path; `./digits` is the folder, `digits` the data set.
    root : folder that the known data sets lie in.
    split_seed : of the 60/20/20 split of a folder that has no split of its own.
    rename : what to call a folder's data set instead of the folder's name.

    Raises
    ------
    UnknownNameError : neither a name nor a folder.
    OptionError : a new name for a known data set, or one that cannot be a file's name.
    DatasetError : the data set is not as it should be.
    """
    if name_or_folder in ENTRIES:
        if rename is not None:
            raise OptionError(f"{name_or_folder!r} is a known data set and keeps its name; --name is for folders")
        return ENTRIES[name_or_folder].read(root)
    folder = Path(name_or_folder)
    if not folder.is_dir():
        if folder.exists():
            raise DatasetError(f"{folder} is a file; pass a folder with one folder of images a class")
        raise UnknownNameError(
            "data set", name_or_folder, ENTRIES, "pass a name that `taskres datasets` lists, or a folder"
        )
    return read_folder(ImageFolder(folder), dataset_name(rename or folder.resolve().name), split_seed)


def default_backbone(name: str) -> DefaultBackbone:
    """Return the backbone for a data set when nothing else is said; one's own folders get the paper's."""
    return ENTRIES[name].backbone if name in ENTRIES else PAPER_BACKBONE


def published_counts(name: str) -> Counts | None:
    """Return the published counts of a known data set; None where there are none."""
    return ENTRIES[name].counts if name in ENTRIES else None


def dataset_name(wish: str) -> str:
    """Return a name for a data set of one's own that can be a file's name and is not that of a known data set."""
    name = re.sub(r"[^\w.+-]+", "-", wish).strip("-.")
    if not name:
        raise OptionError(f"{wish!r} cannot name a data set; pass --name with letters or digits")
    return f"{name}-folder" if name in ENTRIES else name
