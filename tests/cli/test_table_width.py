"""Tables in an 80-column terminal and in a pipe: what fits, what is folded, what never is."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.cells import cell_len

from taskres_cache.cli import console
from taskres_cache.reporting.tables import Table
from tests.conftest import Taskres

COLUMNS = 80
COMMANDS = [
    ("eval", "runs"),
    ("eval", "runs", "--on", "digits", "digits"),
    ("eval", "digits", "--zero-shot"),
    ("fit", "digits", "--shots", "1,16", "--seeds", "1,2,3", "--base", "regular,enhanced"),
    ("fit", "digits", "--shots", "1", "--seeds", "1,2,3", "--search"),
    ("fit", "digits", "--base", "enhanced", "--classes", "base", "--lr", "0.001", "--patience", "3"),
    ("inspect", "digits", "--verify"),
    ("benchmark", "--device", "cpu"),
    ("datasets", "verify", "digits"),
]
SENTENCE = re.compile(r"^warning: |^logistic regression: | with .*: [\d.]+ % \(")  # what was gained, in words
HEADS = ["test data", "shots", "seed", "zero-shot %", "base %", "test %", "top-5 %", "ECE %"]
Draw = Callable[[Table, int | None], list[str]]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cache of the bundled digits and runs of two methods."""
    folder = tmp_path_factory.mktemp("digits")
    for command in (("extract", "digits", "--device", "cpu"), COMMANDS[3]):
        subprocess.run([Path(sys.executable).with_name("taskres"), *command], cwd=folder, check=True)
    return folder


@pytest.fixture
def draw(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Draw:
    """Return a function that prints a table to a terminal of some width, or to a pipe, and returns its lines."""

    def drawn(table: Table, width: int | None) -> list[str]:
        monkeypatch.setattr(console, "terminal_width", lambda: width)
        console.print_table(table)
        return capfd.readouterr().out.splitlines()

    return drawn


@pytest.mark.parametrize("terminal", [COLUMNS, None], ids=["terminal", "pipe"])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_tables_of_the_bundled_digits_fit(
    command: tuple[str, ...], terminal: int | None, digits: Path, taskres: Taskres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(digits)
    monkeypatch.setattr(console, "terminal_width", lambda: terminal)
    outcome = taskres(*command)
    assert outcome.status == 0, outcome.err
    assert "───" in outcome.out
    tables = [line for line in outcome.out.splitlines() if not SENTENCE.search(line)]
    assert [line for line in tables if cell_len(line) > COLUMNS] == []


def test_the_known_data_sets_fit(here: Path, taskres: Taskres) -> None:
    table, _, steps = taskres("datasets").out.partition("\n\n")
    assert len(table.splitlines()) == 3 + 16  # no row is folded
    assert max(map(cell_len, table.splitlines())) <= COLUMNS
    assert "\nimagenet: missing imagenet/\n  home: https://image-net.org\n" in f"\n{steps}"


def test_eval_names_each_method_once(digits: Path, taskres: Taskres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(digits)
    assert taskres(*COMMANDS[3], "--out", "study").status == 0
    study = Path("study/glyph-clip-bundled/digits")
    lines = taskres("eval", study).out.splitlines()
    for method in ("taskres-regular-alpha2", "taskres-enhanced-alpha2"):
        first = lines.index(str(study / method))
        assert lines[first + 1] == "test data: digits (359 images, 10 classes)"
        assert re.split(r"\s{2,}", lines[first + 2]) == HEADS
        rows = [line.split()[:3] for line in lines[first + 4 : first + 10]]
        assert rows == [["digits", str(shots), str(seed)] for shots in (1, 16) for seed in (1, 2, 3)]
    (study / "taskres-regular-alpha2" / "shots_1" / "seed_2").rename("moved")
    title, _, _, _, row, _ = taskres("eval", "moved").out.splitlines()
    assert (title, row.split()[:4]) == ("moved", ["digits", "1", "2", "96.10"])


LONG = Table(
    "a title with a path that is longer than the terminal: /home/somebody/somewhere/runs/glyph-clip-bundled/photos",
    ("data set", "classifier", "images", "zero-shot %"),
    (
        ("a_data_set_with_a_name_that_is_very_long", "taskres-enhanced-alpha2-base-classes", "1797", "96.10 ± 0.12"),
        ("été 図図図", "taskres-regular", "3", "100.00"),
    ),
    left=2,
)


def test_a_terminal_folds_words_and_never_numbers(draw: Draw) -> None:
    for width in (80, 60, 40, 20):
        lines = draw(LONG, width)
        needed = max(width, 8 + 8 + 6 + 12 + 3 * 2)  # 8 columns for each column of words
        assert max(cell_len(line) for line in lines if "/home" not in line) <= needed
        assert any("/home/somebody/somewhere/runs/glyph-clip-bundled/photos" in line for line in lines)
        assert any(re.search(r" 1797  96\.10 ± 0\.12$", line) for line in lines)
        assert any(re.search(r"  3        100\.00$", line) for line in lines)


def test_a_pipe_gets_a_row_per_line(draw: Draw) -> None:
    *title, head, rule, first, second, blank = draw(LONG, None)
    assert " ".join(title) == LONG.title
    assert head.split() == ["data", "set", "classifier", "images", "zero-shot", "%"]
    assert set(rule) == {"─"}
    assert tuple(re.split(r"\s{2,}", first)) == LONG.rows[0]
    assert tuple(re.split(r"\s{2,}", second)) == LONG.rows[1]
    assert blank == ""


def test_cells_and_titles_are_printed_as_they_are(draw: Draw) -> None:
    lines = draw(Table("runs/[bold]x :cat:", ("[red]", "n"), (("a [photo] of :dog:", "1"), ("[/]", "2"))), 80)
    assert [line.rstrip() for line in lines[:2]] == ["runs/[bold]x :cat:", "[red]               n"]
    assert [line.split("  ")[0] for line in lines[3:5]] == ["a [photo] of :dog:", "[/]"]


def test_a_real_terminal_is_asked_for_its_width() -> None:
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    program = (
        "from taskres_cache.cli.console import print_table\n"
        "from taskres_cache.reporting.tables import Table\n"
        "print_table(Table('title', ('words', 'n'), (('word ' * 20, '12345'),)))"
    )
    for columns, lines in ((40, 4), (80, 2), (200, 1)):
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, columns))
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        subprocess.run([sys.executable, "-c", program], stdout=theirs, env={**environment, "TERM": "xterm"}, check=True)
        os.close(theirs)
        printed = os.read(ours, 10_000).decode()
        os.close(ours)
        assert sum("word " in line for line in printed.splitlines()) == lines
        assert "12345" in printed
