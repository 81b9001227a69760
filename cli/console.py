"""What a person sees: messages and progress on standard error, results on standard output."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from io import TextIOWrapper
from time import monotonic
from typing import Any, Literal, Self

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from taskres_cache.reporting.tables import Table
from taskres_cache.system.progress import ProgressBar, described_start

SECONDS_BETWEEN_LINES = 10.0
EIGHTHS = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")
WIDTH_OF_FILES = 160  # columns, where no terminal says how many there are

Mark = Literal["good", "bad", "open", ""]
Row = tuple[Mark, tuple[str, ...]]
# A sign, one for terminals that have no such letter, and a colour. The shape alone tells them apart.
SIGNS: dict[Mark, tuple[str, str, str]] = {
    "good": ("✓", "ok", "green"),
    "bad": ("✗", "NO", "bold red"),
    "open": ("–", "--", "yellow"),
    "": ("", "", ""),
}


def say(message: str) -> None:
    """Print one message to standard error."""
    print(message, file=sys.stderr)


def print_json(document: Any) -> None:
    """Print one JSON document to standard output."""
    print(json.dumps(document, indent=2, allow_nan=False, default=str))


def print_table(table: Table) -> None:
    """Print a table to standard output."""
    drawn = RichTable()
    for position, column in enumerate(table.columns):
        drawn.add_column(column, justify="left" if position < table.left else "right", overflow="fold")
    for row in table.rows:
        drawn.add_row(*row)
    console = results()
    console.print(table.title, style="bold", soft_wrap=True)
    console.print(drawn)


def print_marked(title: str, rows: Sequence[Row]) -> None:
    """Print lines of several columns below a title, each after a sign that tells whether it is as it should be."""
    console = results()
    plain = not console.encoding.startswith("utf")
    grid = RichTable.grid(padding=(0, 2))
    for mark, cells in rows:
        sign, in_ascii, colour = SIGNS[mark]
        grid.add_row(Text(in_ascii if plain else sign, colour), *(Text(cell, overflow="fold") for cell in cells))
    console.print(Text(title, "bold"))
    console.print(grid)
    console.print()


def results() -> Console:
    """Return standard output; as wide as the terminal, and what its encoding lacks becomes an escape."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    return Console(width=None if sys.stdout.isatty() else WIDTH_OF_FILES, highlight=False)


def shown(name: str) -> str:
    """Return a name as one line that is safe to show: line breaks, control codes and foreign bytes as escapes."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in name)


def counted(images: int) -> str:
    """Return a number of images as a phrase."""
    return f"{images} image{'' if images == 1 else 's'}"


def shortened(text: str, width: int) -> str:
    """Return a name in at most so many columns, its end kept: of a path that is what tells it from others."""
    if cell_len(text) <= width:
        return text
    end = text[-width:]
    while cell_len(end) > width - 1:
        end = end[1:]
    return f"…{end}"


def bar(share: float, width: int) -> str:
    """Return a share from 0 to 1 as a bar, of which 1 fills the width; block characters tell it to an eighth."""
    if not sys.stdout.encoding.lower().startswith("utf"):
        return "#" * round(share * width)
    whole, eighths = divmod(round(share * width * len(EIGHTHS)), len(EIGHTHS))
    return "█" * whole + EIGHTHS[eighths]


def progress() -> "ProgressBar | Lines":
    """Return what shows stage one's progress: a bar where somebody watches, a line now and then in a log."""
    return ProgressBar() if sys.stderr.isatty() else Lines()


@contextmanager
def kept_when_interrupted() -> Iterator[None]:
    """Turn Ctrl-C into one line and exit status 130."""
    try:
        yield
    except KeyboardInterrupt:
        say("interrupted; what is finished is kept: the same command goes on from there")
        raise typer.Exit(130) from None


class Lines:
    """Lines on standard error, one every ten seconds and one at the end, with rate and time left."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def begin(self, what: str, total: int, done: int) -> None:
        """Start counting anew, part of which may be done already."""
        self._what, self._total, self._done, self._fresh = described_start(what, done), total, done, 0
        self._started = self._said = monotonic()
        if done == total:
            say(f"{self._what}: {total} of {total}")

    def advance(self, count: int) -> None:
        """Count on, and say so when it is time to."""
        self._done, self._fresh, now = self._done + count, self._fresh + count, monotonic()
        if self._done < self._total and now - self._said < SECONDS_BETWEEN_LINES:
            return
        rate = self._fresh / max(now - self._started, 1e-9)
        left = timedelta(seconds=round((self._total - self._done) / rate))
        say(f"{self._what}: {self._done} of {self._total}, {rate:.1f}/s, {left} left")
        self._said = now
