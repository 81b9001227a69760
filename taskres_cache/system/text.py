"""Text from outside (class names, paths, prompts, files) in terminals, shells, spreadsheets and Markdown.

Everything that is printed or written for people passes one of these functions.
"""

import csv
import re
import shlex
from collections.abc import Iterable
from io import StringIO
from pathlib import Path

LONGEST_WORD, LONGEST_MESSAGE = 500, 2000  # characters in a printed line
LONG_WORD = re.compile(rf"\S{{{LONGEST_WORD + 1},}}")
NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?")
NO_VALUE = "-"
# A spreadsheet takes a cell that begins so for a formula (OWASP, "CSV Injection"); the last four are full-width forms.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
SEPARATORS = frozenset("\r\t;")  # split a cell in some spreadsheets unless it is quoted
MARKDOWN = re.compile(r"[\\`|<>\[\]*&~]|(?<![^\W_])_|_(?![^\W_])")  # underscores within words are no emphasis

LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "[": "{[}", '"': r"\textquotedbl{}",
    **{letter: f"\\{letter}" for letter in "{}$&#_%"},
}  # fmt: skip


def printable(text: str) -> str:
    r"""Return text as one line for a terminal: letters of any script stay, everything else invisible is escaped.

    Line breaks, escape sequences, bidirectional controls and undecodable bytes are shown as Python writes them, such as
    `\n`, `\x1b` and `\u202e`.
    """
    return text if text.isprintable() else "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def printable_lines(text: str) -> str:
    """Return text with its line breaks kept, and each line as `printable` returns it."""
    return "\n".join(map(printable, text.split("\n")))


def shortened_message(line: str) -> str:
    """Return a line of a message with names of thousands of characters, and else its middle, cut out."""
    short = LONG_WORD.sub(lambda word: _without_middle(word[0], LONGEST_WORD), line)
    return _without_middle(short, LONGEST_MESSAGE)


def command(*words: str | Path) -> str:
    """Return a command line that can be pasted into a shell.

    Paths are quoted where needed, and never taken for options: `-x` becomes `./-x`.

    Examples
    --------
    >>> from pathlib import Path
    >>> command("taskres", "report", Path("my runs"))
    "taskres report 'my runs'"
    """
    return shlex.join(_as_argument(word) for word in words)


def as_csv(rows: Iterable[Iterable[str | float]]) -> str:
    """Return rows as comma-separated values that no spreadsheet takes for formulas; numbers stay numbers."""
    safe = [[_csv_cell(cell) for cell in row] for row in rows]
    # Python's writer does not quote a carriage return, but its reader ends the line there.
    odd = any(not SEPARATORS.isdisjoint(cell) for row in safe for cell in row if isinstance(cell, str))
    stream = StringIO()
    csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL if odd else csv.QUOTE_MINIMAL).writerows(safe)
    return stream.getvalue()


def markdown(text: str) -> str:
    """Return text as Markdown that shows it as it is, on one line: no tags, links, code, emphasis or table columns."""
    return MARKDOWN.sub(r"\\\g<0>", printable(text))


def latex(text: str) -> str:
    """Return text as LaTeX that shows it as it is, on one line; a sign outside of ASCII needs a font that has it."""
    return "".join(LATEX.get(letter, letter) for letter in printable(text))


def _without_middle(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}...({len(text) - 2 * half} characters left out)...{text[-half:]}"


def _as_argument(word: str | Path) -> str:
    path = isinstance(word, Path) and str(word).startswith("-")
    return f"./{word}" if path else str(word)


def _csv_cell(cell: str | float) -> str | float:
    """Return a cell with an apostrophe in front of a text that begins like a formula."""
    if not isinstance(cell, str) or cell == NO_VALUE or NUMBER.fullmatch(cell):
        return cell
    return f"'{cell}" if cell.startswith(FORMULA_STARTS) else cell
