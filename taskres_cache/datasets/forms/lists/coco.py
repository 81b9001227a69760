"""COCO files whose images have one category each, as classification exports do."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from taskres_cache.datasets.class_names import listed
from taskres_cache.datasets.forms.form import FormOptions
from taskres_cache.datasets.forms.lists.gathering import Listed, not_used
from taskres_cache.datasets.forms.lists.listed import Listing
from taskres_cache.errors import DatasetError

Identifier = int | str


class Image(msgspec.Struct, frozen=True):
    """An image; `split` is no part of the form, but some programs write it."""

    id: Identifier
    file_name: str
    split: str | None = None


class Annotation(msgspec.Struct, frozen=True):
    """What an image shows; boxes and masks are not read."""

    image_id: Identifier
    category_id: Identifier | None = None


class Category(msgspec.Struct, frozen=True):
    """A class."""

    id: Identifier
    name: str


class Coco(msgspec.Struct, frozen=True):
    """The parts of a file that are read."""

    images: list[Image]
    annotations: list[Annotation]
    categories: list[Category]


Entry = TypeVar("Entry", Image, Category)


def coco_listing(file: Path, content: Coco, options: FormOptions) -> Listing:
    """Return the images with one category; others are counted in a note.

    Raises
    ------
    DatasetError
        An identifier repeats or is unknown.
    """
    categories = _by_id(content.categories, f"{file}, categories")
    images = _by_id(content.images, f"{file}, images")
    shown: dict[Identifier, set[Identifier]] = {identifier: set() for identifier in images}
    for number, one in enumerate(content.annotations):
        place = f"{file}, annotations[{number}]"
        if one.image_id not in images:
            raise DatasetError(f"{place}: image_id {one.image_id!r} is not among the images; fix the file")
        if one.category_id is None:
            continue
        if one.category_id not in categories:
            raise DatasetError(f"{place}: category_id {one.category_id!r} is not among the categories; fix the file")
        shown[one.image_id].add(one.category_id)
    names = {identifier: category.name for identifier, category in categories.items()}
    others = Counter(
        "without a category" if not found else "with several categories"
        for found in shown.values()
        if len({names[identifier] for identifier in found}) != 1
    )
    notes = (*not_used("image", others), *_notes_on_names(names, shown))
    return Listing(file, _rows(file, content, names, shown, options.split_column != ""), notes)


def _rows(
    file: Path, content: Coco, names: dict[Identifier, str], shown: dict[Identifier, set[Identifier]], parts: bool
) -> Iterator[Listed]:
    for number, image in enumerate(content.images):
        found = {names[identifier] for identifier in shown[image.id]}
        if len(found) == 1:
            yield Listed(image.file_name, found.pop(), image.split if parts else None, f"{file}, images[{number}]")


def _by_id(entries: list[Entry], place: str) -> dict[Identifier, Entry]:
    """Return entries by their identifiers; raises DatasetError for one that repeats."""
    found: dict[Identifier, Entry] = {}
    for number, entry in enumerate(entries):
        if found.setdefault(entry.id, entry) is not entry:
            raise DatasetError(f"{place}[{number}]: id {entry.id!r} is used twice, expected once; fix the file")
    return found


def _notes_on_names(names: dict[Identifier, str], shown: dict[Identifier, set[Identifier]]) -> list[str]:
    """Return notes on names of several categories, and on categories of no image."""
    used = {names[identifier] for found in shown.values() for identifier in found}
    repeated = [name for name, count in Counter(names.values()).items() if count > 1]
    unused = [name for name in dict.fromkeys(names.values()) if name not in used]
    notes = [f"categories of the same name are one class: {listed(repeated)}"] if repeated else []
    return [*notes, *([f"categories without an image are left out: {listed(unused)}"] if unused else [])]
