"""Few-shot sampling by the CoOp protocol, identical to the last index.

Axes: N items of a list; samples are positions in that list.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from taskres_cache.errors import OptionError

PAPER_SHOTS = (1, 2, 4, 8, 16)
PAPER_SEEDS = (1, 2, 3)
VAL_SHOTS_AT_MOST = 4  # the protocol gives a few-shot method at most four validation images per class


@dataclass(frozen=True)
class FewShotSplit:
    """Positions in the train and val lists of a data set, in the order of the draw.

    Parameters
    ----------
    train, val : tuple of int
        The positions.
    """

    train: tuple[int, ...]
    val: tuple[int, ...]


def sample_few_shot(train_labels: Sequence[int], val_labels: Sequence[int], shots: int, seed: int) -> FewShotSplit:
    """Draw `shots` train items and `min(shots, 4)` val items per class with one generator.

    Parameters
    ----------
    train_labels, val_labels : sequence of int
        Label of each item, in list order; val may be empty (ImageNet has no val split).
    shots : int
        Train items per class.
    seed : int
        Seed of `random.Random`. The val draw continues with the generator of the train draw.

    Returns
    -------
    FewShotSplit
        Positions, class by class in order of first appearance.

    Notes
    -----
    Source: CoOp's `generate_fewshot_dataset`. Classes are ordered by their first appearance in the list, not by label;
    another order would change every published index.
    """
    rng = Random(seed)
    train = _draw(train_labels, shots, rng)
    val = _draw(val_labels, min(shots, VAL_SHOTS_AT_MOST), rng)
    return FewShotSplit(train, val)


def refuse_unusable_splits(shots: Sequence[int], seeds: Sequence[int]) -> None:
    """Raise OptionError unless there are shots and seeds, and all shots are positive."""
    if not shots or not seeds or min(shots) < 1:
        raise OptionError(f"shots must be positive and seeds given, got shots {tuple(shots)} and seeds {tuple(seeds)}")


def short_classes(train_labels: Sequence[int], shots: int) -> dict[int, int]:
    """Return the number of train items by label, for classes with fewer than `shots`."""
    counts = {label: len(positions) for label, positions in _positions_by_label(train_labels).items()}
    return {label: count for label, count in counts.items() if count < shots}


def shortage_notes(classnames: Sequence[str], train_labels: Sequence[int], shots: int) -> tuple[str, ...]:
    """Return one line for each class with fewer than `shots` train items."""
    return tuple(
        f"class {classnames[label]!r} has {count} train images, fewer than {shots} shots; all are used"
        for label, count in short_classes(train_labels, shots).items()
    )


def _draw(labels: Sequence[int], shots: int, rng: Random) -> tuple[int, ...]:
    """Draw `shots` positions per class; a class with fewer gives all of them in list order, without a draw."""
    drawn: list[int] = []
    for positions in _positions_by_label(labels).values():
        drawn.extend(rng.sample(positions, shots) if len(positions) >= shots else positions)
    return tuple(drawn)


def _positions_by_label(labels: Sequence[int]) -> dict[int, list[int]]:
    """Return the positions by label, labels in order of first appearance."""
    positions: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        positions.setdefault(int(label), []).append(position)
    return positions
