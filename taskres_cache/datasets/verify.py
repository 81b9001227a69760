"""Check that a data set is complete: all listed images exist and can be decoded."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from taskres_cache.datasets.dataset import Dataset, Item
from taskres_cache.datasets.images import ABSENT
from taskres_cache.datasets.paper.paper_dataset import Counts

BLOCK = 256  # images per call of the threads


@dataclass(frozen=True)
class Verification:
    """Result of checking every image.

    Parameters
    ----------
    counts : Counts
        Number of classes, and of images per partition.
    faults : dict of Item to str
        What is wrong with each bad image, in list order.
    """

    counts: Counts
    faults: dict[Item, str]


def verify_dataset(dataset: Dataset, advance: Callable[[int], None]) -> Verification:
    """Decode every image of a data set; errors are returned, not raised.

    Parameters
    ----------
    dataset : Dataset
        The data set.
    advance : callable
        Called after each block with its number of images.
    """
    items = [item for partition in dataset.partitions.values() for item in partition]
    faults: dict[Item, str] = {}
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # decoders release the GIL
        for start in range(0, len(items), BLOCK):
            block = items[start : start + BLOCK]
            found = zip(block, threads.map(lambda item: _fault(dataset, item), block), strict=True)
            faults.update((item, fault) for item, fault in found if fault is not None)
            advance(len(block))
    return Verification(counts_of(dataset), faults)


def counts_of(dataset: Dataset) -> Counts:
    """Return the number of classes, and of images per partition."""
    sizes = {partition: len(items) for partition, items in dataset.partitions.items()}
    return Counts(len(dataset.classnames), **sizes)


def _fault(dataset: Dataset, item: Item) -> str | None:
    """Return what is wrong with an image, or None."""
    if dataset.source.stamp(item.path) == ABSENT:
        return "missing"
    try:
        dataset.source.read(item.path)
    except Exception as error:  # noqa: BLE001  Pillow's decoders raise nearly any type of exception
        return " ".join(str(error).split()) or type(error).__name__
    return None
