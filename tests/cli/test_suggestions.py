"""Commands that messages suggest can be pasted into a shell."""

import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import Taskres, one_line, save_image

FOLDER = "my $(touch owned) photos"
MODEL = ("--backbone", "glyph-clip", "--pretrained", "bundled", "--device", "cpu")
SPLIT = ("--shots", "1", "--seeds", "1")


def suggested(printed: str) -> list[str]:
    """Return the words of the command after "next:", as a shell reads them."""
    return shlex.split(re.findall(r"^next: (.*)$", printed, flags=re.MULTILINE)[0])


@pytest.fixture
def pictures(here: Path) -> Path:
    for label, classname in enumerate(("cat", "dog")):
        for number in range(10):
            save_image(here / FOLDER / classname / f"{number}.png", seed=100 * label + number)
    return here / FOLDER


def test_what_comes_next_runs_from_extract_to_report(taskres: Taskres, pictures: Path) -> None:
    extracted = taskres("extract", pictures, *MODEL, *SPLIT, "--cache-dir", "my cache")
    assert extracted.status == 0, extracted.err
    fit = suggested(extracted.err)
    assert fit == ["taskres", "fit", "my-touch-owned-photos", "--cache-dir", "my cache"]
    fitted = taskres(*fit[1:], *SPLIT, "--device", "cpu", "--out", "my runs")
    assert fitted.status == 0, fitted.err
    report = suggested(fitted.err)
    assert report == ["taskres", "report", "my runs/glyph-clip-bundled/my-touch-owned-photos"]
    assert taskres(*report[1:]).status == 0


def test_the_remedy_for_a_missing_cache_is_quoted(taskres: Taskres, pictures: Path) -> None:
    message = one_line(taskres("fit", FOLDER))
    (command,) = re.findall(r"`(taskres extract [^`]*)`", message)
    assert shlex.split(command) == ["taskres", "extract", FOLDER]


def test_the_remedy_for_an_incomplete_data_set_is_quoted(taskres: Taskres, here: Path) -> None:
    root = here / "my data"
    (root / "dtd").mkdir(parents=True)
    message = one_line(taskres("extract", "dtd", "--root", root, *MODEL))
    (command,) = re.findall(r"steps: (taskres [^)]*)\)", message)
    assert shlex.split(command) == ["taskres", "datasets", "--root", str(root)]
