"""Output to the terminal: messages and progress on standard error, results on standard output."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from textwrap import TextWrapper
from time import monotonic
from typing import Any, Literal, Self

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from taskres_cache.errors import OptionError
from taskres_cache.reporting.tables import Table
from taskres_cache.system.progress import ProgressBar, described_start
from taskres_cache.system.text import printable, printable_lines, shortened_message

SECONDS_BETWEEN_LINES = 10.0
EIGHTHS = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")
WIDTH_OF_FILES = 160  # columns of text in a file or pipe
WIDTH_OF_TITLES = 80  # the same for the titles of tables
GAP = 2  # columns between two columns of a table
NARROWEST = 8  # columns that a column of words may shrink to

Mark = Literal["good", "bad", "open", ""]
Row = tuple[Mark, tuple[str, ...]]
# A sign, its ASCII form, and a colour. The shape alone tells them apart.
SIGNS: dict[Mark, tuple[str, str, str]] = {
    "good": ("✓", "ok", "green"),
    "bad": ("✗", "NO", "bold red"),
    "open": ("–", "--", "yellow"),
    "": ("", "", ""),
}


def say(message: str) -> None:
    """Print one line to standard error; a message that cannot be printed stops no work."""
    with suppress(OSError):
        print(shortened_message(printable(message)), file=sys.stderr)


def show(line: str) -> None:
    """Print one line of a result to standard output."""
    print(printable(line))


def refuse_undecodable(*names: str | Path) -> None:
    """Raise OptionError for a name that is not text: caches and runs could not record it."""
    for name in map(str, names):
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise OptionError(f"the name {name} is not UTF-8; rename the file or folder")


def print_json(document: Any) -> None:
    """Print one JSON document to standard output."""
    print(json.dumps(document, indent=2, allow_nan=False, default=str))


def print_table(table: Table) -> None:
    """Print a table to standard output.

    A terminal folds words that do not fit, never numbers; in a file or pipe every row stays on one line, so that it can
    be searched.
    """
    table = _printable_table(table)
    drawn = RichTable(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for position, column in enumerate(table.columns):
        words = position < table.left
        drawn.add_column(Text(column), justify="left" if words else "right", overflow="fold", no_wrap=not words)
    for number, row in enumerate(table.rows):
        drawn.add_row(*(Text(cell, "bold" if (number, place) in table.bold else "") for place, cell in enumerate(row)))
    columns = terminal_width()
    for line in _title_lines(table.title, columns or WIDTH_OF_TITLES):
        results().print(Text(line, "bold"), soft_wrap=True)
    results(_drawing_width(table, columns)).print(drawn, "")


def _printable_table(table: Table) -> Table:
    """Return a table without escape sequences; line breaks in cells stay."""
    columns = tuple(map(printable_lines, table.columns))
    rows = tuple(tuple(map(printable_lines, row)) for row in table.rows)
    return replace(table, title=printable_lines(table.title), columns=columns, rows=rows)


def _title_lines(title: str, width: int) -> list[str]:
    """Return a title's lines, broken between words only: a path stays whole."""
    wrapper = TextWrapper(width, break_long_words=False, break_on_hyphens=False)
    return [line for paragraph in title.split("\n") for line in wrapper.wrap(paragraph)]


def _drawing_width(table: Table, terminal: int | None) -> int:
    """Return the columns to draw a table in: those of the terminal, or more if its numbers need more."""
    columns = zip(table.columns, *table.rows, strict=True)
    widths = [max(cell_len(line) for cell in column for line in (cell.splitlines() or [""])) for column in columns]
    whole = sum(widths) + GAP * (len(widths) - 1)
    if terminal is None:
        return whole
    foldable = sum(max(0, width - NARROWEST) for width in widths[: table.left])
    return max(terminal, whole - foldable)


def print_marked(title: str, rows: Sequence[Row]) -> None:
    """Print rows below a title, each after a sign: good, bad or open."""
    console = results()
    plain = not console.encoding.startswith("utf")
    grid = RichTable.grid(padding=(0, 2))
    for mark, cells in rows:
        sign, in_ascii, colour = SIGNS[mark]
        grid.add_row(
            Text(in_ascii if plain else sign, colour), *(Text(printable_lines(cell), overflow="fold") for cell in cells)
        )
    console.print(Text(title, "bold"))
    console.print(grid)
    console.print()


def results(width: int | None = None) -> Console:
    """Return standard output, by default as wide as the terminal."""
    return Console(width=width or terminal_width() or WIDTH_OF_FILES, highlight=False)


def terminal_width() -> int | None:
    """Return the columns of the terminal that shows standard output; None for a file or pipe."""
    return Console().width if sys.stdout.isatty() else None


def image_count(images: int) -> str:
    """Return "1 image", "2 images" and so on."""
    return f"{images} image{'' if images == 1 else 's'}"


def shortened(text: str, width: int) -> str:
    """Return a path cut to a number of columns at its beginning: paths differ at their end."""
    if cell_len(text) <= width:
        return text
    end = text[-width:]
    while cell_len(end) > width - 1:
        end = end[1:]
    return f"…{end}"


def bar(share: float, width: int) -> str:
    """Return a share from 0 to 1 as a bar, in steps of an eighth of a column; 1 fills the width."""
    if not sys.stdout.encoding.lower().startswith("utf"):
        return "#" * round(share * width)
    whole, eighths = divmod(round(share * width * len(EIGHTHS)), len(EIGHTHS))
    return "█" * whole + EIGHTHS[eighths]


def progress() -> "ProgressBar | Lines":
    """Return a progress bar if standard error is a terminal, else occasional lines for a log."""
    return ProgressBar() if sys.stderr.isatty() else Lines()


class StoppedEarly(Exception):
    """Ctrl-C in a command that loses nothing by it; the message says how to continue."""


@contextmanager
def kept_when_interrupted() -> Iterator[None]:
    """Turn Ctrl-C into one line and exit status 130."""
    try:
        yield
    except KeyboardInterrupt:
        raise StoppedEarly("Interrupted. Finished blocks are kept; run the same command again to continue.") from None


class Lines:
    """Progress as lines on standard error, one every ten seconds and one at the end, with rate and time left."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def begin(self, what: str, total: int, done: int) -> None:
        """Start counting to `total`, of which `done` already exist."""
        self._what, self._total, self._done, self._fresh = described_start(what, done), total, done, 0
        self._started = self._printed = monotonic()
        if done == total:
            say(f"{self._what}: {total} of {total}")

    def advance(self, count: int) -> None:
        """Count `count` more, and print a line when one is due."""
        self._done, self._fresh, now = self._done + count, self._fresh + count, monotonic()
        if self._done < self._total and now - self._printed < SECONDS_BETWEEN_LINES:
            return
        rate = self._fresh / max(now - self._started, 1e-9)
        left = timedelta(seconds=round((self._total - self._done) / rate))
        say(f"{self._what}: {self._done} of {self._total}, {rate:.1f}/s, {left} left")
        self._printed = now
