"""Runs of one method as tables: accuracy over shots, and what val accuracy chose."""

from collections.abc import Sequence
from typing import Any

from taskres_cache.reporting.tables import Table, percent, signed
from taskres_cache.runs.summary import Summary


def method_table(summaries: Sequence[Summary], title: str) -> Table:
    """Return one method's accuracy over shots, with that of its base where that is not zero-shot's own."""
    own_base = not summaries[0].method.startswith("taskres-regular")
    base = ["base %"] if own_base else []
    rows = tuple(
        (
            str(row.shots),
            ",".join(map(str, row.seeds)),
            percent(row.zero_shot_accuracy),
            *([percent(row.mean_base_accuracy)] if own_base else []),
            percent(row.mean_val_accuracy),
            percent(row.mean_test_accuracy),
            percent(row.std_test_accuracy),
            signed(row.gain),
        )
        for row in summaries
    )
    columns = ("shots", "seeds", "zero-shot %", *base, "val %", "test %", "std", "gain")
    return Table(f"{title}: test accuracy, mean and standard deviation over seeds", columns, rows, left=0)


def choice_table(all_metrics: Sequence[dict[str, Any]], title: str) -> Table:
    """Return what val accuracy chose for each shot count and seed, from how many, and what it came to."""
    rows = tuple(
        (
            str(metrics["shots"]),
            str(metrics["seed"]),
            *(f"{metrics['chosen'][name]:g}" for name in ("alpha", "lr", "weight_decay")),
            str(len(metrics["candidates"])),
            percent(metrics["val_accuracy"]),
            percent(metrics["test_accuracy"]),
        )
        for metrics in all_metrics
    )
    columns = ("shots", "seed", "alpha", "lr", "weight decay", "out of", "val %", "test %")
    return Table(f"{title}: chosen by val accuracy", columns, rows, left=0)
