"""Whether a data set is complete: every image that its lists name is there and opens, and how many there are."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from taskres_cache.datasets.dataset import Dataset, Item
from taskres_cache.datasets.images import ABSENT
from taskres_cache.datasets.paper.paper_dataset import Counts

BLOCK = 256  # images that are handed to the threads at a time


@dataclass(frozen=True)
class Verification:
    """What a look at every image came to.

    Parameters
    ----------
    counts : classes, and images in each partition.
    faults : item -> what is wrong with it, in list order.
    """

    counts: Counts
    faults: dict[Item, str]


def verify_dataset(dataset: Dataset, advance: Callable[[int], None]) -> Verification:
    """Decode every image of a data set and return what is wrong; `advance` hears how many more were seen."""
    items = [item for partition in dataset.partitions.values() for item in partition]
    faults: dict[Item, str] = {}
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # decoders let go of Python's lock
        for start in range(0, len(items), BLOCK):
            block = items[start : start + BLOCK]
            found = zip(block, threads.map(lambda item: _fault(dataset, item), block), strict=True)
            faults.update((item, fault) for item, fault in found if fault is not None)
            advance(len(block))
    return Verification(counts_of(dataset), faults)


def counts_of(dataset: Dataset) -> Counts:
    """Return how many classes a data set has, and images in each partition."""
    sizes = {partition: len(items) for partition, items in dataset.partitions.items()}
    return Counts(len(dataset.classnames), **sizes)


def _fault(dataset: Dataset, item: Item) -> str | None:
    """Return what is wrong with an image; None when it opens."""
    if dataset.source.stamp(item.path) == ABSENT:
        return "not there"
    try:
        dataset.source.read(item.path)
    except Exception as error:  # noqa: BLE001  broken files make Pillow's many decoders raise nearly anything
        return " ".join(str(error).split()) or type(error).__name__
    return None
