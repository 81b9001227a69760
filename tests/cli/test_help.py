"""The help of every registered command: complete, with an example, and fast."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from shlex import split
from typing import Any

import pytest
import typer

from taskres_cache.cli import help as house
from taskres_cache.cli.app import app
from tests.conftest import Taskres

COLUMNS = 80
PANELS = (house.STAGE_ONE, house.STAGE_TWO, house.BOTH_STAGES, house.USING_A_RUN, house.LOOKING_AROUND)
ROOT: Any = typer.main.get_command(app)


def commands(group: Any = ROOT, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the name and object of every registered command and group."""
    for name, command in group.commands.items():
        yield (*above, name), command
        if hasattr(command, "commands"):
            yield from commands(command, (*above, name))


ALL = dict(commands())
every_command = pytest.mark.parametrize("words", ALL, ids=" ".join)


def example_of(printed: str) -> str:
    """Return the example at the end of a help text, which must be on one line."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    assert lines[-1].startswith("Example: taskres "), lines[-3:]
    return lines[-1].removeprefix("Example: ")


def test_all_commands_are_found() -> None:
    assert {("extract",), ("import",), ("fit",), ("eval",), ("inspect",), ("benchmark",)} < set(ALL)
    assert {("datasets",), ("datasets", "verify")} < set(ALL)


@every_command
def test_help_ends_with_a_valid_example(
    words: tuple[str, ...], taskres: Taskres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fits on one line of 80 columns, and its options parse."""
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    outcome = taskres(*words, "--help")
    assert outcome.status == 0
    program, *arguments = split(example_of(outcome.out))
    assert program == "taskres"
    assert tuple(arguments[: len(words)]) == words
    context, command = typer.Context(ROOT), ROOT
    while hasattr(command, "commands") and arguments and not arguments[0].startswith("-"):
        command = command.commands[arguments.pop(0)]
    command.make_context(words[-1], arguments, parent=context)


@every_command
def test_every_parameter_has_a_help_text(words: tuple[str, ...]) -> None:
    parameters = [parameter for parameter in ALL[words].params if parameter.name != "help"]
    assert [parameter.name for parameter in parameters if not (parameter.help or "").strip()] == []


@every_command
def test_brackets_are_escaped(words: tuple[str, ...]) -> None:
    """Rich reads [words] as markup unless a backslash precedes them."""
    command = ALL[words]
    texts = [command.help, command.epilog, *(parameter.help for parameter in command.params)]
    assert [text for text in texts if text and "[" in text.replace("\\[", "")] == []


@every_command
def test_every_command_is_in_a_panel(words: tuple[str, ...]) -> None:
    assert len(words) > 1 or ALL[words].rich_help_panel in PANELS


def test_main_help_shows_panels_and_first_steps(taskres: Taskres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    lines = taskres("--help").out.splitlines()
    titles = [line.strip("╭╮─ ") for line in lines if line.startswith("╭")]
    assert titles == ["Options", *(panel for panel in PANELS if panel in titles)]
    assert set(PANELS) <= set(titles)
    steps = [line.strip() for line in lines if line.startswith("   taskres ")]
    assert steps == ["taskres extract digits", "taskres fit digits --shots 1,2,4,8,16 --seeds 1,2,3"]


def test_help_of_a_docstring() -> None:
    def command() -> None:
        """Do it.

        One line
        and another [of it].

        Example: taskres do it
        """

    expected = {"help": "Do it.\n\nOne line and another \\[of it].", "epilog": "Example: taskres do it"}
    assert house.help_of(command) == expected
    assert house.help_of(lambda: None) == {}


def test_misspelt_commands_and_options_get_suggestions(taskres: Taskres) -> None:
    wrong = taskres("fti")
    assert wrong.status == 2
    assert "'fit'" in wrong.err
    assert "verify" in taskres("datasets", "verfy").err
    option = taskres("fit", "digits", "--shot", "1")
    assert option.status == 2
    assert "--shots" in option.err


def test_help_imports_no_large_library() -> None:
    """All commands in one process: what a command module imports at its top, `taskres --help` imports too."""
    program = (
        "import sys\n"
        "from taskres_cache.cli.app import app\n"
        "from typer.main import get_command\n"
        "for words in sys.argv[1:]:\n"
        "    try:\n        get_command(app)(words.split() + ['--help'], prog_name='taskres')\n"
        "    except SystemExit as end:\n        assert not end.code\n"
        "print('loaded:', *({'torch', 'open_clip', 'torchvision', 'h5py', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    arguments = ["", *(" ".join(words) for words in ALL)]
    printed = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert printed.stdout.splitlines()[-1].split() == ["loaded:"]


def test_installed_command_shows_help(here: Path) -> None:
    command = Path(sys.executable).with_name("taskres")
    printed = subprocess.run([command, "fit", "-h"], capture_output=True, text=True, check=True)
    assert example_of(printed.stdout).startswith("taskres fit digits")
