"""The tables of a comparison of methods, and what each method chose."""

import statistics
from collections.abc import Callable, Sequence

from taskres_cache.datasets.sampling import shots_text
from taskres_cache.reporting.comparison.grid import Cell, Grid, is_zero_shot
from taskres_cache.reporting.studies import Study
from taskres_cache.reporting.tables import Table, in_shots, percent, signed, with_deviation
from taskres_cache.runs.metrics import Metrics

RECORDS = (
    "title", "datasets", "fits", "method", "shots", "mean", "std", "gain", "rank", "best", "seconds", "difference",
    "difference_low", "difference_high", "pairs",
)  # fmt: skip


def is_comparison(grid: Grid) -> bool:
    """Return True if there are at least two methods, besides zero-shot."""
    return len([name for name in grid.methods if not is_zero_shot(name)]) > 1


def comparison_tables(grid: Grid) -> list[Table]:
    """Return accuracy, gain over zero-shot, and paired differences, each as methods x shots."""
    gains = [gain_table(grid)] if any(map(is_zero_shot, grid.methods)) else []
    return [accuracy_table(grid), *gains, *([difference_table(grid)] if grid.reference else [])]


def accuracy_table(grid: Grid) -> Table:
    """Return mean and deviation per shot count, the best in bold, with mean gain, mean rank and seconds per fit."""
    several, has_text = len(grid.datasets) > 1, any(map(is_zero_shot, grid.methods))
    rows = [
        (
            name,
            *(_accuracy(cells.get(count)) for count in grid.shots),
            *([_over_shots(cells, grid, lambda cell: cell.gain, signed)] if has_text else []),
            *([_over_shots(cells, grid, lambda cell: cell.rank, percent)] if several else []),
            _over_shots(cells, grid, lambda cell: cell.seconds, "{:.3f}".format),
        )
        for name, cells in grid.methods.items()
    ]
    bold = frozenset(
        (row, column)
        for row, cells in enumerate(grid.methods.values())
        for column, count in enumerate(grid.shots, start=1)
        if count in cells and cells[count].best
    )
    gain, rank = ["gain"] if has_text else [], ["rank"] if several else []
    columns = ("method", *map(in_shots, grid.shots), *gain, *rank, "s per fit")
    title = f"{grid.title}\ntest accuracy in %, mean and standard deviation over {_over(grid)}"
    return Table(title, columns, tuple(rows), bold=bold)


def gain_table(grid: Grid) -> Table:
    """Return the gain over zero-shot per shot count."""
    rows = tuple(
        (name, *(signed(cells[count].gain) if count in cells else "-" for count in grid.shots))
        for name, cells in grid.methods.items()
        if not is_zero_shot(name)
    )
    title = f"{grid.title}\ngain over zero-shot in points, mean over {_over(grid)}"
    return Table(title, ("method", *map(in_shots, grid.shots)), rows)


def difference_table(grid: Grid) -> Table:
    """Return the paired difference to the reference per shot count, with its interval."""
    others = [name for name in grid.methods if not is_zero_shot(name) and name != grid.reference]
    rows = tuple((name, *(_difference(grid.methods[name].get(count)) for count in grid.shots)) for name in others)
    found = [cell.difference for name in others for cell in grid.methods[name].values() if cell.difference]
    counts = sorted({one.pairs for one in found}) or [0]
    pairs = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    over = "seeds and data sets" if len(grid.datasets) > 1 else "seeds"
    title = (
        f"{grid.title}\npaired difference to {grid.reference} in points, with its 95 % t-interval over {over} "
        f"(pairs per cell: {pairs})"
    )
    return Table(title, ("method", *map(in_shots, grid.shots)), rows)


def records_table(grids: Sequence[Grid]) -> Table:
    """Return one row per method and shot count with all numbers; other programs read it as CSV."""
    rows = [
        _record(grid, name, count, cell)
        for grid in grids
        for name, cells in grid.methods.items()
        for count, cell in cells.items()
    ]
    return Table("comparison", RECORDS, tuple(rows), left=4)


def chosen_table(study: Study) -> Table | None:
    """Return what each method chose per shot count and seed, or None if none chose anything."""
    rows: dict[tuple[str, int], list[tuple[int, str]]] = {}
    for run in study.runs:
        metrics = run.metrics
        if _settings(metrics):
            rows.setdefault((metrics.method, metrics.shots), []).append((metrics.seed, _settings(metrics)))
    if not rows:
        return None
    order = list(dict.fromkeys(method for method, _ in rows))
    ascending = sorted(rows, key=lambda row: (order.index(row[0]), row[1]))
    cells = tuple((method, shots_text(shots), _over_seeds(rows[method, shots])) for method, shots in ascending)
    title = f"{study.title}, {study.backbone} ({study.pretrained})\nwhat each method chose, never by test images"
    return Table(title, ("method", "shots", "chosen"), cells, left=3)


def _over(grid: Grid) -> str:
    """Return what the cells are means over."""
    seeds = sorted({seed for where in grid.fits.values() for _, seed in where})
    text = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    return text if len(grid.datasets) == 1 else f"{text} of the mean over {', '.join(grid.datasets)}"


def _accuracy(cell: Cell | None) -> str:
    return "-" if cell is None else with_deviation(cell.mean, cell.deviation)


def _over_shots(
    cells: dict[int, Cell], grid: Grid, number: Callable[[Cell], float | None], formatted: Callable[[float], str]
) -> str:
    """Return a mean over all shot counts; a dash for a method that misses one."""
    numbers = [number(cells[count]) for count in grid.shots if count in cells]
    known = [one for one in numbers if one is not None]
    return formatted(statistics.mean(known)) if len(known) == len(grid.shots) else "-"


def _difference(cell: Cell | None) -> str:
    found = None if cell is None else cell.difference
    if found is None:
        return "-"
    if found.low is None or found.high is None:
        return signed(found.mean)
    return f"{signed(found.mean)} [{signed(found.low)}, {signed(found.high)}]"


def _record(grid: Grid, name: str, shots: int, cell: Cell) -> tuple[str, ...]:
    fits = " ".join(f"{dataset}:{seed}" for dataset, seed in grid.fits[shots])
    difference = cell.difference
    low, high = (None, None) if difference is None else (difference.low, difference.high)
    numbers = (cell.mean, cell.deviation, cell.gain, cell.rank)
    others = (cell.seconds, None if difference is None else difference.mean, low, high)
    pairs = "" if difference is None else str(difference.pairs)
    head = (grid.title, str(len(grid.datasets)), fits, name, shots_text(shots))
    return (*head, *map(_number, numbers), "yes" if cell.best else "no", *map(_number, others), pairs)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _settings(metrics: Metrics) -> str:
    """Return the hyper-parameters that a run chose, or computed by a rule."""
    if metrics.settings:
        return ", ".join(f"{name} {_plain(value)}" for name, value in metrics.settings.items())
    best = metrics.chosen
    return "" if best is None else f"alpha {best.alpha:g}, lr {best.lr:g}, weight decay {best.weight_decay:g}"


def _plain(value: float | int | str) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _over_seeds(chosen: Sequence[tuple[int, str]]) -> str:
    """Return the choices of all seeds; once if they are equal."""
    if len({text for _, text in chosen}) == 1:
        return chosen[0][1]
    return "; ".join(f"seed {seed}: {text}" for seed, text in sorted(chosen))
