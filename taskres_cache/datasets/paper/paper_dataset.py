"""A data set of the benchmark: its files below the root, what is missing, and how it is read.

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
from taskres_cache.system.text import command

SPLIT_FILES = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"
PHOTO = ("a photo of a {}.",)


@dataclass(frozen=True)
class Counts:
    """Number of classes, and of images per partition.

    Parameters
    ----------
    classes, train, val, test : int
        The numbers.
    """

    classes: int
    train: int
    val: int
    test: int


@dataclass(frozen=True)
class PaperDataset:
    """One data set of the benchmark.

    Parameters
    ----------
    name, title : str
        Name on the command line, and description.
    folder : str
        Folder below the root.
    images : tuple of str
        Required folders of images, below `folder`.
    counts : Counts
        Published counts.
    home : str
        Home page.
    files : tuple of str
        What to download there, one line per file.
    read : callable
        Takes the folder and returns the listing, if there is no split file.
    read_from : tuple of str
        Files that `read` needs, below `folder`.
    split_file : str or None
        Name of CoOp's split file.
    split_prefix : str
        Folder of the split file's paths, below `folder`.
    templates : tuple of str
        Prompts with one `{}` each.
    recipe : Recipe
        The paper's recipe for the data set.
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
        """Read the data set below a root.

        Raises
        ------
        DatasetError
            Files are missing, or the lists are invalid.
        """
        folder = root / self.folder
        missing = self.missing(root)
        if missing:
            raise DatasetError(
                f"data set {self.name!r} is incomplete, missing {', '.join(str(root / path) for path in missing)}; get "
                f"it from {self.home} (steps: {command('taskres', 'datasets', '--root', root)})"
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

    def missing(self, root: Path) -> tuple[str, ...]:
        """Return missing paths below the root; empty if the data set can be read."""
        if not (root / self.folder).is_dir():
            return (f"{self.folder}/",)
        wanted = [f"{name}/" for name in self.images]
        if not self._has_split_file(root):
            files_missing = [name for name in self.read_from if not (root / self.folder / name).is_file()]
            # One missing split file is easier to get than three annotation files.
            wanted += [self.split_file] if files_missing and self.split_file else files_missing
        return tuple(f"{self.folder}/{name}" for name in wanted if not (root / self.folder / name).exists())

    def warnings(self, root: Path) -> tuple[str, ...]:
        """Return a warning if the data set can be read but its split is not the published one."""
        if self.split_file is None or self._has_split_file(root):
            return ()
        return (
            f"{self.folder}/{self.split_file} is missing: the split is built from the annotations and is not the "
            f"published one; for comparable numbers, get the file: {SPLIT_FILES}",
        )

    def steps(self, root: Path) -> tuple[str, ...]:
        """Return how to get the data set, one line per step."""
        split = (f"put {self.split_file} there, linked from {SPLIT_FILES}",) if self.split_file else ()
        return (
            f"home: {self.home}",
            *(f"get {line}" for line in self.files),
            f"into {root / self.folder}",
            *split,
        )

    def _has_split_file(self, root: Path) -> bool:
        return self.split_file is not None and (root / self.folder / self.split_file).is_file()

    def _listing(self, folder: Path) -> Listing:
        if self.split_file is not None and (folder / self.split_file).is_file():
            return read_split_file(folder / self.split_file, self.split_prefix)
        return self.read(folder)
