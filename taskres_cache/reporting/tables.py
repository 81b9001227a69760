"""A table of text cells, as Markdown, CSV and LaTeX, and how accuracies are written in it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from taskres_cache.system.text import as_csv, latex, markdown


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
    bold : frozenset of (int, int)
        Row and column of the cells in bold.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1
    bold: frozenset[tuple[int, int]] = frozenset()

    def as_markdown(self) -> str:
        """Return the table in GitHub's Markdown, below its title as a heading."""
        rule = ["---" if position < self.left else "---:" for position in range(len(self.columns))]
        rows = [[f"**{cell}**" if bold else cell for cell, bold in row] for row in self._escaped(markdown)]
        lines = [_row(cells) for cells in (map(markdown, self.columns), rule, *rows)]
        title = ", ".join(self.title.split("\n"))
        return "\n".join([f"## {markdown(title)}", "", *lines]) + "\n"

    def as_latex(self) -> str:
        """Return the table as a LaTeX `table` with the rules of the package booktabs; the title is the caption."""
        columns = "l" * self.left + "r" * (len(self.columns) - self.left)
        rows = [[rf"\textbf{{{cell}}}" if bold else cell for cell, bold in row] for row in self._escaped(latex)]
        head, *body = (" & ".join(cells) + r" \\" for cells in (map(latex, self.columns), *rows))
        caption = latex(": ".join(self.title.split("\n", 1)).replace("\n", ", "))
        opening = [r"\begin{table}", r"\centering", rf"\caption{{{caption}}}", rf"\begin{{tabular}}{{{columns}}}"]
        lines = [*opening, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", r"\end{table}"]
        return "\n".join(lines) + "\n"

    def _escaped(self, escape: Callable[[str], str]) -> list[list[tuple[str, bool]]]:
        """Return the cells of each row, escaped, and whether each is in bold."""
        return [
            [(escape(cell), (row, column) in self.bold) for column, cell in enumerate(cells)]
            for row, cells in enumerate(self.rows)
        ]

    def as_csv(self) -> str:
        """Return the table as comma-separated values with a header line."""
        return as_csv([self.columns, *self.rows])


def percent(value: float | None) -> str:
    """Return an accuracy in percent with two decimals, or a dash for None."""
    return "-" if value is None else f"{value:.2f}"


def signed(points: float | None) -> str:
    """Return a difference of accuracies in percentage points, with its sign; zero has a plus, None is a dash."""
    return "-" if points is None else f"{points:+z.2f}"


def with_deviation(mean: float, deviation: float | None) -> str:
    """Return a mean accuracy in percent, with its standard deviation over seeds if there is one."""
    return percent(mean) if deviation is None else f"{percent(mean)} ± {percent(deviation)}"


def in_shots(count: int) -> str:
    """Return "1 shot", "2 shots" and so on, and "all shots"."""
    from taskres_cache.datasets.sampling import shots_text  # its package loads PIL, which `--help` does without

    return "1 shot" if count == 1 else f"{shots_text(count)} shots"


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
