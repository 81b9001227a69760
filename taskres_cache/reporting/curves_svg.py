"""Charts as SVG. Colours and fonts come from the style sheet of the page, so that light and dark mode work.

Lengths are in units of the chart; the page scales it to its width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from taskres_cache.reporting.published_results import PublishedResults
from taskres_cache.reporting.tables import in_shots, percent
from taskres_cache.runs.results import Summary
from taskres_cache.runs.scores import Reliability

WIDTH, HEIGHT = 760.0, 400.0
LEFT, RIGHT, TOP, BOTTOM = 64.0, 28.0, 20.0, 52.0
SQUARE = 300.0
SERIES = 8  # colours in page.css


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
        Number of its colour.
    """

    name: str
    summaries: Sequence[Summary]
    dots: Sequence[tuple[int, float]]
    colour: int


def accuracy_curves(curves: Sequence[Curve], published: Sequence[PublishedResults]) -> str:
    """Return test accuracy over shots: mean, band of one deviation, one dot per run, zero-shot, published results."""
    shots = sorted({row.shots for curve in curves for row in curve.summaries})
    compared = [[(k, one.accuracy[k]) for k in shots if k in one.accuracy] for one in published]
    zero_shot = curves[0].summaries[0].zero_shot_accuracy
    shown = [y for points in (*compared, *(curve.dots for curve in curves)) for _, y in points]
    edges = [edge for curve in curves for row in curve.summaries for edge in _band_of(row)]
    ticks = nice_ticks(min(zero_shot, *shown, *edges), max(zero_shot, *shown, *edges))
    plane = _Plane(shots, ticks)
    chart = _chart(WIDTH, HEIGHT, "Test accuracy over shots")
    _axes(chart, plane, shots, ticks)
    _zero_shot_line(chart, plane, zero_shot)
    for points in compared:
        _published(chart, plane, points)
    for curve in curves:
        _curve(chart, plane, curve)
    return ElementTree.tostring(chart, encoding="unicode")


def reliability_diagram(found: Reliability, title: str) -> str:
    """Return accuracy over confidence, one bar per bin, with the diagonal on which both are equal."""
    side, bins = SQUARE - LEFT - RIGHT, len(found.counts)
    floor = TOP + side
    chart = _chart(SQUARE, floor + BOTTOM, title)
    _add(chart, "rect", {"x": LEFT, "y": TOP, "width": side, "height": side, "class": "frame"})
    for place in range(bins):
        if found.counts[place] == 0:
            continue
        accuracy, confidence, count = found.accuracies[place], found.confidences[place], int(found.counts[place])
        x, width = LEFT + side * place / bins, side / bins
        bar = {"x": x + 1, "y": floor - side * accuracy, "width": width - 2, "height": max(side * accuracy, 1.5)}
        tooltip = f"{count} predictions with confidence {100 * confidence:.1f} %: {100 * accuracy:.1f} % correct"
        _add(chart, "rect", {**bar, "class": "bar", "opacity": _opacity(count, int(found.counts.max()))}, tooltip)
        level = floor - side * confidence
        _add(chart, "line", {"x1": x + 1, "x2": x + width - 1, "y1": level, "y2": level, "class": "level"})
    _add(chart, "line", {"x1": LEFT, "y1": floor, "x2": LEFT + side, "y2": TOP, "class": "diagonal"})
    for share in (0.0, 0.5, 1.0):
        _label(chart, LEFT + side * share, floor + 20, f"{100 * share:.0f}", "middle")
        _label(chart, LEFT - 8, floor - side * share + 4, f"{100 * share:.0f}", "end")
    _label(chart, LEFT + side / 2, floor + 40, "confidence in %", "middle")
    _turned_label(chart, 18, TOP + side / 2, "accuracy in %")
    return ElementTree.tostring(chart, encoding="unicode")


def nice_ticks(lowest: float, highest: float, about: int = 5) -> list[float]:
    """Return evenly spaced round numbers that cover `lowest` to `highest`."""
    span = max(highest - lowest, 1.0)
    power = 10 ** math.floor(math.log10(span / about))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power * about >= span)
    first, last = math.floor(lowest / step), math.ceil(highest / step)
    return [round(number * step, 6) for number in range(first, max(last, first + 1) + 1)]


class _Plane:
    """Positions of shots (on a logarithmic axis) and accuracies in the chart."""

    def __init__(self, shots: Sequence[int], ticks: Sequence[float]) -> None:
        self._first, self._lowest = math.log2(shots[0]), ticks[0]
        self._across = max(math.log2(shots[-1]) - self._first, 1e-9)
        self._up = ticks[-1] - ticks[0]
        self._alone = len(shots) == 1

    def x(self, shots: int) -> float:
        """Return the x of a shot count; a single one is in the middle."""
        inset, width = 18.0, WIDTH - LEFT - RIGHT
        share = 0.5 if self._alone else (math.log2(shots) - self._first) / self._across
        return round(LEFT + inset + share * (width - 2 * inset), 2)

    def y(self, accuracy: float) -> float:
        """Return the y of an accuracy."""
        return round(HEIGHT - BOTTOM - (accuracy - self._lowest) / self._up * (HEIGHT - TOP - BOTTOM), 2)


def _axes(chart: ElementTree.Element, plane: _Plane, shots: Sequence[int], ticks: Sequence[float]) -> None:
    decimals = 0 if all(tick == round(tick) for tick in ticks) else 1
    for tick in ticks:
        level = plane.y(tick)
        _add(chart, "line", {"x1": LEFT, "x2": WIDTH - RIGHT, "y1": level, "y2": level, "class": "grid"})
        _label(chart, LEFT - 10, level + 4, f"{tick:.{decimals}f}", "end")
    for count in shots:
        _label(chart, plane.x(count), HEIGHT - BOTTOM + 22, str(count), "middle")
    _label(chart, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "shots (images per class)", "middle")
    _turned_label(chart, 18, (TOP + HEIGHT - BOTTOM) / 2, "test accuracy in %")


def _zero_shot_line(chart: ElementTree.Element, plane: _Plane, accuracy: float) -> None:
    level = plane.y(accuracy)
    line = {"x1": LEFT, "x2": WIDTH - RIGHT, "y1": level, "y2": level, "class": "zero-shot"}
    _add(chart, "line", line, f"zero-shot: {percent(accuracy)} %")
    above = level - 8 if level - 8 > TOP + 8 else level + 18
    _label(chart, WIDTH - RIGHT - 4, above, f"zero-shot {percent(accuracy)}", "end", "zero-shot-label")


def _curve(chart: ElementTree.Element, plane: _Plane, curve: Curve) -> None:
    """Draw a method: the band, one dot per run, and on top the line of means."""
    colour = f"series-{curve.colour % SERIES}"
    rows = curve.summaries
    if len(rows) > 1 and any(row.std_test_accuracy for row in rows):
        upper = [(plane.x(row.shots), plane.y(_band_of(row)[1])) for row in rows]
        lower = [(plane.x(row.shots), plane.y(_band_of(row)[0])) for row in reversed(rows)]
        _add(chart, "polygon", {"points": _points([*upper, *lower]), "class": f"band {colour}"})
    for shots, accuracy in curve.dots:
        _add(chart, "circle", {"cx": plane.x(shots), "cy": plane.y(accuracy), "r": 2.6, "class": f"dot {colour}"})
    means = [(plane.x(row.shots), plane.y(row.mean_test_accuracy)) for row in rows]
    _add(chart, "polyline", {"points": _points(means), "class": f"line {colour}"})
    for row, (x, y) in zip(rows, means, strict=True):
        spread = "" if row.std_test_accuracy is None else f" ± {percent(row.std_test_accuracy)}"
        seeds = ", ".join(map(str, row.seeds))
        tooltip = f"{curve.name}, {in_shots(row.shots)}: {percent(row.mean_test_accuracy)}{spread} % (seeds {seeds})"
        _add(chart, "circle", {"cx": x, "cy": y, "r": 4.5, "class": f"mean {colour}"}, tooltip)


def _published(chart: ElementTree.Element, plane: _Plane, points: Sequence[tuple[int, float]]) -> None:
    places = [(plane.x(shots), plane.y(accuracy)) for shots, accuracy in points]
    if len(places) > 1:
        _add(chart, "polyline", {"points": _points(places), "class": "published"})
    for (x, y), (shots, accuracy) in zip(places, points, strict=True):
        diamond = [(x, y - 6), (x + 6, y), (x, y + 6), (x - 6, y)]
        tooltip = f"published, {in_shots(shots)}: {percent(accuracy)} %"
        _add(chart, "polygon", {"points": _points(diamond), "class": "published-mark"}, tooltip)


def _band_of(row: Summary) -> tuple[float, float]:
    """Return the mean minus and plus one deviation."""
    deviation = row.std_test_accuracy or 0.0
    return row.mean_test_accuracy - deviation, min(row.mean_test_accuracy + deviation, 100.0)


def _opacity(count: int, most: int) -> str:
    """Return the opacity of a bin's bar: bins with few images are faint, but visible."""
    return f"{0.35 + 0.65 * math.sqrt(count / most):.2f}"


def _chart(width: float, height: float, title: str) -> ElementTree.Element:
    box = f"0 0 {width:.0f} {height:.0f}"
    chart = ElementTree.Element("svg", {"viewBox": box, "role": "img", "aria-label": title, "class": "chart"})
    return chart


def _add(
    chart: ElementTree.Element, name: str, attributes: dict[str, object], tooltip: str = ""
) -> ElementTree.Element:
    """Add an element, with a tooltip if there is one."""
    plain = {key: f"{value:g}" if isinstance(value, float) else str(value) for key, value in attributes.items()}
    added = ElementTree.SubElement(chart, name, plain)
    if tooltip:
        ElementTree.SubElement(added, "title").text = tooltip
    return added


def _label(chart: ElementTree.Element, x: float, y: float, text: str, anchor: str, kind: str = "label") -> None:
    _add(chart, "text", {"x": x, "y": y, "text-anchor": anchor, "class": kind}).text = text


def _turned_label(chart: ElementTree.Element, x: float, y: float, text: str) -> None:
    turned = {"x": x, "y": y, "text-anchor": "middle", "transform": f"rotate(-90 {x:g} {y:g})", "class": "label turned"}
    _add(chart, "text", turned).text = text


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in places)
