"""How a data set of the benchmark lies below the root: what it needs, what it lacks, how it is read.

The layouts are those of CoOp's DATASETS.md.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from taskres_cache.datasets.dataset import Dataset
from taskres_cache.datasets.images import ImageFolder
from taskres_cache.datasets.paper.listing import Listing, read_split_file
from taskres_cache.errors import DatasetError
from taskres_cache.recipe import Recipe

SPLIT_FILES = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"
PHOTO = ("a photo of a {}.",)


@dataclass(frozen=True)
class Counts:
    """How many classes, and images in each partition."""

    classes: int
    train: int
    val: int
    test: int


@dataclass(frozen=True)
class PaperDataset:
    """One data set of the benchmark.

    Parameters
    ----------
    name, title : the name on the command line, and what it is.
    folder : below the root.
    images : folders of images that must be there, below `folder`.
    counts : as published.
    home : the page that it comes from.
    files : what to download there, one line each.
    read : takes the folder; the reader of data sets without a split file, or what builds the split where it is missing.
    read_from : files that `read` reads, below `folder`.
    split_file : CoOp's, where it has one.
    split_prefix : what the split file's paths are relative to, below `folder`.
    templates, recipe : prompts, and the paper's recipe for it.
    """

    name: str
    title: str
    folder: str
    images: tuple[str, ...]
    counts: Counts
    home: str
    files: tuple[str, ...]
    read: Callable[[Path], Listing]
    read_from: tuple[str, ...] = ()
    split_file: str | None = None
    split_prefix: str = ""
    templates: tuple[str, ...] = PHOTO
    recipe: Recipe = field(default_factory=Recipe)

    def dataset(self, root: Path) -> Dataset:
        """Return the data set below a root; raises DatasetError when it lacks something or its lists are wrong."""
        folder = root / self.folder
        lacking = self.lacking(root)
        if lacking:
            raise DatasetError(
                f"data set {self.name!r} lacks {', '.join(str(root / path) for path in lacking)}; it comes from "
                f"{self.home}: `taskres datasets --root {root}` tells the steps"
            )
        listing = self._listing(folder)
        return Dataset(
            name=self.name,
            source=ImageFolder(folder, orientation="stored"),
            classnames=listing.classnames,
            templates=self.templates,
            train=listing.train,
            val=listing.val,
            test=listing.test,
            class_ids=listing.class_ids,
            split=listing.split,
            recipe=self.recipe,
            notes=self.warnings(root),
        )

    def lacking(self, root: Path) -> tuple[str, ...]:
        """Return what lacks, as paths below the root; empty when the data set can be read."""
        if not (root / self.folder).is_dir():
            return (f"{self.folder}/",)
        wanted = [f"{name}/" for name in self.images]
        if not self._has_split_file(root):
            files_lacking = [name for name in self.read_from if not (root / self.folder / name).is_file()]
            # One missing split file says more than three missing annotation files.
            wanted += [self.split_file] if files_lacking and self.split_file else files_lacking
        return tuple(f"{self.folder}/{name}" for name in wanted if not (root / self.folder / name).exists())

    def warnings(self, root: Path) -> tuple[str, ...]:
        """Return what a user should know of a data set that can be read: that its split is not the published one."""
        if self.split_file is None or self._has_split_file(root):
            return ()
        return (
            f"{self.folder}/{self.split_file} is missing: the split is built from the annotations and is not the "
            f"published one; for numbers that compare, get the file: {SPLIT_FILES}",
        )

    def steps(self, root: Path) -> tuple[str, ...]:
        """Return how to get the data set, one line a step."""
        split = (f"put {self.split_file} there, linked from {SPLIT_FILES}",) if self.split_file else ()
        return (f"home: {self.home}", *(f"get {line}" for line in self.files), f"into {root / self.folder}", *split)

    def _has_split_file(self, root: Path) -> bool:
        return self.split_file is not None and (root / self.folder / self.split_file).is_file()

    def _listing(self, folder: Path) -> Listing:
        if self.split_file is not None and (folder / self.split_file).is_file():
            return read_split_file(folder / self.split_file, self.split_prefix)
        return self.read(folder)
