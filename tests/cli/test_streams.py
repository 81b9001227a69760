"""Standard streams that are full, closed or not read; names that are not text; interruptions; hostile text."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from taskres_cache.caches.contents import CacheContents, TextBases
from taskres_cache.caches.hdf5 import write_cache
from taskres_cache.cli import console
from taskres_cache.reporting.tables import Table
from tests.conftest import Taskres, one_line

TASKRES = str(Path(sys.executable).with_name("taskres"))
needs_full_device = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")


def shell(line: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line.replace('taskres', TASKRES)}"], capture_output=True, check=False
    )


@needs_full_device
@pytest.mark.parametrize("command", ["inspect toy", "inspect toy --json", "--help", "--version", "datasets"])
def test_full_standard_output_is_one_line(cache_file: Path, here: Path, command: str) -> None:
    done = shell(f"taskres {command} > /dev/full")
    assert done.returncode == 1
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("taskres: standard output cannot be written (No space left on device)")


@needs_full_device
def test_full_standard_error_keeps_the_status(cache_file: Path, here: Path) -> None:
    done = shell("taskres inspect toy --json 2> /dev/full")
    assert (done.returncode, done.stdout[:1]) == (0, b"{")
    assert shell("taskres inspect nothing 2> /dev/full").returncode == 2


@pytest.mark.parametrize("command", ["datasets", "datasets --json", "--help"])
def test_broken_pipe_ends_quietly(command: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([TASKRES, *command.split()], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_closed_streams(cache_file: Path, here: Path) -> None:
    done = shell("taskres inspect toy >&-")
    assert done.returncode == 1
    assert done.stderr.startswith(b"taskres: standard output is closed;")
    assert shell("taskres inspect toy 2>&- <&-").returncode == 0


def test_names_that_are_not_text_are_refused_before_any_work(here: Path, taskres: Taskres) -> None:
    name = os.fsdecode(b"ph\xff")
    for arguments in (("extract", name), ("fit", name), ("extract", "digits", "--cache-dir", name)):
        outcome = taskres(*arguments)
        assert outcome.status == 2
        assert one_line(outcome) == "taskres: the name ph\\udcff is not UTF-8; rename the file or folder"


def test_a_folder_above_that_is_not_text(here: Path, taskres: Taskres, monkeypatch: pytest.MonkeyPatch) -> None:
    above = here / os.fsdecode(b"\xff")
    above.mkdir()
    monkeypatch.chdir(above)
    assert taskres("import", "nothing.npz", "--name", "x").status == 1
    assert taskres("datasets").status == 0


def test_interruption_anywhere_is_one_line() -> None:
    program = (
        "import sys\n"
        "sys.argv = ['taskres', 'datasets']\n"
        "from taskres_cache.cli import console, main\n"
        "def interrupt(*_):\n    raise KeyboardInterrupt\n"
        "console.print_table = interrupt\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGINT, "", "Interrupted.\n")


def test_wrong_usage_is_one_line(taskres: Taskres) -> None:
    wrong = one_line(taskres("fit", "digits", "--shot\x1b[31m"))
    assert wrong == "taskres: no such option: --shot\\x1b[31m; did you mean --shots? (see taskres fit --help)"
    assert one_line(taskres("fit")) == "taskres: Missing argument 'CACHE' (see taskres fit --help)"


def test_tables_print_markup_and_escapes_as_text(capfd: pytest.CaptureFixture[str]) -> None:
    console.print_table(Table("t[/b]\x1b[2J", ("a", "b\u202e"), (("[red]x[/b]", "\x1b[31m1"), ("two\nlines", "2"))))
    printed = capfd.readouterr().out
    assert "\x1b" not in printed
    assert "\u202e" not in printed
    for expected in ("t[/b]\\x1b[2J", "b\\u202e", "[red]x[/b]", "\\x1b[31m1"):
        assert expected in printed


def test_inspect_shows_hostile_prompts(here: Path, contents: CacheContents, taskres: Taskres) -> None:
    text = contents.text
    hostile = TextBases(("[/b] {}\x1b[2J", "two\nlines {}"), text.embeddings, text.pre_projection, text.projection)
    write_cache(here / "toy.h5", replace(contents, text=hostile))
    outcome = taskres("inspect", "toy.h5")
    assert outcome.status == 0
    assert "[/b] {}\\x1b[2J" in outcome.out
    assert "two\\nlines {}" in outcome.out


def test_messages_print_no_escapes(capfd: pytest.CaptureFixture[str]) -> None:
    console.say("held by \x1b]0;x\x07 été")
    assert capfd.readouterr().err == "held by \\x1b]0;x\\x07 été\n"


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_a_missing_package_of_the_command_line_is_named_in_one_line(package: str) -> None:
    code = f"import sys; sys.modules['{package}'] = None; sys.argv = ['taskres', 'caches']; "
    code += "from taskres_cache.cli import main; main()"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, len(ended.stderr.splitlines())) == (1, "", 1)
    assert ended.stderr.startswith("taskres: ")
    assert package in ended.stderr
    assert "run `taskres doctor`" in ended.stderr
