"""What a data set is to the rest of the library: three lists of (path, label), class names, prompts, a recipe."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from taskres_cache.datasets.images import ImageSource
from taskres_cache.errors import DatasetError
from taskres_cache.recipe import Recipe

PARTITIONS = ("train", "val", "test")  # the position in this tuple is the number in a cache's `images/partition`

GIVEN_SPLIT = "given"  # the data set came with its partitions


class Item(NamedTuple):
    """One labelled image.

    Parameters
    ----------
    path : relative to the data set's image source.
    label : position in the class names.
    where : file and line or key that lists the image, for messages; empty where a folder speaks for itself.
    """

    path: str
    label: int
    where: str = ""


@dataclass(frozen=True)
class Dataset:
    """A labelled, partitioned set of images.

    Parameters
    ----------
    name : the name that caches and runs carry.
    source : opens the images.
    classnames : (C,) in label order, as the data set has them.
    templates : (T,) prompts with one `{}` each.
    train, val, test : the partitions in list order, on which few-shot sampling depends; val may be empty, and a data
        set that is there to be tested on has neither train nor val.
    class_ids : (C,) what a class goes by in every data set that has it; None when that is its name. ImageNet's are
        its WordNet identifiers, since two of its names occur twice.
    split : how the partitions came about; part of what a cache is made from.
    recipe : the recipe that fits of this data set start from.
    notes : what a user should be told about how the data set was read.

    Raises
    ------
    DatasetError : fewer than two classes, a class without a train item (a test item where nothing is trained on), a
        label out of range, an image that is listed twice, or no test item.
    """

    name: str
    source: ImageSource
    classnames: tuple[str, ...]
    templates: tuple[str, ...]
    train: tuple[Item, ...]
    val: tuple[Item, ...]
    test: tuple[Item, ...]
    class_ids: tuple[str, ...] | None = None
    split: str = GIVEN_SPLIT
    recipe: Recipe = field(default_factory=Recipe)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._check_classes()
        self._check_items()

    @property
    def partitions(self) -> dict[str, tuple[Item, ...]]:
        """The three lists by name."""
        return {"train": self.train, "val": self.val, "test": self.test}

    @property
    def test_only(self) -> bool:
        """Whether there is nothing to train on."""
        return not self.train and not self.val

    def _check_classes(self) -> None:
        if len(self.classnames) < 2:
            raise DatasetError(
                f"data set {self.name!r}: only {len(self.classnames)} class ({', '.join(self.classnames) or 'none'}), "
                f"expected at least 2; put one folder a class into {self.source.location}"
            )
        partition = "test" if self.test_only else "train"
        present = {item.label for item in self.partitions[partition]}
        missing = [name for label, name in enumerate(self.classnames) if label not in present]
        if missing:
            raise DatasetError(
                f"data set {self.name!r}: no {partition} image for {_listed(missing)}; "
                f"add images or remove the class from {self.source.location}"
            )

    def _check_items(self) -> None:
        if not self.test:
            raise DatasetError(f"data set {self.name!r}: no test image; add some to {self.source.location}")
        items = [item for partition in self.partitions.values() for item in partition]
        stray = next((item for item in items if not 0 <= item.label < len(self.classnames)), None)
        if stray is not None:
            raise DatasetError(
                f"data set {self.name!r}: {stray.path} has label {stray.label}{_in(stray)}, "
                f"expected 0 to {len(self.classnames) - 1}; mend the list of images"
            )
        unnamed = next((item.path for item in items if not _is_utf8(item.path)), None)
        if unnamed is not None:
            raise DatasetError(f"data set {self.name!r}: the file name {unnamed!a} is not UTF-8; rename the file")
        first_by_path: dict[str, Item] = {}
        for item in items:
            first = first_by_path.setdefault(item.path, item)
            if first is not item:
                raise DatasetError(
                    f"data set {self.name!r}: {item.path} is listed twice{_in(first, item)}; "
                    "every image belongs to one partition: mend the list of images"
                )


def labels_of(items: Sequence[Item]) -> list[int]:
    """Return the labels of items in list order."""
    return [item.label for item in items]


def _is_utf8(path: str) -> bool:
    """Return whether a path can be stored; Python smuggles the bytes of other encodings in as surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in path)


def _in(*items: Item) -> str:
    """Return where items are listed, as the end of a phrase."""
    places = [item.where for item in items if item.where]
    return f" ({' and '.join(places)})" if places else ""


def _listed(names: Sequence[str], most: int = 5) -> str:
    """Return names as a phrase: the first few, then how many more."""
    shown = ", ".join(repr(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
