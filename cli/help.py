"""How a command's docstring becomes its help: paragraphs fill the terminal's width, the example comes last."""

from collections.abc import Callable
from inspect import getdoc
from typing import Any, TypeVar

import typer

from .conventions import Command

Function = TypeVar("Function", bound=Callable[..., Any])

EXAMPLE = "Example: "

# In the order of the work; a command names its panel in `rich_help_panel`.
STAGE_ONE = "Stage 1: images to cache"
STAGE_TWO = "Stage 2: cache to runs"
BOTH_STAGES = "Both stages"
USING_A_RUN = "Use a run"
LOOKING_AROUND = "Inspect and check"


class App(typer.Typer):
    """A Typer app that shows the last paragraph of a command's docstring, `Example: taskres ...`, as an epilog.

    Below a long list of options, the epilog is the last thing on the screen, and Typer keeps its line breaks.
    """

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Function], Function]:
        """Return a decorator that registers a command, as Typer's own does."""

        def register(function: Function) -> Function:
            settings.setdefault("cls", Command)
            return super(App, self).command(name, **help_of(function), **settings)(function)

        return register

    def callback(self, **settings: Any) -> Callable[[Function], Function]:
        """Return a decorator that registers a group's callback, as Typer's own does."""

        def register(function: Function) -> Function:
            return super(App, self).callback(**help_of(function), **settings)(function)

        return register


def help_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return `help` and `epilog` from a docstring, as far as it has them.

    Each paragraph becomes one line, because Typer would keep the line breaks of the source in all but the first.
    Square brackets are escaped, so that Rich prints them.
    """
    paragraphs = [" ".join(part.split()) for part in (getdoc(function) or "").replace("[", r"\[").split("\n\n")]
    examples = [part for part in paragraphs if part.startswith(EXAMPLE)]
    text = {"help": "\n\n".join(part for part in paragraphs if part not in examples), "epilog": "\n".join(examples)}
    return {name: value for name, value in text.items() if value}
