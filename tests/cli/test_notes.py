"""Notes on what an accuracy leaves out, and options given several times."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from taskres_cache.caches.contents import CacheContents
from taskres_cache.caches.hdf5 import write_cache
from taskres_cache.cli.options import joined, seed_numbers, shot_counts, split_numbers
from taskres_cache.datasets.sampling import ALL_SHOTS
from taskres_cache.errors import OptionError
from tests.conftest import Taskres, one_line


@pytest.fixture
def incomplete(here: Path, contents: CacheContents) -> Path:
    """A cache without validation images, and without test images of "dog" because two were skipped."""
    keep = ~((contents.partitions == 2) & (contents.labels == 1)) & (contents.partitions != 1)
    rows = np.flatnonzero(keep)
    place = {old: new for new, old in enumerate(rows.tolist())}
    contents = vars(contents) | {
        "paths": tuple(contents.paths[row] for row in rows),
        "stamps": tuple(contents.stamps[row] for row in rows),
        "labels": contents.labels[rows],
        "partitions": contents.partitions[rows],
        "image_features": contents.image_features[rows],
        "splits": {
            name: type(split)(np.array([place[row] for row in split.train.tolist()]), np.zeros(0, np.int64))
            for name, split in contents.splits.items()
        },
        "skipped": {"test/dog/1.png": "not an image", "test/dog/2.png": "not an image"},
    }
    path = here / "cache" / "tower-random" / "toy.h5"
    write_cache(path, CacheContents(**contents))
    return path


def notes(err: str) -> list[str]:
    return [line.partition("toy.h5")[2] for line in err.splitlines() if line.startswith("note: ")]


TESTED = [
    ": 2 images were unreadable and skipped when the cache was made",
    ": 1 class has no test image and does not count: 'dog'",
]


def test_fit_notes_what_its_numbers_leave_out(incomplete: Path, taskres: Taskres) -> None:
    fitted = taskres("fit", "toy", "--shots", "1", "--epochs", "2", "--alpha", "1")
    uncalibrated = " has no validation images: the temperature is 1, probabilities are not calibrated"
    assert notes(fitted.err) == [uncalibrated, *TESTED]


def test_eval_notes_skipped_images_and_classes_without_test_images(incomplete: Path, taskres: Taskres) -> None:
    taskres("fit", "toy", "--shots", "1", "--seeds", "1,2", "--epochs", "2")
    for arguments in (("runs",), ("toy", "--zero-shot")):
        outcome = taskres("eval", *arguments, "--json")
        assert notes(outcome.err) == TESTED
        for result in json.loads(outcome.out):
            assert result["skipped"] == {f"test/dog/{number}.png": "not an image" for number in (1, 2)}
            assert result["classes_without_test_images"] == ["dog"]


def test_complete_caches_get_no_note(cache_file: Path, here: Path, taskres: Taskres) -> None:
    assert notes(taskres("fit", "toy", "--shots", "1", "--epochs", "2", "--alpha", "1").err) == []
    assert notes(taskres("eval", "runs").err) == []


def test_repeated_options_add_up(cache_file: Path, here: Path, taskres: Taskres) -> None:
    assert joined(["1", "2,4", "1"]) == "1,2,4"
    assert split_numbers(["1", "16,2", "1"], ["3", "1"]) == ((1, 16, 2), (3, 1))
    several = (
        "--shots 1 --shots 4 --seeds 2 --seeds 1 --alpha 0.5 --alpha 1,2 --lr 0.01 --lr 0.02 "
        "--weight-decay 0 --weight-decay 0.1 --base regular --base enhanced-only --epochs 2"
    )
    fitted = taskres("fit", "toy", *several.split(), "--json")
    # enhanced-only has no residual: its alphas share a folder
    runs = json.loads(fitted.out)["runs"]
    regular = [run for run in runs if run["recipe"]["base"] == "regular"]
    assert {(run["shots"], run["seed"]) for run in runs} == {(1, 2), (1, 1), (4, 2), (4, 1)}
    assert {tuple(run["recipe"][name] for name in ("alpha", "lr", "weight_decay")) for run in regular} == {
        (alpha, lr, decay) for alpha in (0.5, 1.0, 2.0) for lr in (0.01, 0.02) for decay in (0.0, 0.1)
    }
    assert {run["recipe"]["base"] for run in runs} == {"regular", "enhanced-only"}
    other = taskres("eval", regular[0]["folder"], "--on", "toy", "--on", str(cache_file), "--json")
    assert len(json.loads(other.out)) == 2


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--alpha auto --alpha 1", "--alpha 'auto,1': expected comma-separated numbers"),
        ("--shots 1 --shots x", "--shots 'x': expected numbers, all, or a range of powers of two"),
        ("--base toy.h5 --base nothing", "unknown base 'toy.h5'"),
        ("--base cache --base .", "--base takes one file, got cache and ."),
    ],
)
def test_repeated_options_that_do_not_go_together(
    cache_file: Path, here: Path, taskres: Taskres, options: str, expected: str
) -> None:
    outcome = taskres("fit", "toy", *options.split())
    assert outcome.status == 2
    assert expected in one_line(outcome)


@pytest.mark.parametrize(("scale", "noted"), [(4.6052, True), (100.0, False), (14.3, False), (2.0, False)])
def test_a_logit_scale_that_is_a_logarithm_is_noted(
    here: Path, contents: CacheContents, taskres: Taskres, scale: float, noted: bool
) -> None:
    path = here / "cache" / "tower-random" / "toy.h5"
    write_cache(path, replace(contents, provenance=replace(contents.provenance, logit_scale=scale)))
    expected = [": logit_scale is 4.6052, nearly certainly the logarithm of 100, with which fits learn little"]
    for arguments in (
        ("fit", "toy", "--shots", "1", "--epochs", "2", "--alpha", "1"),
        ("eval", "runs"),
        ("eval", "toy", "--zero-shot"),
    ):
        found = [note.split(";")[0] for note in notes(taskres(*arguments).err)]
        assert found == (expected if noted else [])


def test_lists_of_shots_and_seeds_may_have_ranges() -> None:
    assert shot_counts("1-16") == (1, 2, 4, 8, 16)
    assert shot_counts("4-4,3,2-8, all") == (4, 3, 2, 8, ALL_SHOTS)
    assert seed_numbers("1-3,2,7,-1") == (1, 2, 3, 7, -1)


@pytest.mark.parametrize("text", ["16-1", "1-20", "0-4", "3-8", "1-", "all-16", "", "ALL"])
def test_ranges_of_shots_go_from_one_power_of_two_up_to_another(text: str) -> None:
    with pytest.raises(OptionError, match="range of powers of two, such as 1,2,4 or 1-16,all"):
        shot_counts(text)


@pytest.mark.parametrize("text", ["3-1", "1-1001", "all"])
def test_ranges_of_seeds_go_up_by_at_most_a_thousand(text: str) -> None:
    with pytest.raises(OptionError, match="--seeds '.*such as 1,2,3 or 1-10"):
        seed_numbers(text)
