"""What a person sees: messages and progress on standard error, results on standard output."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text


def say(message: str) -> None:
    """Print one message to standard error."""
    print(message, file=sys.stderr)


def print_json(document: Any) -> None:
    """Print one JSON document to standard output."""
    print(json.dumps(document, indent=2, allow_nan=False, default=str))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> None:
    """Print a table to standard output; the first `left` columns hold words, the others numbers."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if position < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def percent(value: float | None) -> str:
    """Return an accuracy in percent with the two decimals that the field reports."""
    return "-" if value is None else f"{value:.2f}"


class RateColumn(ProgressColumn):
    """Shows how many things a second."""

    def render(self, task: Task) -> Text:
        """Return the rate of a task."""
        return Text(f"{task.speed:.1f}/s" if task.speed else "", style="progress.data.speed")


class Bar:
    """Shows stage one's progress on standard error, with rate and time left; use as a context manager."""

    def __init__(self) -> None:
        described = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), RateColumn())
        self._bar = RichProgress(*described, TimeRemainingColumn(), console=Console(stderr=True))
        self._task: TaskID | None = None

    def __enter__(self) -> "Bar":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def begin(self, what: str, total: int, done: int) -> None:
        """Start a new bar, part of which may be done already."""
        self._task = self._bar.add_task(
            what if done == 0 else f"{what} ({done} already there)", total=total, completed=done
        )

    def advance(self, count: int) -> None:
        """Move the bar on."""
        if self._task is not None:
            self._bar.advance(self._task, count)
