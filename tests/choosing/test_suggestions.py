"""`taskres suggest`: with a model alone and with a run; what has a label is left out."""

import csv
import json
import shutil
from pathlib import Path
from zipfile import ZipFile

import pytest

from taskres_cache.bundled import DIGITS_ARCHIVE
from tests.conftest import Taskres, one_line, save_image

MODEL = ("--device", "cpu", "--workers", "0")


@pytest.fixture
def digits(here: Path) -> Path:
    """Forty train images of the digits."""
    with ZipFile(DIGITS_ARCHIVE) as archive:
        names = sorted(name for name in archive.namelist() if name.startswith("train/") and name.endswith(".png"))
        archive.extractall(here / "digits", names[::27][:40])
    return here / "digits"


def test_a_model_alone_covers_the_classes(digits: Path, taskres: Taskres) -> None:
    outcome = taskres("suggest", "glyph-clip", digits, "-n", "10", "--json", *MODEL)
    assert outcome.status == 0, outcome.err
    images = json.loads(outcome.out)["images"]
    assert len(images) == 10
    assert len({Path(one["path"]).parent.name for one in images}) >= 8
    scores = [one["score"] for one in images]
    assert scores == sorted(scores, reverse=True)
    assert {one["predicted"] for one in images} == {""}
    assert sum(int(one["reason"].split()[2]) for one in images) == 30


def test_copies_are_suggested_once_and_broken_files_are_skipped(digits: Path, taskres: Taskres) -> None:
    shutil.copytree(digits, digits.parent / "again")
    (digits / "broken.png").write_bytes(b"no image")
    outcome = taskres("suggest", "glyph-clip:bundled", digits, digits.parent / "again", "-n", "99", "--json", *MODEL)
    document = json.loads(outcome.out)
    assert len(document["images"]) == 40
    assert list(document["unreadable"]) == [str(digits / "broken.png")]
    assert "skipped" in outcome.err


def test_a_run_leaves_out_what_its_cache_has(photos: Path, here: Path, taskres: Taskres) -> None:
    split = ("--shots", "4", "--seeds", "1", "--device", "cpu")
    checkpoint = ("--backbone", "glyph-clip", "--pretrained", "bundled")
    assert taskres("extract", photos, *checkpoint, *split).status == 0
    assert taskres("fit", "photos", *split).status == 0
    new = here / "new"
    for number in range(5):
        save_image(new / f"{number}.png", seed=1000 + number)
    shutil.copy(photos / "dog" / "image 2.png", new / "copy.png")  # another stamp
    known = sum(json.loads(taskres("inspect", "photos", "--json").out)["images"].values())
    table = taskres("suggest", "runs", new, photos, "-n", "50", "--csv", "s.csv", "--page", "s.html", *MODEL)
    assert table.status == 0, table.err
    rows = list(csv.DictReader(Path("s.csv").read_text().splitlines()))
    assert list(rows[0]) == ["rank", "path", "score", "reason", "predicted"]
    suggested = {row["path"] for row in rows}
    assert {str(new / f"{number}.png") for number in range(5)} <= suggested
    assert len(suggested) == 5 + 30 - known
    assert {row["predicted"] for row in rows} <= {"black_cat", "dog", "été"}
    assert all("margin" in row["reason"] for row in rows)
    assert "left out: labelled already" in table.err
    page = Path("s.html").read_text()
    assert page.count("data:image/") == len(rows)
    assert "<script" not in page
    assert "http" not in page


def test_names_on_the_page_are_escaped(here: Path, taskres: Taskres) -> None:
    for number in range(2):
        save_image(here / "new" / f"<b>{number}&.png", seed=number)
    assert taskres("suggest", "glyph-clip", "new", "--page", "s.html", *MODEL).status == 0
    assert "&lt;b&gt;0&amp;.png" in Path("s.html").read_text()


@pytest.mark.parametrize(
    ("line", "status", "expected"),
    [
        ("suggest nowhere .", 1, "no classifier.safetensors at or below nowhere"),
        ("suggest glyph-clip empty", 2, "no image found in empty"),
        ("suggest glyph-clip . -n 0", 2, "--count must be positive"),
        ("suggest glyph-clip . --csv file/x", 1, "cannot be written"),
    ],
)
def test_errors(here: Path, taskres: Taskres, line: str, status: int, expected: str) -> None:
    save_image(here / "a.png", seed=0)
    (here / "empty").mkdir()
    (here / "file").touch()
    outcome = taskres(*line.split())
    assert outcome.status == status
    assert expected in one_line(outcome)
