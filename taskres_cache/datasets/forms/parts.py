"""Parts and order of rows that come from shards or tables."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from taskres_cache.datasets.dataset import Dataset
from taskres_cache.datasets.forms.rows import Row


def with_usable_parts(rows: Sequence[Row], notes: list[str]) -> list[Row]:
    """Return rows with their parts if there is a test part; otherwise without, to be split here, and add a note."""
    parts = {row.split for row in rows}
    if "test" in parts or parts == {""}:
        return list(rows)
    notes.append(f"there is no test part; the images of {' and '.join(sorted(parts))} are split 60/20/20")
    return [row._replace(split="") for row in rows]


def in_stored_order(dataset: Dataset, position: Callable[[str], int]) -> Dataset:
    """Return a data set whose parts list their images in the order in which they are stored, to be read in one pass."""
    train, val, test = (
        tuple(sorted(items, key=lambda item: position(item.path))) for items in dataset.partitions.values()
    )
    return replace(dataset, train=train, val=val, test=test)
