"""How a command's docstring becomes its help: paragraphs that fill the terminal's width, the example at the end."""

from collections.abc import Callable
from inspect import getdoc
from typing import Any, TypeVar

import typer

Function = TypeVar("Function", bound=Callable[..., Any])

EXAMPLE = "Example: "

# The order of the work; a command says which of them it belongs to by `rich_help_panel`.
STAGE_ONE = "Stage one: images into a cache"
STAGE_TWO = "Stage two: a cache into runs"
BOTH_STAGES = "Both stages"
USING_A_RUN = "Using a run"
LOOKING_AROUND = "Looking around"


class App(typer.Typer):
    """A Typer app whose commands have the last paragraph of their docstring, `Example: taskres ...`, as an epilog.

    There, below a long list of options, it is the last thing on the screen, and Typer leaves its lines alone.
    """

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Function], Function]:
        """Return what registers a function as a command, as Typer's own does."""

        def register(function: Function) -> Function:
            return super(App, self).command(name, **told(function), **settings)(function)

        return register

    def callback(self, **settings: Any) -> Callable[[Function], Function]:
        """Return what registers a function that stands before a group's commands, likewise."""

        def register(function: Function) -> Function:
            return super(App, self).callback(**told(function), **settings)(function)

        return register


def told(function: Callable[..., Any]) -> dict[str, Any]:
    """Return `help` and `epilog` from a docstring, as far as it has them.

    Each paragraph becomes one line, since Typer would keep the line breaks of the source in all but the first.
    Square brackets mean themselves and no markup.
    """
    paragraphs = [" ".join(part.split()) for part in (getdoc(function) or "").replace("[", r"\[").split("\n\n")]
    examples = [part for part in paragraphs if part.startswith(EXAMPLE)]
    text = {"help": "\n\n".join(part for part in paragraphs if part not in examples), "epilog": "\n".join(examples)}
    return {name: value for name, value in text.items() if value}
