"""Predictions as text with bars, for terminals with and without colour and for pipes."""

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from taskres_cache.system.text import printable

from .console import bar, image_count, results, shortened

if TYPE_CHECKING:
    from taskres_cache.runs.prediction import PredictedImages

LONG_BAR, SMALL_BAR, SMALLEST_BAR = 40, 20, 10  # columns
WIDE = 100  # columns of a terminal that has room for a larger bar per line
SHARE = len("  100.0 %  ")
MARK = len("> ")
UNLIMITED = 1_000_000  # columns of a line in a file
UNSURE = 0.5  # below it, the other classes together are more probable
FIRST = 20  # classes that a summary lists


def print_details(predicted: "PredictedImages") -> None:
    """Print the path of each image, and below it the top classes with percent and bar, the best one marked."""
    console = results()
    room = _room(console) - MARK - SHARE
    width = _widest((name for _, names, _ in predicted for name in names), room - SMALL_BAR)
    for number, (path, names, shares) in enumerate(predicted):
        console.print(Text("\n" * (number > 0) + printable(path), "bold"), soft_wrap=True)
        for rank, (name, share) in enumerate(zip(names, shares, strict=True)):
            mark, style = ("> ", f"bold {_style(share)}") if rank == 0 else ("  ", "")
            drawn = _share(share, min(LONG_BAR, room - width))
            console.print(Text.assemble(mark, _padded(name, width), drawn, style=style), soft_wrap=True)


def print_lines(predicted: "PredictedImages") -> None:
    """Print one line per image: path, top class, percent and a small bar."""
    console = results()
    length = SMALL_BAR if _room(console) >= WIDE else SMALLEST_BAR
    room = _room(console) - length - SHARE - 2
    width = _widest((names[0] for _, names, _ in predicted), room // 2)
    paths = _widest(predicted.paths, room - width)
    for path, (name, *_), (share, *_) in predicted:
        lead = shortened(printable(path), paths)
        lead += " " * (paths - cell_len(lead) + 2)
        named, drawn = (_padded(name, width), "bold"), (_share(share, length), _style(share))
        console.print(Text.assemble(lead, named, drawn), soft_wrap=True)


def print_summary(predicted: "PredictedImages") -> None:
    """Print the number of images per predicted class, of the most frequent classes if there are many."""
    console = results()
    counts = predicted.counts()
    listed, others = counts[:FIRST], counts[FIRST:]
    digits = len(str(listed[0][1]))
    room = _room(console) - digits - 2 - SHARE
    width = _widest((name for name, _ in listed), room - SMALL_BAR)
    skipped = f", {len(predicted.unreadable)} skipped" if predicted.unreadable else ""
    console.print(Text(f"\n{image_count(len(predicted))} by class{skipped}", "bold"))
    for name, count in listed:
        share = count / len(predicted)
        drawn = _share(share, min(LONG_BAR, room - width))
        console.print(Text.assemble(_padded(name, width), f"  {count:{digits}}", drawn), soft_wrap=True)
    if others:
        plural = "es" if len(others) > 1 else ""
        console.print(f"and {len(others)} more class{plural} with {image_count(sum(count for _, count in others))}")


def _padded(name: str, width: int) -> str:
    """Return a class name cut or padded to a number of columns."""
    cell = Text(printable(name))
    cell.truncate(width, overflow="ellipsis", pad=True)
    return cell.plain


def _share(share: float, length: int) -> str:
    """Return a share in percent, with a bar."""
    return f"  {100 * share:5.1f} %  {bar(share, length)}".rstrip()


def _style(share: float) -> str:
    return "green" if share >= UNSURE else "yellow"


def _widest(names: Iterable[str], most: int) -> int:
    """Return the columns of the widest name, at most `most`."""
    return max(1, min(most, max(cell_len(printable(name)) for name in names)))


def _room(console: Console) -> int:
    return console.width if sys.stdout.isatty() else UNLIMITED
