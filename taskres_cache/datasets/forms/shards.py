"""WebDataset shards: tar archives in which files with the same name before the first dot are one sample.

The label is in `<key>.cls` (a number or a name), `<key>.json` or `<key>.txt`. Shards are indexed by their headers once
and never unpacked.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from taskres_cache.datasets.dataset import Dataset
from taskres_cache.datasets.folder import PARTITION_NAMES
from taskres_cache.datasets.forms.form import Form, FormOptions
from taskres_cache.datasets.forms.parts import in_stored_order, with_usable_parts
from taskres_cache.datasets.forms.rows import Row, dataset_of_rows
from taskres_cache.datasets.forms.shard_names import (
    MOST_SHARDS,
    is_pattern,
    labelled_names,
    parts_of,
    pattern_name,
    shards_of,
)
from taskres_cache.datasets.images import is_image_name
from taskres_cache.datasets.packed.images import PackedImages
from taskres_cache.datasets.packed.indexing import add_tar
from taskres_cache.datasets.packed.members import Members
from taskres_cache.datasets.packed.unpacking import StoredTar, stored_tar
from taskres_cache.datasets.survey import is_system_name, kind_of_file, unused_note
from taskres_cache.errors import DatasetError, OptionError
from taskres_cache.system.names import shown

KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)  # as WebDataset parts names
LABEL_SUFFIXES = ("cls", "json", "txt")  # in the order in which they are asked for the label
JSON_KEYS = ("class_name", "classname", "class", "label", "cls", "category", "label_name")
NAME_FILES = ("classnames.txt", "classes.txt")
LARGEST_LABEL = 1 << 20  # bytes of a label file
LONGEST_NAME = 200
CAPTIONS = 0.5  # share of different labels in .txt files above which they are captions


def are_samples(names: Iterable[str]) -> bool:
    """Return True if files are samples with labels, rather than images in class folders."""
    images, labels = set(), set()
    in_folders = False
    for key, suffix, name in _keyed(names):
        if is_image_name(name.rpartition("/")[2]):
            images.add(key)
            in_folders = in_folders or "/" in name.removeprefix("./")
        elif suffix in LABEL_SUFFIXES:
            labels.add((key, suffix))
    found = {suffix for key, suffix in labels if key in images}
    return "cls" in found or (bool(found) and not in_folders)


def read_shards(typed: str, options: FormOptions) -> Dataset:
    """Return the data set in the shards that a pattern names.

    Raises
    ------
    DatasetError
        A shard is missing or damaged, a member is refused, or a label is unusable.
    """
    shards = _tars_in(Path(typed)) if Path(typed).is_dir() else shards_of(typed)
    tars = []
    for shard in shards:
        tar = stored_tar(shard)
        if tar is None:
            raise DatasetError(f"{shard} is not an intact tar archive; replace it with an intact copy")
        tars.append(tar)
    name = Path(typed).resolve().name if Path(typed).is_dir() else pattern_name(typed)
    return read_tars(tars, Path(typed), options, name)


def read_tars(tars: Sequence[StoredTar], location: Path, options: FormOptions, name: str) -> Dataset:
    """Return the data set in shards.

    Parameters
    ----------
    tars : sequence of StoredTar
        The shards, in reading order.
    location : Path
        What the user typed.
    options : FormOptions
        `label_column` and `split_column` are keys of the JSON files.
    name : str
        Name of the data set if the options have none.
    """
    if options.path_column:
        raise OptionError(f"{str(location)!r} has no column of paths; --path-column is for lists and tables")
    members = Members()
    shards = [tar.location for tar in tars]
    part_of_shard = {}
    for tar, label, part in zip(tars, labelled_names(shards), parts_of(shards), strict=True):
        add_tar(members, tar, f"{label}/")
        part_of_shard[label] = part
    source = PackedImages(location, members, unpacked=tuple(copy for tar in tars for copy in tar.copies))
    reading = _Reading(source, options, _class_names(shards[0].parent), part_of_shard)
    notes: list[str] = []
    rows = with_usable_parts(reading.rows(), notes)
    notes += unused_note(+reading.others)
    if not rows:
        raise DatasetError(
            f"{location} has no image with a label, expected files such as 0001.jpg and 0001.cls (.json, .txt); "
            f"{'; '.join(notes) or 'it has no files'}"
        )
    dataset = dataset_of_rows(source, options.name or name, rows, options.split_seed, notes)
    return in_stored_order(dataset, members.rows.__getitem__)


@dataclass
class _Sample:
    """The files of one sample: its image, its label files by suffix."""

    image: str = ""
    labels: dict[str, str] = field(default_factory=dict)


@dataclass
class _Reading:
    """Shards while their labels are read."""

    source: PackedImages
    options: FormOptions
    classnames: tuple[str, ...]
    part_of_shard: dict[str, str]
    others: Counter[str] = field(default_factory=Counter)
    known: dict[str, str] = field(default_factory=dict)
    read_from: Counter[str] = field(default_factory=Counter)

    def rows(self) -> list[Row]:
        """Return one row per image with a label, in stored order; raises DatasetError for captions."""
        rows = []
        for sample in self._samples():
            if not sample.image:
                self.others["labels without an image"] += len(sample.labels)
                continue
            suffix, label, part = self._label(sample)
            self._count_unused(sample, suffix if label else "")
            if label:
                self.read_from[suffix] += 1
                name = self.known.setdefault(label, label)  # one string per class, not per image
                rows.append(Row(sample.image, name, part or self._part(sample.image)))
        if self.read_from["txt"] > 20 and len(self.known) > CAPTIONS * len(rows):
            raise DatasetError(
                f"{self.source.location}: {len(self.known)} different labels of {len(rows)} images; the .txt files "
                "seem to be captions, expected class names; add .cls files"
            )
        return rows

    def _samples(self) -> Iterable[_Sample]:
        """Return the samples in the order of their first files; count the files that belong to none."""
        samples: dict[str, _Sample] = {}
        names = [path for path in self.source.members.rows if not any(map(is_system_name, path.split("/")[1:]))]
        self.others += Counter(kind_of_file(name) for name in names if KEY.fullmatch(name) is None)
        for key, suffix, name in _keyed(names):
            if is_image_name(name.rpartition("/")[2]):
                sample = samples.setdefault(key, _Sample())
                if sample.image:
                    self.others["further images of a sample"] += 1
                if not sample.image or _rank(name) < _rank(sample.image):
                    sample.image = name
            elif suffix in LABEL_SUFFIXES:
                samples.setdefault(key, _Sample()).labels[suffix] = name
            else:
                self.others[kind_of_file(name)] += 1
        return samples.values()

    def _label(self, sample: _Sample) -> tuple[str, str, str]:
        """Return the suffix of the file that has the label, the class name and the part; empty where there is none."""
        for suffix in LABEL_SUFFIXES:
            path = sample.labels.get(suffix)
            if path is None:
                continue
            content = self._text(path)
            found: Any = content.strip()
            part = ""
            if suffix == "json":
                found, part = self._of_json(content, path)
            if found is not None and found != "":
                return suffix, self._class_name(found, path), part
        return "", "", ""

    def _of_json(self, content: str, path: str) -> tuple[Any, str]:
        """Return the label and the part that a JSON file has, or None and empty text."""
        try:
            known = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{path} is not JSON ({error}); fix the shard") from None
        if not isinstance(known, dict):
            raise DatasetError(f"{path} is not a JSON object, expected a key such as 'label'; fix the shard")
        keys = (self.options.label_column,) if self.options.label_column else JSON_KEYS
        values = [known[key] for key in keys if known.get(key) is not None]
        named = [value for value in values if isinstance(value, str)]  # a name is better than its number
        part = known.get(self.options.split_column) if self.options.split_column else ""
        return next(iter([*named, *values]), None), str(part or "")

    def _class_name(self, label: Any, path: str) -> str:
        """Return the class name for a label; empty for -1, which stands for none."""
        if isinstance(label, bool) or not isinstance(label, str | int):
            raise DatasetError(f"{path}: the label is {shown(json.dumps(label))}, expected a number or a name")
        try:
            number = int(label)
        except ValueError:
            number = None
        if number is None:
            text = str(label)
            if len(text) > LONGEST_NAME or "\n" in text or "\0" in text:
                raise DatasetError(f"{path}: {shown(text)} is no class name (a caption?); add .cls files to the shards")
            return text
        if number == -1 or not self.classnames:
            return "" if number == -1 else str(number)
        if not 0 <= number < len(self.classnames):
            raise DatasetError(
                f"{path}: label {number}, expected 0 to {len(self.classnames) - 1} (lines of the file of class names)"
            )
        return self.classnames[number]

    def _text(self, path: str) -> str:
        """Return the text of a label file."""
        if self.source.members[path].size > LARGEST_LABEL:
            raise DatasetError(f"{path} has more than {LARGEST_LABEL} bytes, which is no label; fix the shard")
        try:
            return self.source.content(path).decode("utf-8-sig")
        except (OSError, UnicodeError) as error:
            raise DatasetError(f"{path} is no text ({error}); fix the shard") from error

    def _count_unused(self, sample: _Sample, used: str) -> None:
        """Count the label files that were not used, and an image without a label."""
        self.others.update(f".{suffix}" for suffix in sample.labels if suffix != used)
        if not used:
            self.others["images without a label"] += 1

    def _part(self, image: str) -> str:
        return next((part for shard, part in self.part_of_shard.items() if image.startswith(f"{shard}/")), "")


def _keyed(names: Iterable[str]) -> Iterable[tuple[str, str, str]]:
    """Yield (key, suffix, name) of each file that belongs to a sample."""
    for name in names:
        parted = KEY.fullmatch(name)
        if parted is not None:
            yield parted[1], parted[2].lower(), name


def _rank(name: str) -> tuple[bool, bool, str]:
    """Return the rank of an image among those of its sample: `jpg` before `mask.png`."""
    suffixes = name.rpartition("/")[2].partition(".")[2].lower()
    return "." in suffixes, not suffixes.startswith("jp"), suffixes


def _class_names(folder: Path) -> tuple[str, ...]:
    """Return the class names in a text file next to the shards, one per line; none if there is no such file."""
    file = next((folder / name for name in NAME_FILES if (folder / name).is_file()), None)
    if file is None:
        return ()
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeError) as error:
        raise DatasetError(f"could not read {file} ({error}); fix it, or move it elsewhere") from error
    names = tuple(line.strip() for line in lines if line.strip())
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DatasetError(f"{file} has {shown(repeated[0])} twice, expected one class per line; fix it")
    return names


def _tars_in(folder: Path) -> list[Path]:
    """Return the tar archives in a folder, or in its folders if these are train, val and test; else none."""
    visible = [one for one in folder.iterdir() if not is_system_name(one.name)]
    folders = [one for one in visible if one.is_dir()]
    if any(one.name.casefold() not in PARTITION_NAMES for one in folders):
        return []
    below = [one for subfolder in folders for one in islice(subfolder.iterdir(), MOST_SHARDS)]
    if any(one.is_dir() and not is_system_name(one.name) for one in below):
        return []
    return sorted(file for file in (*visible, *below) if file.suffix == ".tar" and not file.name.startswith("."))


def is_shards(typed: str) -> bool:
    """Return True for a pattern of archives, and for a folder of tar archives without class folders."""
    if not Path(typed).is_dir():
        return is_pattern(typed) and typed.lower().endswith((".tar", ".gz", ".tgz", ".zst", ".bz2", ".xz"))
    return bool(_tars_in(Path(typed)))


SHARDS = Form("WebDataset shards", is_shards, read_shards)
