"""Images that are the same: byte-identical files of a user's data set, and images with the same feature.

Axes: N images, D embedding.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from taskres_cache.datasets import ENTRIES, PARTITIONS, Dataset, Item
from taskres_cache.datasets.images import ABSENT, ImageSource, PackedSource
from taskres_cache.errors import DatasetError

ROWS = 256  # rows of features in memory at a time
MANY = 3  # images with one feature, and
SHARE = 0.05  # share of all images that share their feature with another, from which there is a note
SHOWN = 3
BEFORE = {"train": ("test", "val"), "val": ("test",), "test": ()}  # in which parts a copy stays instead


def without_copies(dataset: Dataset) -> tuple[Dataset, tuple[str, ...]]:
    """Return a data set of which no two parts have a byte-identical file, and notes that count the copies.

    A copy stays in test, else in val: an image that was trained on says nothing in test. Known data sets are left as
    they are published.

    Raises
    ------
    DatasetError
        All train images of a class are copies.
    """
    if dataset.name in ENTRIES or dataset.source.orientation == "stored":
        return dataset, ()
    first: dict[str, dict[str, Item]] = {"test": {}, "val": {}, "train": {}}
    kept: dict[str, list[Item]] = {}
    left_out: list[tuple[Item, Item]] = []
    repeated = 0
    digests = _digests(dataset.source, [item.path for part in PARTITIONS for item in dataset.partitions[part]])
    for part in first:  # test before val before train
        kept[part] = []
        for item in dataset.partitions[part]:
            digest = digests.get(item.path)
            original = next((first[other][digest] for other in BEFORE[part] if digest in first[other]), None)
            if digest is None or original is None:
                kept[part].append(item)
            else:
                left_out.append((item, original))
            if digest is not None and original is None:
                repeated += digest in first[part]
                first[part].setdefault(digest, item)
    if not left_out:
        return dataset, _note_on_repeated(repeated)
    _refuse_empty_classes(dataset, kept["train"], left_out)
    parts: Any = {part: tuple(items) for part, items in kept.items()}
    listed = ", ".join(f"{item.path} (of {original.path})" for item, original in left_out[:SHOWN])
    more = f" and {len(left_out) - SHOWN} more" if len(left_out) > SHOWN else ""
    note = f"{len(left_out)} train or val images are left out, as copies of images in test or val: {listed}{more}"
    return replace(dataset, **parts), (note, *_note_on_repeated(repeated))


def _note_on_repeated(repeated: int) -> tuple[str, ...]:
    if not repeated:
        return ()
    some, its = ("1 image has", "its") if repeated == 1 else (f"{repeated} images have", "their")
    return (f"{some} the same bytes as another image of {its} part",)


def _refuse_empty_classes(dataset: Dataset, train: Iterable[Item], left_out: Sequence[tuple[Item, Item]]) -> None:
    remaining = {item.label for item in train}
    for item, original in left_out:
        if item.label not in remaining and not dataset.test_only:
            raise DatasetError(
                f"all train images of class {dataset.classnames[item.label]!r} are copies of images in test or val, "
                f"such as {item.path} of {original.path}; remove the copies or add images"
            )


def _digests(source: ImageSource, paths: Sequence[str]) -> dict[str, str]:
    """Return path -> digest of each image that has a copy: only files of equal size are read."""
    by_size: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        stamp = source.stamp(path)
        if stamp != ABSENT:
            by_size[stamp.split("-")[0]].append(path)
    by_digest: dict[str, list[str]] = defaultdict(list)
    for same in by_size.values():
        for path in same if len(same) > 1 else ():
            digest = _digest(source, path)
            if digest is not None:
                by_digest[digest].append(path)
    copied = {digest: same for digest, same in by_digest.items() if len(same) > 1 and _is_readable(source, same[0])}
    return {path: digest for digest, same in copied.items() for path in same}


def _is_readable(source: ImageSource, path: str) -> bool:
    """Return True if an image can be decoded; broken files are reported as unreadable, not as copies."""
    try:
        source.read(path)
    except Exception:  # noqa: BLE001  Pillow's decoders raise nearly any exception on broken files
        return False
    return True


def _digest(source: ImageSource, path: str) -> str | None:
    if isinstance(source, PackedSource):
        try:
            return hashlib.sha256(source.content(path)).hexdigest()
        except OSError:
            return None  # reported as unreadable when it is decoded
    if not source.location.is_dir():
        return source.stamp(path)  # of an archive: size and checksum of the contents
    file = source.location / path
    try:
        if not file.is_file():  # opening a pipe would block
            return None
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None  # reported as unreadable when it is decoded


def note_on_equal_features(paths: Sequence[str], features: Any) -> tuple[str, ...]:
    """Return a note if many images have the same feature (N, D): they look the same to the encoder."""
    digests = np.empty(len(paths), np.uint64)
    for start in range(0, len(paths), ROWS):
        rows = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in features[start : start + ROWS]]
        digests[start : start + ROWS] = np.frombuffer(b"".join(rows), np.uint64)
    known, counts = np.unique(digests, return_counts=True)
    count, largest = int(counts[counts > 1].sum()), int(counts.max(initial=0))
    if largest < MANY and count < max(2, SHARE * len(paths)):
        return ()
    same = np.flatnonzero(digests == known[counts.argmax()])[:SHOWN].tolist()
    shown = ", ".join(paths[row] for row in same)
    return (
        f"{count} of {len(paths)} images have the same feature as another one, such as {shown}: the encoder sees the "
        "same picture; are they blank, or copies?",
    )
