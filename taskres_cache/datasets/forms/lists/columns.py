"""Which columns of a table have the image, the class and the part."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from taskres_cache.datasets.class_names import listed
from taskres_cache.datasets.forms.form import FormOptions
from taskres_cache.datasets.forms.lists.names import (
    LABEL_NAMES,
    PATH_NAMES,
    SPLIT_NAMES,
    is_part_name,
    looks_like_image,
    plain,
)
from taskres_cache.datasets.forms.lists.tables import Table
from taskres_cache.errors import DatasetError, UnknownNameError


@dataclass(frozen=True)
class Columns:
    """The columns to read.

    Parameters
    ----------
    path, label : str
        Columns of the image and its class.
    split : str or None
        Column of the part; None if there is none.
    notes : tuple of str
        Choices among several columns that were possible.
    """

    path: str
    label: str
    split: str | None
    notes: tuple[str, ...] = ()


def find_columns(table: Table, options: FormOptions, is_image: Callable[[object], bool] = looks_like_image) -> Columns:
    """Return the columns that the user named, else those with usual names, else those whose content tells.

    Parameters
    ----------
    table : Table
        The table.
    options : FormOptions
        Columns that the user named.
    is_image : callable
        Returns True for a value that is an image or its path.

    Raises
    ------
    UnknownNameError
        A column that the user named does not exist.
    DatasetError
        It is unclear which column has the image or the class.
    """
    return _Finding(table, options, is_image).columns()


class _Finding:
    """One table while its columns are found."""

    def __init__(self, table: Table, options: FormOptions, is_image: Callable[[object], bool]) -> None:
        self.table, self.options, self.is_image = table, options, is_image
        sample = [record for _, record in table.sample()]
        self.values = {column: [record.get(column) for record in sample] for column in table.columns}
        self.notes: list[str] = []

    def columns(self) -> Columns:
        path = self._given(self.options.path_column) or self._path()
        split = self._given(self.options.split_column)
        if split is None and self.options.split_column is None:
            split = self._usual(SPLIT_NAMES, path) or self._split_without_name(path)
        label = self._given(self.options.label_column) or self._label(path, split)
        return Columns(path, label, split, tuple(self.notes))

    def _given(self, name: str | None) -> str | None:
        if not name:
            return None
        found = [column for column in self.table.columns if column == name]
        found = found or [column for column in self.table.columns if plain(column) == plain(name)]
        if not found:
            known = listed(self.table.columns)
            raise UnknownNameError("column", name, self.table.columns, f"{self.table.title} has the columns {known}")
        return found[0]

    def _usual(self, names: Sequence[str], *taken: str | None) -> str | None:
        """Return the column with the best of some usual names; note if there are others."""
        found = [column for name in names for column in self.table.columns if plain(column) == name]
        found = [column for column in dict.fromkeys(found) if column not in taken]
        if names is LABEL_NAMES and len(found) > 1:
            self.notes.append(
                f"classes are from column {found[0]!r} of {self.table.title}, not from {listed(found[1:])}; "
                "--label-column chooses"
            )
        return found[0] if found else None

    def _path(self) -> str:
        images = [column for column in self.table.columns if self._mostly(column, self.is_image)]
        usual = [column for name in PATH_NAMES for column in self.table.columns if plain(column) == name]
        found = [column for column in usual if column in images] or usual or images
        if (len(found) > 1 and not usual) or not found:
            raise DatasetError(f"{self._described()}: unclear which one has the image files; pass --path-column")
        return found[0]

    def _label(self, path: str, split: str | None) -> str:
        usual = self._usual(LABEL_NAMES, path, split)
        others = [column for column in self.table.columns if column not in (path, split)]
        if usual is None and len(others) != 1:
            raise DatasetError(f"{self._described()}: unclear which one has the classes; pass --label-column")
        return usual or others[0]

    def _split_without_name(self, path: str) -> str | None:
        """Return the last column of a file without header, if it has nothing but names of parts."""
        last = self.table.columns[-1]
        if self.table.named or len(self.table.columns) < 3 or last == path:
            return None
        return last if self._mostly(last, lambda value: isinstance(value, str) and is_part_name(value), 1.0) else None

    def _mostly(self, column: str, test: Callable[[object], bool], share: float = 0.5) -> bool:
        """Return True if a share of a column's first values passes a test."""
        values = self.values[column]
        return bool(values) and sum(map(test, values)) >= share * len(values)

    def _described(self) -> str:
        columns, title = self.table.columns, self.table.title
        if not columns:
            return f"{title} has no columns"
        if not self.table.named:
            return f"{title} has {len(columns)} columns without names ('1' to '{len(columns)}')"
        return f"{title} has the columns {listed(columns)}"
