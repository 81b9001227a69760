"""Which files a report can be written to. Does not need torch, so that typos are found at once."""

from collections.abc import Sequence
from pathlib import Path

from taskres_cache.errors import OptionError
from taskres_cache.system.extras import require

SUFFIXES = (".html", ".md", ".csv", ".png")
TABLE_SUFFIXES = (".md", ".csv", ".tex")
STANDARD_OUTPUT = Path("-")


def check_suffixes(files: Sequence[Path]) -> None:
    """Check that a report can be written to files, before any work is done.

    Parameters
    ----------
    files : sequence of Path
        Files of a report.

    Raises
    ------
    OptionError
        A suffix is unknown.
    MissingExtraError
        A file is a picture and matplotlib is not installed.
    """
    unknown = [str(file) for file in files if file.suffix.lower() not in SUFFIXES]
    if unknown:
        known = ", ".join(SUFFIXES)
        raise OptionError(f"cannot write a report to {', '.join(unknown)}; use one of the suffixes {known}")
    if any(file.suffix.lower() == ".png" for file in files):
        require_matplotlib()


def check_table_suffixes(files: Sequence[Path]) -> None:
    """Raise OptionError if the comparison of methods cannot be written to a file; `-` is standard output."""
    unknown = [str(file) for file in files if file != STANDARD_OUTPUT and file.suffix.lower() not in TABLE_SUFFIXES]
    if unknown:
        known = ", ".join(TABLE_SUFFIXES)
        raise OptionError(f"cannot write a table to {', '.join(unknown)}; use a suffix of {known}, or - to print it")


def require_matplotlib() -> None:
    """Raise MissingExtraError if matplotlib is not installed."""
    require("`taskres report` to PNG", "plot", ["matplotlib"])
