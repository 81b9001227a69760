"""Data sets, by name or from a folder, and the few-shot protocol that samples them."""

from taskres_cache.datasets.dataset import GIVEN_SPLIT, PARTITIONS, Dataset, Item, labels_of
from taskres_cache.datasets.paper.paper_dataset import Counts
from taskres_cache.datasets.registry import (
    ENTRIES,
    Entry,
    dataset_name,
    default_backbone,
    is_named,
    load_dataset,
    published_counts,
)
from taskres_cache.datasets.sampling import (
    ALL_SHOTS,
    PAPER_SEEDS,
    PAPER_SHOTS,
    FewShotSplit,
    images_per_class,
    refuse_unusable_splits,
    sample_few_shot,
    shortage_notes,
    shots_json,
    shots_of,
    shots_text,
)
from taskres_cache.datasets.verify import Verification, verify_dataset

__all__ = [
    "ALL_SHOTS",
    "ENTRIES",
    "GIVEN_SPLIT",
    "PAPER_SEEDS",
    "PAPER_SHOTS",
    "PARTITIONS",
    "Counts",
    "Dataset",
    "Entry",
    "FewShotSplit",
    "Item",
    "Verification",
    "dataset_name",
    "default_backbone",
    "images_per_class",
    "is_named",
    "labels_of",
    "load_dataset",
    "published_counts",
    "refuse_unusable_splits",
    "sample_few_shot",
    "shortage_notes",
    "shots_json",
    "shots_of",
    "shots_text",
    "verify_dataset",
]
