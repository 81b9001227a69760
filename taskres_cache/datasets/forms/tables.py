"""Tables of images as Hugging Face's `datasets` writes them: folders of Parquet or Arrow files, and their columns."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from taskres_cache.datasets.class_names import listed
from taskres_cache.datasets.dataset import Dataset
from taskres_cache.datasets.folder import PARTITION_NAMES
from taskres_cache.datasets.forms.form import Form, FormOptions, default_name
from taskres_cache.datasets.forms.lists.names import LABEL_NAMES, plain
from taskres_cache.datasets.forms.parts import in_stored_order, with_usable_parts
from taskres_cache.datasets.forms.rows import Row, dataset_of_rows
from taskres_cache.datasets.forms.shard_names import parts_of
from taskres_cache.datasets.images import is_image_name
from taskres_cache.datasets.packed.table_images import TableImages
from taskres_cache.datasets.packed.tables import TableFile, first_features, open_table
from taskres_cache.datasets.survey import is_system_name
from taskres_cache.errors import DatasetError, UnknownNameError

IMAGE_COLUMNS = ("image", "img", "picture", "photo", "jpg", "png")
SAVED, INFO, SAVED_SEVERAL = "state.json", "dataset_info.json", "dataset_dict.json"  # what `save_to_disk` writes
MOST_SUBFOLDERS, FIRST_FILES = 32, 20_000
SUFFIXES = (".parquet", ".arrow")


@dataclass(frozen=True)
class Part:
    """One table of a data set.

    Parameters
    ----------
    name : str
        First part of the paths of its images.
    split : str
        Its part, such as "train"; empty if its name is none.
    files : tuple of TableFile
        Its files in row order.
    """

    name: str
    split: str
    files: tuple[TableFile, ...]


def dataset_of_tables(
    parts: Sequence[Part], source: TableImages, options: FormOptions, name: str, notes: Sequence[str] = ()
) -> Dataset:
    """Return the data set of tables whose image column is that of the source.

    Raises
    ------
    DatasetError
        It is unclear which column has the class, or a label is unusable.
    UnknownNameError
        A named column does not exist.
    """
    features = first_features([file for part in parts for file in part.files])
    label = _label_column(features, options, source.location)
    others: Counter[str] = Counter()
    rows = list(_rows(parts, features, label, _split_column(parts, features, options, source.location), others))
    gathered = list(notes)
    if not rows:
        raise DatasetError(f"{source.location} has no row with a label in the column {label!r}; check --label-column")
    rows = with_usable_parts(rows, gathered)
    gathered += [f"{count} rows not used: {kind}" for kind, count in others.items()]
    position = {row.path: number for number, row in enumerate(rows)}
    dataset = dataset_of_rows(source, options.name or name, rows, options.split_seed, gathered)
    return in_stored_order(dataset, position.__getitem__)


def image_column(features: Mapping[str, Mapping[str, Any]], wanted: str | None, location: Path) -> str:
    """Return the column of the images: the named one, the only one of the type Image, or one with a usual name."""
    if wanted:
        return _known(wanted, features, location)
    images = [name for name, feature in features.items() if feature.get("_type") == "Image"]
    usual = [name for name in IMAGE_COLUMNS if name in images]
    if len(images) == 1 or usual:
        return (usual or images)[0]
    found = f"image columns {listed(images)}" if images else f"no image column, but {listed(features)}"
    raise DatasetError(f"{location} has {found}; name the column of the images with --path-column")


def read_table(typed: str, options: FormOptions) -> Dataset:
    """Return the data set in a Parquet or Arrow file, or in a folder of them.

    Raises
    ------
    DatasetError
        A file is damaged, or it is unclear which column has the image or the class.
    UnknownNameError
        A named column does not exist.
    MissingExtraError
        pyarrow is not installed.
    """
    location = Path(typed)
    if not location.exists():
        raise DatasetError(f"{location} does not exist; pass the path of a table")
    parts, notes = _parts(location)
    files = [file for part in parts for file in part.files]
    if not files:
        raise DatasetError(f"{location} has no table; check what was saved there")
    column = image_column(first_features(files), options.path_column, location)
    source = TableImages(location, {part.name: part.files for part in parts}, column, str(location.absolute()))
    name = location.resolve().name if location.is_dir() else default_name(typed)
    return dataset_of_tables(parts, source, options, name, notes)


def is_table(typed: str) -> bool:
    """Return True for a Parquet or Arrow file, what `save_to_disk` wrote, and a folder with Parquet files."""
    location = Path(typed)
    if not location.is_dir():
        return typed.lower().endswith(SUFFIXES)
    if (location / SAVED).is_file() and (location / INFO).is_file():
        return True
    return (location / SAVED_SEVERAL).is_file() or bool(_parquet_files(location))


def known_split(name: str) -> str:
    """Return the part that the name of a split means: train, val or test; empty if none."""
    return PARTITION_NAMES.get(name.casefold(), "")


def usable_splits(parts: Sequence[Part]) -> tuple[list[Part], list[str]]:
    """Return the parts to use, and notes on those left out: other splits next to train, val or test."""
    if not any(part.split for part in parts):
        return list(parts), []
    notes = [
        f"{sum(file.rows for file in part.files)} rows of the split {part.name!r} are not used"
        for part in parts
        if not part.split
    ]
    return [part for part in parts if part.split], notes


def _parts(location: Path) -> tuple[list[Part], list[str]]:
    """Return the tables in a file or folder, and notes on those that are not used."""
    if location.is_file():
        return [Part(location.name, "", (open_table(location),))], []
    if (location / SAVED_SEVERAL).is_file():
        names = _json(location / SAVED_SEVERAL).get("splits")
        names = names if isinstance(names, list) else []
        safe = [name for name in names if isinstance(name, str) and Path(name).name == name]
        return usable_splits([Part(name, known_split(name), _saved_files(location / name)) for name in safe])
    if (location / SAVED).is_file():
        return [Part("rows", "", _saved_files(location))], []
    files = _parquet_files(location)
    return usable_splits(
        [
            Part(file.relative_to(location).as_posix(), part, (open_table(file),))
            for file, part in zip(files, parts_of(files), strict=True)
        ]
    )


def _parquet_files(folder: Path) -> list[Path]:
    """Return the Parquet files in a folder and its subfolders, sorted; none if a subfolder begins with images."""
    visible = [one for one in folder.iterdir() if not is_system_name(one.name)]
    subfolders = [one for one in visible if one.is_dir()]
    if len(subfolders) > MOST_SUBFOLDERS:  # class folders: looking into all would take long
        return []
    below = [file for subfolder in subfolders for file in islice(subfolder.iterdir(), FIRST_FILES)]
    if any(is_image_name(file.name) for file in below):
        return []
    return sorted(file for file in (*visible, *below) if file.suffix == ".parquet" and not is_system_name(file.name))


def _saved_files(folder: Path) -> tuple[TableFile, ...]:
    """Return the Arrow files of what `save_to_disk` wrote; no name leads out of the folder."""
    saved = _json(folder / SAVED).get("_data_files")
    names = [one.get("filename") if isinstance(one, dict) else None for one in saved] if isinstance(saved, list) else []
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise DatasetError(f"{folder / SAVED} lists no usable files; save the data set again with save_to_disk")
    return tuple(open_table(folder / str(name)) for name in names)


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"could not read {file} ({error}); save the data set again with save_to_disk") from error
    if not isinstance(found, dict):
        raise DatasetError(f"{file} is not a JSON object; save the data set again with save_to_disk")
    return found


def _label_column(features: Mapping[str, Mapping[str, Any]], options: FormOptions, location: Path) -> str:
    """Return the column of the class: the named one, that of the type ClassLabel, or one with a usual name."""
    if options.label_column:
        return _known(options.label_column, features, location)
    classes = [name for name, feature in features.items() if feature.get("_type") == "ClassLabel"]
    usual = [name for wanted in LABEL_NAMES for name in (classes or features) if plain(name) == plain(wanted)]
    if len(classes) == 1 or usual:
        return (usual or classes)[0]
    found = f"label columns {listed(classes)}" if classes else f"no label column, but {listed(features)}"
    raise DatasetError(f"{location} has {found}; name the column of the classes with --label-column")


def _split_column(
    parts: Sequence[Part], features: Mapping[str, object], options: FormOptions, location: Path
) -> str | None:
    """Return the column of the part: the named one, or `split` if the tables have no parts."""
    if options.split_column:
        return _known(options.split_column, features, location)
    has_parts = options.split_column == "" or any(part.split for part in parts)
    return "split" if "split" in features and not has_parts else None


def _known(name: str, features: Mapping[str, object], location: Path) -> str:
    if name not in features:
        raise UnknownNameError("column", name, tuple(features), f"{location} has the columns {listed(features)}")
    return name


def _rows(
    parts: Sequence[Part],
    features: Mapping[str, Mapping[str, Any]],
    label: str,
    split: str | None,
    others: Counter[str],
) -> Iterator[Row]:
    """Yield a row per image with a label; count the others."""
    names = features[label].get("names")
    names = names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None
    for part in parts:
        number = -1
        for file in part.files:
            splits = file.values(split) if split else [part.split] * file.rows
            for found, given in zip(file.values(label), splits, strict=True):
                number += 1
                path = f"{part.name}/{number}"
                classname = _class_name(found, names, f"{file.path}, row {number}")
                if classname is None:
                    others["without a label"] += 1
                else:
                    yield Row(path, classname, str(given or ""))


def _class_name(label: Any, names: Sequence[str] | None, where: str) -> str | None:
    """Return the class name of a label; None for no label, which `datasets` writes as -1."""
    if label is None or label == "" or label == -1:
        return None
    if isinstance(label, bool) or not isinstance(label, str | int):
        raise DatasetError(
            f"{where}: the label is {str(label)[:60]!r}, expected a number or a name; check --label-column"
        )
    if isinstance(label, str) or names is None:
        return str(label)
    if not 0 <= label < len(names):
        raise DatasetError(f"{where}: label {label}, expected 0 to {len(names) - 1}; fix the table")
    return names[label]


TABLE = Form("a data set of Hugging Face on disk", is_table, read_table)
