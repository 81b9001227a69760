"""Few-shot sampling of the CoOp protocol, to the last index.

Axes: N items of a list; the samples are positions into that list.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from taskres_cache.errors import OptionError

PAPER_SHOTS = (1, 2, 4, 8, 16)
PAPER_SEEDS = (1, 2, 3)
VAL_SHOTS_AT_MOST = 4  # the protocol never lets a few-shot method see more than four validation images a class


@dataclass(frozen=True)
class FewShotSplit:
    """Positions into the train and the val list of a data set, in the order in which they were drawn."""

    train: tuple[int, ...]
    val: tuple[int, ...]


def sample_few_shot(train_labels: Sequence[int], val_labels: Sequence[int], shots: int, seed: int) -> FewShotSplit:
    """Draw `shots` train and `min(shots, 4)` val items of each class with one generator.

    Parameters
    ----------
    train_labels, val_labels : label of each item, in list order; val may be empty (ImageNet has no val split).
    shots : train items a class.
    seed : of `random.Random`; the val draw goes on with the generator that the train draw leaves behind.

    Returns
    -------
    FewShotSplit : positions, class after class in order of first appearance.

    Notes
    -----
    Source: CoOp's `generate_fewshot_dataset`. The order of the classes is that of their first appearance in the
    list, not that of their labels; changing it changes every published index.
    """
    rng = Random(seed)
    train = _draw(train_labels, shots, rng)
    val = _draw(val_labels, min(shots, VAL_SHOTS_AT_MOST), rng)
    return FewShotSplit(train, val)


def refuse_unusable_splits(shots: Sequence[int], seeds: Sequence[int]) -> None:
    """Raise OptionError unless there is a shot count and a seed, and every shot count is positive."""
    if not shots or not seeds or min(shots) < 1:
        raise OptionError(f"shots must be positive and seeds given, got shots {tuple(shots)} and seeds {tuple(seeds)}")


def short_classes(train_labels: Sequence[int], shots: int) -> dict[int, int]:
    """Return label -> number of train items, for each class that has fewer than `shots`."""
    counts = {label: len(positions) for label, positions in _positions_by_label(train_labels).items()}
    return {label: count for label, count in counts.items() if count < shots}


def shortage_notes(classnames: Sequence[str], train_labels: Sequence[int], shots: int) -> tuple[str, ...]:
    """Return one line for each class that has fewer than `shots` train items."""
    return tuple(
        f"class {classnames[label]!r} has {count} train images, fewer than {shots} shots; all are used"
        for label, count in short_classes(train_labels, shots).items()
    )


def _draw(labels: Sequence[int], shots: int, rng: Random) -> tuple[int, ...]:
    """Return `shots` positions of each class, or all of a class that has fewer (in list order, drawing nothing)."""
    drawn: list[int] = []
    for positions in _positions_by_label(labels).values():
        drawn.extend(rng.sample(positions, shots) if len(positions) >= shots else positions)
    return tuple(drawn)


def _positions_by_label(labels: Sequence[int]) -> dict[int, list[int]]:
    """Return label -> its positions, labels in order of first appearance."""
    positions: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        positions.setdefault(int(label), []).append(position)
    return positions
