"""Elements of SVG charts: texts, lines, axes. Colours, dashes and fonts come from the style sheet of the page.

Lengths are in units of the chart; the page scales it to its width.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from xml.etree import ElementTree

WIDTH, HEIGHT = 760.0, 400.0
LEFT, RIGHT, TOP, BOTTOM = 64.0, 28.0, 20.0, 52.0
INSET = 18.0
SERIES, DASHES = 8, 3  # colours and dashes in page.css
LETTER, LINE = 6.6, 14.0  # width of a letter and height of a line of a curve's name
LONGEST_NAME = 26
STYLE = Path(__file__).with_name("page.css")


class Plane:
    """Positions of values and accuracies in a chart.

    Parameters
    ----------
    values : sequence of float
        The values of the horizontal axis, ascending.
    ticks : sequence of float
        The marks of the vertical axis, see `nice_ticks`.
    right : float
        Width of the margin for names.
    height : float
        Height of the chart.
    logarithmic : bool
        Whether a doubling has one width, as for shots.
    """

    def __init__(
        self,
        values: Sequence[float],
        ticks: Sequence[float],
        right: float = RIGHT,
        height: float = HEIGHT,
        logarithmic: bool = True,
    ) -> None:
        self.right, self.floor = WIDTH - right, height - BOTTOM
        self._logarithmic = logarithmic
        self._first, self._lowest = self._scaled(values[0]), ticks[0]
        self._across = max(self._scaled(values[-1]) - self._first, 1e-9)
        self._up = ticks[-1] - ticks[0]
        self._alone = len(values) == 1

    def _scaled(self, value: float) -> float:
        return math.log2(value) if self._logarithmic else value

    def x(self, value: float) -> float:
        """Return the x of a value; a single one is in the middle."""
        width = self.right - LEFT
        share = 0.5 if self._alone else (self._scaled(value) - self._first) / self._across
        return round(LEFT + INSET + share * (width - 2 * INSET), 2)

    def y(self, accuracy: float) -> float:
        """Return the y of an accuracy."""
        return round(self.floor - (accuracy - self._lowest) / self._up * (self.floor - TOP), 2)


def nice_ticks(lowest: float, highest: float, about: int = 5) -> list[float]:
    """Return evenly spaced round numbers that cover `lowest` to `highest`."""
    span = max(highest - lowest, 1.0)
    power = 10 ** math.floor(math.log10(span / about))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power * about >= span)
    first, last = math.floor(lowest / step), math.ceil(highest / step)
    return [round(number * step, 6) for number in range(first, max(last, first + 1) + 1)]


def series(number: int) -> str:
    """Return the classes of a curve: colours repeat, each time with another dash."""
    return f"series-{number % SERIES} dash-{number // SERIES % DASHES}"


def new_chart(width: float, height: float, title: str) -> ElementTree.Element:
    """Return an empty chart."""
    box = f"0 0 {width:.0f} {height:.0f}"
    return ElementTree.Element("svg", {"viewBox": box, "role": "img", "aria-label": title, "class": "chart"})


def standalone(chart: ElementTree.Element) -> str:
    """Return a chart as an SVG file, with the style sheet of the page in it."""
    box = chart.get("viewBox", "").split()
    chart.attrib |= {"xmlns": "http://www.w3.org/2000/svg", "width": box[2], "height": box[3]}
    paper = ElementTree.Element("rect", {"width": "100%", "height": "100%", "style": "fill: var(--paper)"})
    style = ElementTree.Element("style")
    style.text = f"{STYLE.read_text(encoding='utf-8')}\n.chart {{ font-family: system-ui, sans-serif; }}\n"
    chart[:0] = [style, paper]
    return ElementTree.tostring(chart, encoding="unicode") + "\n"


def add(chart: ElementTree.Element, name: str, attributes: dict[str, object], tooltip: str = "") -> ElementTree.Element:
    """Add an element, with a tooltip if there is one."""
    plain = {key: f"{value:g}" if isinstance(value, float) else str(value) for key, value in attributes.items()}
    added = ElementTree.SubElement(chart, name, plain)
    if tooltip:
        ElementTree.SubElement(added, "title").text = tooltip
    return added


def add_axes(
    chart: ElementTree.Element, plane: Plane, values: Mapping[float, str] | Sequence[float], ticks: Sequence[float]
) -> None:
    """Add a line per tick, and the numbers of both axes; a mapping has other labels for the values."""
    labels = values if isinstance(values, Mapping) else {value: f"{value:g}" for value in values}
    decimals = 0 if all(tick == round(tick) for tick in ticks) else 1
    for tick in ticks:
        level = plane.y(tick)
        add(chart, "line", {"x1": LEFT, "x2": plane.right, "y1": level, "y2": level, "class": "grid"})
        add_label(chart, LEFT - 10, level + 4, f"{tick:.{decimals}f}", "end")
    for value, label in labels.items():
        add_label(chart, plane.x(value), plane.floor + 22, label, "middle")
    add_turned_label(chart, 18, (TOP + plane.floor) / 2, "test accuracy in %")


def add_level(chart: ElementTree.Element, plane: Plane, accuracy: float, name: str, kind: str = "zero-shot") -> None:
    """Add a horizontal line with its name."""
    level = plane.y(accuracy)
    line = {"x1": LEFT, "x2": plane.right, "y1": level, "y2": level, "class": kind}
    add(chart, "line", line, f"{name}: {accuracy:.2f} %")
    above = level - 8 if level - 8 > TOP + 8 else level + 18
    add_label(chart, plane.right - 4, above, f"{name} {accuracy:.2f}", "end", "zero-shot-label")


def add_names(chart: ElementTree.Element, plane: Plane, names: Sequence[tuple[str, tuple[float, float], int]]) -> None:
    """Add the name of each curve to the right of its last point, moved apart where they would overlap.

    `names` has a name, the last point and the number of each curve. A thin line leads from the point to the name.
    """
    ordered = sorted(names, key=lambda one: one[1][1])
    levels = spread([y for _, (_, y), _ in ordered], LINE, TOP, plane.floor)
    left = plane.right + 4
    for (name, (x, y), number), level in zip(ordered, levels, strict=True):
        places = join_points([(x + 5, y), (left - 4, level)])
        add(chart, "polyline", {"points": places, "class": f"leader {series(number)}"})
        short = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
        label = {"x": left, "y": level + 4, "class": f"name {series(number)}"}
        add(chart, "text", label, name if short != name else "").text = short


def margin_of(names: Sequence[str]) -> float:
    """Return the width of the margin that names need."""
    return RIGHT + LETTER * min(max(map(len, names)), LONGEST_NAME)


def spread(levels: Sequence[float], gap: float, lowest: float, highest: float) -> list[float]:
    """Return ascending levels moved as little as needed to be `gap` apart, or less if there is no room for it."""
    gap = min(gap, (highest - lowest) / max(len(levels) - 1, 1))
    groups: list[list[float]] = []  # of levels that touch, each less what its place in the row adds
    for place, level in enumerate(levels):
        groups.append([level - place * gap])
        while len(groups) > 1 and mean(groups[-2]) > mean(groups[-1]):
            last = groups.pop()
            groups[-1] += last
    starts = [mean(group) for group in groups for _ in group]
    end = highest - gap * (len(levels) - 1)
    return [min(max(start, lowest), end) + place * gap for place, start in enumerate(starts)]


def add_label(chart: ElementTree.Element, x: float, y: float, text: str, anchor: str, kind: str = "label") -> None:
    """Add a text."""
    add(chart, "text", {"x": x, "y": y, "text-anchor": anchor, "class": kind}).text = text


def add_turned_label(chart: ElementTree.Element, x: float, y: float, text: str) -> None:
    """Add a text that is read from below."""
    turned = {"x": x, "y": y, "text-anchor": "middle", "transform": f"rotate(-90 {x:g} {y:g})", "class": "label turned"}
    add(chart, "text", turned).text = text


def join_points(places: Sequence[tuple[float, float]]) -> str:
    """Return places as SVG writes them."""
    return " ".join(f"{x:g},{y:g}" for x, y in places)
