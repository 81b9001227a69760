"""The command reference: Markdown generated from the Typer app, put in the place of a marker in `commands.md`.

sphinx-click accepts commands of the package click only, and Typer brings its own copy of it.
"""

import re
from collections.abc import Iterator
from typing import Any

import typer
import typer.main

MARKER = "<!-- commands -->"
PAGE = "commands"


def reference() -> str:
    """Return the reference of every command of `taskres`, as MyST Markdown."""
    from taskres_cache.cli.app import app

    group = typer.main.get_command(app)
    return "\n".join(line for path, command in _commands(group, "taskres") for line in _section(path, command))


def command_names() -> list[str]:
    """Return the full name of every command, such as `taskres fit`."""
    from taskres_cache.cli.app import app

    return [path for path, _ in _commands(typer.main.get_command(app), "taskres")]


def _commands(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        yield f"{path} {name}", command
        if hasattr(command, "commands"):
            yield from _commands(command, f"{path} {name}")


def _section(path: str, command: Any) -> list[str]:
    context = typer.Context(command, info_name=path)
    usage = " ".join([path, *command.collect_usage_pieces(context)]).replace("{", "").replace("}", "")
    lines = [f"## `{path}`", "", _plain(command.help), "", "```text", usage, "```", ""]
    example = (command.epilog or "").replace(r"\[", "[").removeprefix("Example: ")
    if example:
        lines += ["Example:", "", "```shell", example, "```", ""]
    lines += [f":::{{program}} {path}", ":::", ""]
    for parameter in command.params:
        lines += _parameter(parameter, context)
    return lines


def _parameter(parameter: Any, context: typer.Context) -> list[str]:
    """Return a parameter as Typer's own help has it: `('--views <int>', 'Augmented views.  [default: 0]')`."""
    record = parameter.get_help_record(context)
    if record is None or "--help" in record[0]:
        return []
    text, _, facts = record[1].removesuffix("]").removesuffix("  [required").partition("  [")
    variable, _, default = facts.rpartition("default: ")
    in_words = default.startswith("(")
    shown = f" *Default: {default[1:-1]}.*" if in_words else f" *Default:* `{default}`" if default else ""
    shown += f" *Environment variable:* `{variable.removeprefix('env var: ').removesuffix('; ')}`" if variable else ""
    if parameter.param_type_name == "argument":
        return [f"`{record[0].partition(' <')[0]}`", f": {_plain(text)}", ""]
    return [f":::{{option}} {record[0]}", "", _plain(text) + shown, ":::", ""]


def _plain(text: str | None) -> str:
    """Return help text without Rich's escapes, and with option names set as code."""
    cleaned = (text or "").replace(r"\[", "[")
    return re.sub(r"(?<![\w`-])(--[a-z][a-z-]*)", r"`\1`", cleaned)


def _fill(app: Any, page: str, source: list[str]) -> None:
    if page == PAGE:
        source[0] = source[0].replace(MARKER, reference())


def setup(app: Any) -> dict[str, Any]:
    """Register the extension with Sphinx."""
    app.connect("source-read", _fill)
    return {"parallel_read_safe": True}
