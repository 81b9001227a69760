"""The charts of a report as SVG: accuracy over shots, and accuracy over confidence."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from taskres_cache.datasets.sampling import ALL_SHOTS, shots_text
from taskres_cache.reporting.published.compared import Compared
from taskres_cache.reporting.svg import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Plane,
    add,
    add_axes,
    add_label,
    add_level,
    add_names,
    add_turned_label,
    join_points,
    margin_of,
    new_chart,
    nice_ticks,
    series,
)
from taskres_cache.reporting.tables import in_shots, percent
from taskres_cache.runs.results import Summary
from taskres_cache.runs.scores import Reliability

SQUARE = 300.0
MOST_DETAILED = 4  # curves drawn with bands, dots and published results; of more, these would hide each other
APART = 1.5  # least ratio of the position of all shots to that of the most other shots
TALL = 560.0  # height of a chart of more curves


@dataclass(frozen=True)
class Curve:
    """One method over shots.

    Parameters
    ----------
    name : str
        Name of the method.
    summaries : sequence of Summary
        By shots.
    dots : sequence of (int, float)
        Shots and test accuracy in percent of each run.
    colour : int
        Number of its colour and dash.
    """

    name: str
    summaries: Sequence[Summary]
    dots: Sequence[tuple[int, float]]
    colour: int


def accuracy_curves(curves: Sequence[Curve], published: Sequence[Compared]) -> str:
    """Return test accuracy over shots: mean, band of one deviation, one dot per run, zero-shot, published results.

    Several curves have their names at their right ends. Of many curves, only the means are drawn.
    """
    places = shot_places([row for curve in curves for row in curve.summaries])
    zero_shot = curves[0].summaries[0].zero_shot_accuracy
    detailed = len(curves) <= MOST_DETAILED
    diamonds = published_points(published) if detailed else {}
    height = HEIGHT if detailed else TALL
    dots = [y for curve in curves for _, y in curve.dots if detailed]
    edges = [edge for curve in curves for row in curve.summaries for edge in _band_of(row, detailed)]
    heights = [*dots, *edges, *(one.accuracy for points in diamonds.values() for one in points)]
    heights += [] if zero_shot is None else [zero_shot]
    ticks = nice_ticks(min(heights), max(heights))
    right = margin_of([curve.name for curve in curves]) if len(curves) > 1 else RIGHT
    plane = ShotPlane(places, ticks, right, height)
    chart = new_chart(WIDTH, height, "Test accuracy over shots")
    add_axes(chart, plane, {shots: shots_text(shots) for shots in places}, ticks)
    add_label(chart, (LEFT + plane.right) / 2, height - 8, "shots (images per class)", "middle")
    if zero_shot is not None:
        add_level(chart, plane, zero_shot, "zero-shot")
    colours = {curve.name: series(curve.colour) for curve in curves}
    for (method, _), points in diamonds.items():
        _published(chart, plane, points, colours.get(method, ""))
    for curve in curves:
        _curve(chart, plane, curve, detailed)
    if len(curves) > 1:
        add_names(chart, plane, [_end_of(curve, plane) for curve in curves])
    return ElementTree.tostring(chart, encoding="unicode")


def shot_places(rows: Sequence[Summary]) -> dict[int, float]:
    """Return shots -> position on the horizontal axis, ascending: the shots themselves.

    All shots lie at the mean number of training images per class, but far enough to the right for labels of their own.
    """
    places = {shots: float(shots) for shots in sorted({row.shots for row in rows})}
    if ALL_SHOTS in places:
        most = max((place for shots, place in places.items() if shots != ALL_SHOTS), default=1.0)
        means = [row.images_per_class or 0.0 for row in rows if row.shots == ALL_SHOTS]
        places[ALL_SHOTS] = max(*means, APART * most)
    return places


class ShotPlane(Plane):
    """Positions of shots and accuracies in a chart; `places` is what `shot_places` returns."""

    def __init__(self, places: Mapping[int, float], ticks: Sequence[float], right: float, height: float) -> None:
        super().__init__(list(places.values()), ticks, right, height)
        self._places = places

    def x(self, value: float) -> float:
        """Return the x of a shot count."""
        return super().x(self._places.get(int(value), value))


def published_points(published: Sequence[Compared]) -> dict[tuple[str, str], list[Compared]]:
    """Return published figures that curves show, by (our method, source), each once; zero-shot is a line."""
    found: dict[tuple[str, str], list[Compared]] = {}
    shown = set()
    for one in published:
        figure = one.figures[0]
        if one.ours.shots and (figure, one.ours.shots) not in shown:
            shown.add((figure, one.ours.shots))
            found.setdefault((one.ours.method, f"{figure.name}, {figure.source.key}"), []).append(one)
    return found


def reliability_diagram(found: Reliability, title: str) -> str:
    """Return accuracy over confidence, one bar per bin, with the diagonal on which both are equal."""
    side, bins = SQUARE - LEFT - RIGHT, len(found.counts)
    floor = TOP + side
    chart = new_chart(SQUARE, floor + BOTTOM, title)
    add(chart, "rect", {"x": LEFT, "y": TOP, "width": side, "height": side, "class": "frame"})
    for place in range(bins):
        if found.counts[place] == 0:
            continue
        accuracy, confidence, count = found.accuracies[place], found.confidences[place], int(found.counts[place])
        x, width = LEFT + side * place / bins, side / bins
        bar = {"x": x + 1, "y": floor - side * accuracy, "width": width - 2, "height": max(side * accuracy, 1.5)}
        tooltip = f"{count} predictions with confidence {100 * confidence:.1f} %: {100 * accuracy:.1f} % correct"
        add(chart, "rect", {**bar, "class": "bar", "opacity": _opacity(count, int(found.counts.max()))}, tooltip)
        level = floor - side * confidence
        add(chart, "line", {"x1": x + 1, "x2": x + width - 1, "y1": level, "y2": level, "class": "level"})
    add(chart, "line", {"x1": LEFT, "y1": floor, "x2": LEFT + side, "y2": TOP, "class": "diagonal"})
    for share in (0.0, 0.5, 1.0):
        add_label(chart, LEFT + side * share, floor + 20, f"{100 * share:.0f}", "middle")
        add_label(chart, LEFT - 8, floor - side * share + 4, f"{100 * share:.0f}", "end")
    add_label(chart, LEFT + side / 2, floor + 40, "confidence in %", "middle")
    add_turned_label(chart, 18, TOP + side / 2, "accuracy in %")
    return ElementTree.tostring(chart, encoding="unicode")


def _curve(chart: ElementTree.Element, plane: Plane, curve: Curve, detailed: bool) -> None:
    """Draw a method: the band, one dot per run, and on top the line of means."""
    own, colour = series(curve.colour), series(curve.colour).split()[0]
    rows = curve.summaries
    if detailed and len(rows) > 1 and any(row.std_test_accuracy for row in rows):
        upper = [(plane.x(row.shots), plane.y(_band_of(row)[1])) for row in rows]
        lower = [(plane.x(row.shots), plane.y(_band_of(row)[0])) for row in reversed(rows)]
        add(chart, "polygon", {"points": join_points([*upper, *lower]), "class": f"band {colour}"})
    for shots, accuracy in curve.dots if detailed else ():
        add(chart, "circle", {"cx": plane.x(shots), "cy": plane.y(accuracy), "r": 2.6, "class": f"dot {colour}"})
    means = [(plane.x(row.shots), plane.y(row.mean_test_accuracy)) for row in rows]
    add(chart, "polyline", {"points": join_points(means), "class": f"line {own}"})
    for row, (x, y) in zip(rows, means, strict=True):
        spread = "" if row.std_test_accuracy is None else f" ± {percent(row.std_test_accuracy)}"
        seeds = ", ".join(map(str, row.seeds))
        tooltip = f"{curve.name}, {in_shots(row.shots)}: {percent(row.mean_test_accuracy)}{spread} % (seeds {seeds})"
        add(chart, "circle", {"cx": x, "cy": y, "r": 4.5, "class": f"mean {colour}"}, tooltip)


def _end_of(curve: Curve, plane: Plane) -> tuple[str, tuple[float, float], int]:
    """Return what `add_names` needs of a curve."""
    last = curve.summaries[-1]
    return curve.name, (plane.x(last.shots), plane.y(last.mean_test_accuracy)), curve.colour


def _published(chart: ElementTree.Element, plane: Plane, points: Sequence[Compared], colour: str) -> None:
    places = [(plane.x(one.ours.shots), plane.y(one.accuracy)) for one in points]
    if len(places) > 1:
        add(chart, "polyline", {"points": join_points(places), "class": f"published {colour}".strip()})
    for (x, y), one in zip(places, points, strict=True):
        diamond = [(x, y - 6), (x + 6, y), (x, y + 6), (x - 6, y)]
        chose = "" if one.chose_on_test == "no" else f", chose on test: {one.chose_on_test}"
        where = f"{one.figures[0].name}, {one.figures[0].source.key}{chose}"
        tooltip = f"published, {in_shots(one.ours.shots)}: {percent(one.accuracy)} % ({where})"
        add(chart, "polygon", {"points": join_points(diamond), "class": f"published-mark {colour}".strip()}, tooltip)


def _band_of(row: Summary, detailed: bool = True) -> tuple[float, float]:
    """Return the mean minus and plus one deviation; the mean twice where no band is drawn."""
    deviation = (row.std_test_accuracy or 0.0) if detailed else 0.0
    return row.mean_test_accuracy - deviation, min(row.mean_test_accuracy + deviation, 100.0)


def _opacity(count: int, most: int) -> str:
    """Return the opacity of a bin's bar: bins with few images are faint, but visible."""
    return f"{0.35 + 0.65 * math.sqrt(count / most):.2f}"
