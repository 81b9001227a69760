"""`taskres fit --method`, `taskres methods` and `benchmark --methods`, as a user meets them."""

import json
from pathlib import Path

import pytest

from tests.conftest import Taskres, one_line

OWN = Path(__file__).parents[2] / "examples" / "own_method.py"


@pytest.fixture
def in_digits(here: Path, digits_cache: Path) -> Path:
    """A folder with the cache of the digits where commands look for it."""
    target = here / "cache" / "glyph-clip-bundled" / "digits.h5"
    target.parent.mkdir(parents=True)
    target.symlink_to(digits_cache)
    return here


def test_fit_prints_every_method_and_its_runs_can_be_used(in_digits: Path, taskres: Taskres) -> None:
    splits = ("--shots", "1,4", "--seeds", "1,2", "--device", "cpu")
    done = taskres("fit", "digits", "--method", "taskres,gda,prolip", *splits)
    assert done.status == 0
    assert all(f"{name}: test accuracy" in done.out for name in ("taskres-regular-alpha2", "gda", "prolip"))
    folder = "runs/glyph-clip-bundled/digits"
    for method in ("gda", "prolip"):
        run = f"{folder}/{method}/shots_4/seed_1"
        evaluated = json.loads(taskres("eval", run, "--json").out)
        results = evaluated["results"] if isinstance(evaluated, dict) and "results" in evaluated else evaluated
        text = json.dumps(results)
        accuracy = json.loads(Path(run, "metrics.json").read_text())["test_accuracy"]
        assert f"{accuracy:.6g}"[:6] in text
        assert taskres("export", run, "--to", f"{method}.safetensors").status == 0
    assert "image residual" not in one_line(taskres("export", f"{folder}/prolip/shots_4/seed_1", "--to", "x.pt"))
    report = taskres("report", folder, "--out", "page.html", "--device", "cpu")
    assert report.status == 0
    assert all(name in Path("page.html").read_text() for name in ("gda", "prolip"))


def test_options_of_methods(in_digits: Path, taskres: Taskres) -> None:
    quick = ("--shots", "4", "--seeds", "1", "--device", "cpu")
    done = taskres("fit", "digits", "--method", "gda", "--set", "alphas=0.1,1", "--val", "full", *quick, "--json")
    (run,) = json.loads(done.out)["runs"]
    assert run["method"] == "gda-alphas0.1,1-val-full"
    assert run["record"]["options"]["alphas"] == [0.1, 1.0]
    assert run["record"]["val"] == "full"
    assert run["settings"]["alpha"] in (0.1, 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "linear-prob"), "unknown method 'linear-prob'; did you mean 'linear-probe'?"),
        (("--method", "gda", "--alpha", "1"), "--alpha is an option of method taskres, got --method gda"),
        (("--method", "gda", "--set", "alphas"), "--set 'alphas': expected NAME=VALUE"),
        (("--method", "gda", "--set", "alfas=1"), "method gda has no option 'alfas'; did you mean alphas?"),
        (("--set", "alphas=1"), "--set alphas needs --method"),
        (("--method", "none.py:X"), "there is no file none.py"),
        (("--method", ","), "--method is empty"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], message: str, in_digits: Path, taskres: Taskres) -> None:
    done = taskres("fit", "digits", "--shots", "1", "--seeds", "1", "--device", "cpu", *arguments)
    assert done.status == 2
    assert message in one_line(done)
    assert not Path("runs").exists()


def test_methods_are_listed(taskres: Taskres) -> None:
    listed = json.loads(taskres("methods", "--json").out)
    assert [one["name"] for one in listed][:3] == ["taskres", "auto", "linear-probe"]
    assert all(one[part] for one in listed for part in ("trains", "needs", "chooses", "paper"))
    prolip = next(one for one in listed if one["name"] == "prolip")
    assert "pre-projection" in prolip["needs"]
    assert "gda" in taskres("methods").out


def test_benchmark_fits_methods_once(here: Path, taskres: Taskres) -> None:
    command = ("benchmark", "--methods", f"gda,{OWN}:BLEND", "--shots", "1,2", "--seeds", "1,2", "--device", "cpu")
    first, second = taskres(*command), taskres(*command)
    assert (first.status, second.status) == (0, 0)
    assert "12 runs, 0 of them reused" in first.err
    assert "12 runs, 12 of them reused" in second.err
    rows = Path("runs/glyph-clip-bundled/benchmark-methods.csv").read_text().splitlines()
    assert len(rows) == 1 + 3 * 2
    markdown = Path("runs/glyph-clip-bundled/benchmark.md").read_text()
    assert (
        "## digits, glyph-clip (bundled), test accuracy in %, mean and standard deviation over seeds 1, 2" in markdown
    )
    assert "paired difference to taskres-regular-alpha2" in markdown
