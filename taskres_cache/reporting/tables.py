"""A table of text cells, as Markdown and CSV, and how accuracies are written in it."""

from collections.abc import Sequence
from dataclasses import dataclass

from taskres_cache.system.text import as_csv, markdown


@dataclass(frozen=True)
class Table:
    """A table with a title.

    Parameters
    ----------
    title : str
        One or more lines.
    columns : tuple of str
        The header.
    rows : tuple of tuple of str
        The cells, as many per row as there are columns.
    left : int
        Number of leading columns with words, aligned left; the others have numbers, aligned right.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1

    def as_markdown(self) -> str:
        """Return the table in GitHub's Markdown, below its title as a heading."""
        rule = ["---" if position < self.left else "---:" for position in range(len(self.columns))]
        lines = [_markdown_row(cells) for cells in (self.columns, rule, *self.rows)]
        title = ", ".join(self.title.split("\n"))
        return "\n".join([f"## {markdown(title)}", "", *lines]) + "\n"

    def as_csv(self) -> str:
        """Return the table as comma-separated values with a header line."""
        return as_csv([self.columns, *self.rows])


def percent(value: float | None) -> str:
    """Return an accuracy in percent with two decimals, or a dash for None."""
    return "-" if value is None else f"{value:.2f}"


def signed(points: float) -> str:
    """Return a difference of accuracies in percentage points, with its sign."""
    return f"{points:+.2f}"


def with_deviation(mean: float, deviation: float | None) -> str:
    """Return a mean accuracy in percent, with its standard deviation over seeds if there is one."""
    return percent(mean) if deviation is None else f"{percent(mean)} ± {percent(deviation)}"


def in_shots(count: int) -> str:
    """Return "1 shot", "2 shots" and so on."""
    return f"{count} shot" if count == 1 else f"{count} shots"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(markdown, cells)) + " |"
