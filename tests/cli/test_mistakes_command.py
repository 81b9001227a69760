"""`taskres mistakes` on the bundled digits."""

import csv
import json
from pathlib import Path

import pytest

from tests.conftest import Taskres


@pytest.fixture
def run(digits_cache: Path, here: Path, taskres: Taskres) -> Path:
    fitted = json.loads(taskres("fit", digits_cache, "--shots", "4", "--seeds", "1", "--json").out)
    return Path(fitted["runs"][0]["folder"])


def test_mistakes_lists_every_image_once_by_rank(run: Path, here: Path, taskres: Taskres) -> None:
    listed = json.loads(taskres("mistakes", run, "--csv", here / "m.csv", "--json").out)
    rows = list(csv.DictReader((here / "m.csv").open(encoding="utf-8")))
    assert [row["path"] for row in rows] == [one["path"] for one in listed]
    assert len({row["path"] for row in rows}) == len(rows)
    assert {row["part"] for row in rows} == {"train", "val", "test"}
    issues = [one["label_issue"] for one in listed]
    assert issues == sorted(issues, reverse=True)
    metrics = json.loads((run / "metrics.json").read_text())
    tested = [one for one in listed if one["part"] == "test"]
    correct = sum(one["label"] == one["prediction"] for one in tested)
    assert 100 * correct / len(tested) == pytest.approx(metrics["test_accuracy"])


def test_part_selects_images(run: Path, taskres: Taskres) -> None:
    listed = json.loads(taskres("mistakes", run, "--part", "val", "--json").out)
    assert {one["part"] for one in listed} == {"val"}
