"""Tables of published figures, alone and next to ours."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from taskres_cache.reporting.published.compared import Compared
from taskres_cache.reporting.published.figures import Figure, Source
from taskres_cache.reporting.tables import Table, in_shots, percent, signed, with_deviation

WITHIN = {True: "yes", False: "no", None: "-"}


def figures_table(figures: Sequence[Figure]) -> Table:
    """Return published figures with one column per shot count; a row is of one source, method, backbone, data set."""
    shots = sorted({one.shots for one in figures})
    groups: dict[tuple[str, ...], dict[int, float]] = {}
    for one in figures:
        row = (one.dataset, one.backbone, one.name, one.source.key, one.chose_on_test)
        groups.setdefault(row, {})[one.shots] = one.accuracy
    rows = tuple((*names, *(percent(found.get(count)) for count in shots)) for names, found in groups.items())
    columns = ("data set", "backbone", "method", "source", "chose on test", *map(_heading, shots))
    return Table(f"{len(figures)} published test accuracies in %", columns, rows, left=5)


def sources_table(figures: Iterable[Figure]) -> Table:
    """Return the sources of figures: what they are, in which setting, and what is known of their choices."""
    notes: dict[Source, dict[str, dict[str, None]]] = {}
    for one in figures:
        notes.setdefault(one.source, {}).setdefault(one.note, {})[one.method] = None
    rows = tuple(
        (one.key, f"{one.title}, {one.where}", "; ".join(filter(None, (one.setting, *_remarks(found)))))
        for one, found in notes.items()
    )
    return Table("sources", ("source", "published in", "setting"), rows, left=3)


def compared_table(found: Sequence[Compared], datasets: Sequence[str] = ()) -> Table | None:
    """Return ours next to published figures, or None if there are none.

    Parameters
    ----------
    found : sequence of Compared
        The rows.
    datasets : sequence of str, optional
        The data set of each row; a table of one data set does not name it.
    """
    if not found:
        return None
    rows = [
        (
            one.ours.method,
            _heading(one.ours.shots),
            one.figures[0].name,
            " ".join(source.key for source in one.sources),
            one.chose_on_test,
            with_deviation(one.ours.mean, one.ours.deviation),
            percent(one.accuracy),
            signed(one.difference),
            WITHIN[one.within],
        )
        for one in found
    ]
    columns = (
        "ours",
        "shots",
        "published",
        "source",
        "chose on test",
        "ours %",
        "published %",
        "difference",
        "within ±",
    )
    if not datasets:
        return Table("", columns, tuple(rows), left=5)
    named = tuple((name, *row) for name, row in zip(datasets, rows, strict=True))
    return Table("", ("data set", *columns), named, left=6)


def _remarks(notes: dict[str, dict[str, None]]) -> list[str]:
    """Return each note behind the methods that it is about."""
    return [f"{', '.join(methods)}: {note}" for note, methods in notes.items() if note]


def figures_json(figures: Iterable[Figure]) -> list[dict[str, Any]]:
    """Return published figures as plain values for JSON."""
    return [{**asdict(one), "source": {**asdict(one.source), "url": one.source.url}} for one in figures]


def _heading(shots: int) -> str:
    return "zero-shot" if shots == 0 else in_shots(shots)
