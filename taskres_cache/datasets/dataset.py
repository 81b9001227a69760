"""A data set: three lists of (path, label), class names, prompts and a recipe.

Axes: C classes, T templates.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from taskres_cache.datasets.images import ImageSource
from taskres_cache.datasets.labels.changes import Corrections
from taskres_cache.datasets.prompts import own_or_filled
from taskres_cache.errors import DatasetError
from taskres_cache.recipe import Recipe

PARTITIONS = ("train", "val", "test")  # positions in this tuple are the values of `images/partition` in a cache

GIVEN_SPLIT = "given"  # the partitions came with the data set


class Item(NamedTuple):
    """One labelled image.

    Parameters
    ----------
    path : str
        Path in the data set's image source.
    label : int
        Position in the class names.
    where : str
        File and line or key that lists the image, for messages; empty if its folder gives the label.
    """

    path: str
    label: int
    where: str = ""


@dataclass(frozen=True, repr=False)
class Dataset:
    """A labelled, partitioned set of images.

    Parameters
    ----------
    name : str
        Name in caches and runs.
    source : ImageSource
        Reads the images.
    classnames : tuple of str
        Class names (C,) in label order, as the data set has them.
    templates : tuple of str
        Prompts (T,) with one `{}` each.
    train, val, test : tuple of Item
        The partitions in list order, on which few-shot sampling depends. val may be empty; a test-only data set has
        neither train nor val.
    class_ids : tuple of str, optional
        Identifiers (C,) of the classes across data sets. None if these are the names. ImageNet needs its WordNet
        identifiers, since two of its names occur twice.
    split : str
        How the partitions were made; part of a cache's provenance.
    recipe : Recipe
        The data set's own training recipe.
    notes : tuple of str
        Notes for the user on how the data set was read.
    corrections : Corrections
        What was corrected after it was read, see `corrected`.
    shown_names : tuple of str, optional
        Names (C,) that templates are filled with. None for the class names, or those that a cache has already.
    prompts : tuple of tuple of str, optional
        Complete sentences of each class (C,), used in place of templates; empty for a class whose text are the
        templates. None if no class has any.

    Raises
    ------
    DatasetError
        There are fewer than two classes, a class has no train item (no test item in a test-only data set), a label is
        out of range, an image is listed twice, or there is no test item.
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
    corrections: Corrections = field(default_factory=Corrections)
    shown_names: tuple[str, ...] | None = None
    prompts: tuple[tuple[str, ...], ...] | None = None

    def __post_init__(self) -> None:
        self._check_classes()
        self._check_items()

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(items)} {partition}" for partition, items in self.partitions.items())
        return f"Dataset({self.name!r}: {sizes} images, {len(self.classnames)} classes)"

    @property
    def partitions(self) -> dict[str, tuple[Item, ...]]:
        """The three lists by name."""
        return {"train": self.train, "val": self.val, "test": self.test}

    @property
    def names_in_prompts(self) -> tuple[str, ...]:
        """The names (C,) that templates are filled with."""
        return self.classnames if self.shown_names is None else self.shown_names

    def sentences(self, form: str) -> tuple[tuple[str, ...], ...] | None:
        """Return the prompts (C lists) of a data set that has own ones; None for one of templates alone."""
        if self.prompts is None:
            return None
        return own_or_filled(self.prompts, self.templates, self.names_in_prompts, form)

    @property
    def test_only(self) -> bool:
        """True if the data set has neither train nor val images."""
        return not self.train and not self.val

    def _check_classes(self) -> None:
        if len(self.classnames) < 2:
            found = f"only 1 class ({self.classnames[0]})" if self.classnames else "only 0 classes"
            raise DatasetError(
                f"data set {self.name!r} has {found}, expected at least 2; add one folder per class to "
                f"{self.source.location}"
            )
        partition = "test" if self.test_only else "train"
        present = {item.label for item in self.partitions[partition]}
        missing = [name for label, name in enumerate(self.classnames) if label not in present]
        if missing:
            raise DatasetError(
                f"data set {self.name!r} has no {partition} image for {_listed(missing)}; "
                f"add images, or move the folders of the class out of {self.source.location}"
            )

    def _check_items(self) -> None:
        if not self.test:
            raise DatasetError(f"data set {self.name!r} has no test image; add some to {self.source.location}")
        items = [item for partition in self.partitions.values() for item in partition]
        stray = next((item for item in items if not 0 <= item.label < len(self.classnames)), None)
        if stray is not None:
            raise DatasetError(
                f"data set {self.name!r}: {stray.path} has label {stray.label}{_in(stray)}, "
                f"expected 0 to {len(self.classnames) - 1}; fix the list of images"
            )
        unnamed = next((item.path for item in items if not _is_utf8(item.path)), None)
        if unnamed is not None:
            raise DatasetError(f"data set {self.name!r}: the file name {unnamed!a} is not UTF-8; rename the file")
        first_by_path: dict[str, Item] = {}
        for item in items:
            first = first_by_path.setdefault(item.path, item)
            if first is not item:
                raise DatasetError(
                    f"data set {self.name!r}: {item.path} is listed twice{_in(first, item)}, expected once; fix the "
                    "list of images"
                )


def labels_of(items: Sequence[Item]) -> list[int]:
    """Return the labels of items in list order."""
    return [item.label for item in items]


def _is_utf8(path: str) -> bool:
    """Return True if a path can be stored; Python represents the bytes of other encodings as surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in path)


def _in(*items: Item) -> str:
    """Return where items are listed, as text in parentheses."""
    places = [item.where for item in items if item.where]
    return f" ({' and '.join(places)})" if places else ""


def _listed(names: Sequence[str], most: int = 5) -> str:
    """Return the first few names as text, then the number of the others."""
    shown = ", ".join(repr(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
