"""Few-shot sampling by the CoOp protocol, identical to the last index.

Axes: N items of a list; samples are positions in that list.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random

from taskres_cache.errors import OptionError

PAPER_SHOTS = (1, 2, 4, 8, 16)
PAPER_SEEDS = (1, 2, 3)
ALL_SHOTS = 2**31 - 1  # more images than any class has: every image is drawn, in list order
MOST_NOTED = 5  # short classes that get a note each
ALL = "all"  # how people and files see ALL_SHOTS
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


def sample_few_shot(
    train_labels: Sequence[int],
    val_labels: Sequence[int],
    shots: int,
    seed: int,
    val_per_class: int = VAL_SHOTS_AT_MOST,
) -> FewShotSplit:
    """Draw `shots` train items and `min(shots, val_per_class)` val items per class with one generator.

    Parameters
    ----------
    train_labels, val_labels : sequence of int
        Label of each item, in list order; val may be empty (ImageNet has no val split).
    shots : int
        Train items per class; ALL_SHOTS for all.
    seed : int
        Seed of `random.Random`. The val draw continues with the generator of the train draw.
    val_per_class : int, optional
        Most val items per class, by the protocol 4; ALL_SHOTS for no limit.

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
    val = _draw(val_labels, min(shots, val_per_class), rng)
    return FewShotSplit(train, val)


def refuse_unusable_splits(shots: Sequence[int], seeds: Sequence[int]) -> None:
    """Raise OptionError unless there are shots and seeds, and all shots are positive."""
    if not shots or not seeds or min(shots) < 1:
        counts = ", ".join(map(shots_text, shots))
        raise OptionError(f"shots must be positive and seeds given, got shots ({counts}) and seeds {tuple(seeds)}")


def shots_text(shots: int) -> str:
    """Return a shot count as people read it and as names of folders have it: `all` for ALL_SHOTS."""
    return ALL if shots == ALL_SHOTS else str(shots)


def shots_json(shots: int) -> int | str:
    """Return a shot count as JSON has it: a number, or `all`."""
    return ALL if shots == ALL_SHOTS else shots


def shots_of(written: int | str) -> int:
    """Return the shot count that `shots_text` or `shots_json` wrote; raises ValueError for other text."""
    return ALL_SHOTS if written == ALL else int(written)


def images_per_class(shots: int, images: int, classes: int) -> int:
    """Return the shots of a split of `images` training images: for ALL_SHOTS their mean over classes, at least 1."""
    return max(1, round(images / classes)) if shots == ALL_SHOTS else shots


def short_classes(train_labels: Sequence[int], shots: int) -> dict[int, int]:
    """Return the number of train items by label, for classes with fewer than `shots`."""
    counts = {label: len(positions) for label, positions in _positions_by_label(train_labels).items()}
    return {label: count for label, count in counts.items() if count < shots}


def shortage_notes(classnames: Sequence[str], train_labels: Sequence[int], shots: Iterable[int]) -> tuple[str, ...]:
    """Return notes on classes with fewer train items than the most `shots`, of which ALL_SHOTS is none.

    One line per class, or one for all if there are many.
    """
    most = max((count for count in shots if count != ALL_SHOTS), default=0)
    short = short_classes(train_labels, most)
    if len(short) > MOST_NOTED:
        fewest = min(short, key=lambda label: short[label])
        return (
            f"{len(short)} classes have fewer than {most} train images, the fewest {classnames[fewest]!r} with "
            f"{short[fewest]}; all of theirs are used at {most} shots",
        )
    return tuple(
        f"class {classnames[label]!r} has {count} train images, fewer than {most} shots; all are used"
        for label, count in short.items()
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
