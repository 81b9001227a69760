"""Progress of long loops over images: the protocol that the library calls, a rich bar, and a silent stand-in."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, Self

from taskres_cache.system.text import printable

if TYPE_CHECKING:
    from rich.progress import ProgressColumn, TaskID


class Progress(Protocol):
    """Receives the progress of stage one and of prediction."""

    def begin(self, what: str, total: int, done: int) -> None:
        """Start counting to `total`, of which `done` already exist."""

    def advance(self, count: int) -> None:
        """Count `count` more."""


class Silent:
    """A progress that shows nothing."""

    def begin(self, what: str, total: int, done: int) -> None:
        """Do nothing."""

    def advance(self, count: int) -> None:
        """Do nothing."""


class ProgressBar:
    """A rich progress bar on standard error, or in a notebook, with rate and time left; use as a context manager."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        described = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), _rate_column())
        self._bar = RichProgress(*described, TimeRemainingColumn(), console=Console(stderr=True))
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def begin(self, what: str, total: int, done: int) -> None:
        """Start a new bar at `done` of `total`."""
        self._task = self._bar.add_task(described_start(what, done), total=total, completed=done)

    def advance(self, count: int) -> None:
        """Move the bar forward."""
        if self._task is not None:
            self._bar.advance(self._task, count)


@contextmanager
def default_progress() -> Iterator[Progress]:
    """Yield a bar if standard error is a terminal or the code runs in a notebook, else a silent progress."""
    from rich.console import Console

    console = Console(stderr=True)
    if not (console.is_terminal or console.is_jupyter):
        yield Silent()
        return
    with ProgressBar() as bar:
        yield bar


def described_start(what: str, done: int) -> str:
    """Return the label of a count, with the number of items that already exist."""
    return printable(what if done == 0 else f"{what} ({done} already there)")


def _rate_column() -> "ProgressColumn":
    """Return a column that shows items per second; built here so that rich is imported only for a bar."""
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class RateColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.1f}/s" if task.speed else "", style="progress.data.speed")

    return RateColumn()
