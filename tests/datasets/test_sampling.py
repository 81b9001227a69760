"""Few-shot sampling: order of classes, one generator, classes with too few images."""

import json
from pathlib import Path
from random import Random

import pytest

from taskres_cache.datasets.sampling import (
    ALL_SHOTS,
    images_per_class,
    sample_few_shot,
    short_classes,
    shortage_notes,
    shots_json,
    shots_of,
    shots_text,
)
from tests.conftest import as_the_protocol_says

# A small split file in CoOp's format: [path, label, class name], classes not in the order of their labels.
SPLIT = {
    "train": [[f"img/{name}_{n}.jpg", label, name] for n in range(6) for label, name in ((2, "c"), (0, "a"), (1, "b"))],
    "val": [
        [f"img/val_{name}_{n}.jpg", label, name] for label, name in ((1, "b"), (2, "c"), (0, "a")) for n in range(5)
    ],
}


@pytest.mark.parametrize("shots", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_positions_match_the_protocol(tmp_path: Path, shots: int, seed: int) -> None:
    file = tmp_path / "split_zhou_Toy.json"
    file.write_text(json.dumps(SPLIT))
    split = json.loads(file.read_text())
    drawn = sample_few_shot([item[1] for item in split["train"]], [item[1] for item in split["val"]], shots, seed)
    train, val = as_the_protocol_says(split, shots, seed)
    assert [split["train"][position][0] for position in drawn.train] == train
    assert [split["val"][position][0] for position in drawn.val] == val


def test_known_draw() -> None:
    # Classes are interleaved (positions 0, 3, 6, ... are the first), so three draws from range(6) give all positions.
    # The literal numbers pin Python's generator, on which every published index depends.
    rng = Random(1)
    first, second, third = (rng.sample(range(6), 2) for _ in range(3))
    labels = [item[1] for item in SPLIT["train"]]
    drawn = sample_few_shot(labels, [], 2, 1)
    assert drawn.train == (
        *(3 * n for n in first),
        *(3 * n + 1 for n in second),
        *(3 * n + 2 for n in third),
    )
    assert drawn.train == (3, 12, 1, 7, 2, 11)
    assert drawn.val == ()


def test_classes_come_in_order_of_first_appearance() -> None:
    drawn = sample_few_shot([5, 5, 2, 2, 9, 9], [], 2, 3)
    assert [[5, 5, 2, 2, 9, 9][position] for position in drawn.train] == [5, 5, 2, 2, 9, 9]
    assert set(drawn.train[:2]) == {0, 1}


def test_val_takes_at_most_four() -> None:
    drawn = sample_few_shot([0] * 20 + [1] * 20, [0] * 9 + [1] * 9, 16, 1)
    assert len(drawn.train) == 32
    assert len(drawn.val) == 8


def test_a_class_with_too_few_images_is_used_whole_without_a_draw() -> None:
    drawn = sample_few_shot([0, 0, 1, 1, 1, 1, 1], [], 4, 1)
    assert drawn.train[:2] == (0, 1)
    assert drawn.train[2:] == tuple(2 + n for n in Random(1).sample(range(5), 4))
    assert short_classes([0, 0, 1, 1, 1, 1, 1], 4) == {0: 2}


def test_all_shots_are_every_train_image_in_list_order_of_each_class() -> None:
    drawn = sample_few_shot([7, 3, 7, 3, 3], [3, 7, 3], ALL_SHOTS, 1)
    assert drawn.train == (0, 2, 1, 3, 4)
    assert drawn.val == (0, 2, 1)
    assert drawn == sample_few_shot([7, 3, 7, 3, 3], [3, 7, 3], ALL_SHOTS, 2)


def test_all_shots_are_written_as_a_word_and_sort_last() -> None:
    assert (shots_text(16), shots_text(ALL_SHOTS)) == ("16", "all")
    assert (shots_json(16), shots_json(ALL_SHOTS)) == (16, "all")
    assert [shots_of(written) for written in ("16", 16, "all")] == [16, 16, ALL_SHOTS]
    assert sorted([ALL_SHOTS, 1, 16]) == [1, 16, ALL_SHOTS]
    with pytest.raises(ValueError, match="many"):
        shots_of("many")


def test_shots_of_a_split_of_all_images_are_their_mean_per_class() -> None:
    assert images_per_class(16, 90, 10) == 16
    assert images_per_class(ALL_SHOTS, 96, 10) == 10
    assert images_per_class(ALL_SHOTS, 1, 10) == 1


def test_only_counted_shots_can_be_short() -> None:
    labels = [0, 0, 1, 1, 1]
    assert shortage_notes(["a", "b"], labels, [ALL_SHOTS]) == ()
    assert shortage_notes(["a", "b"], labels, [1, 3, ALL_SHOTS]) == (
        "class 'a' has 2 train images, fewer than 3 shots; all are used",
    )


@pytest.mark.parametrize(
    ("shots", "val_per_class", "expected"),
    [(8, 6, 12), (2, 6, 4), (8, ALL_SHOTS, 16), (ALL_SHOTS, ALL_SHOTS, 18), (ALL_SHOTS, 4, 8)],
)
def test_val_takes_as_many_as_shots_up_to_the_limit(shots: int, val_per_class: int, expected: int) -> None:
    drawn = sample_few_shot([0] * 20 + [1] * 20, [0] * 9 + [1] * 9, shots, 1, val_per_class)
    assert len(drawn.val) == expected
    assert drawn.train == sample_few_shot([0] * 20 + [1] * 20, [], shots, 1).train


def test_many_short_classes_share_a_note() -> None:
    labels = [label for label in range(6) for _ in range(label + 1)]
    names = [f"c{label}" for label in range(6)]
    assert len(shortage_notes(names, labels, [6])) == 5
    assert shortage_notes(names, labels, [8, 1]) == (
        "6 classes have fewer than 8 train images, the fewest 'c0' with 1; all of theirs are used at 8 shots",
    )
