"""Accuracy over alpha as an SVG file that brings its own style."""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from taskres_cache.reporting.svg import (
    HEIGHT,
    LEFT,
    SERIES,
    WIDTH,
    Plane,
    add,
    add_axes,
    add_label,
    add_level,
    add_names,
    join_points,
    margin_of,
    new_chart,
    nice_ticks,
    series,
    standalone,
)
from taskres_cache.reporting.tables import percent


@dataclass(frozen=True)
class AlphaPoint:
    """Test accuracy in percent at one alpha: mean and standard deviation over seeds."""

    alpha: float
    mean: float
    deviation: float | None


@dataclass(frozen=True)
class AlphaCurve:
    """One base and shot count.

    Parameters
    ----------
    name : str
        What the reader sees; curves of one base have a name that begins alike.
    points : tuple of AlphaPoint
        By alpha, ascending.
    learned : AlphaPoint
        The mean of the learned alphas.
    """

    name: str
    points: tuple[AlphaPoint, ...]
    learned: AlphaPoint


def alpha_chart(curves: Sequence[AlphaCurve], zero_shot: float, title: str) -> str:
    """Return accuracy over alpha: a curve per base and shot count, a diamond at each learned alpha, and zero-shot.

    Curves of one shot count have one colour, those of one base one dash.
    """
    bases = list(dict.fromkeys(_base(curve) for curve in curves))
    points = [point for curve in curves for point in (*curve.points, curve.learned)]
    alphas = sorted({point.alpha for curve in curves for point in curve.points})
    ends = sorted({*alphas, *(curve.learned.alpha for curve in curves)})
    ticks = nice_ticks(min(zero_shot, *(one.mean for one in points)), max(zero_shot, *(one.mean for one in points)))
    plane = Plane([ends[0], *ends[1:]], ticks, margin_of([curve.name for curve in curves]), logarithmic=False)
    chart = new_chart(WIDTH, HEIGHT, title)
    add_axes(chart, plane, alphas, ticks)
    add_label(chart, (LEFT + plane.right) / 2, HEIGHT - 8, "alpha; diamonds: learned", "middle")
    add_level(chart, plane, zero_shot, "zero-shot")
    per_base = max(sum(_base(curve) == base for curve in curves) for base in bases)
    names = []
    for place, curve in enumerate(curves):
        number = place % per_base + SERIES * bases.index(_base(curve))
        _draw(chart, plane, curve, number)
        last = curve.points[-1]
        names.append((curve.name, (plane.x(last.alpha), plane.y(last.mean)), number))
    add_names(chart, plane, names)
    return standalone(chart)


def _base(curve: AlphaCurve) -> str:
    return curve.name.partition(",")[0]


def _draw(chart: ElementTree.Element, plane: Plane, curve: AlphaCurve, number: int) -> None:
    places = [(plane.x(one.alpha), plane.y(one.mean)) for one in curve.points]
    add(chart, "polyline", {"points": join_points(places), "class": f"line {series(number)}"})
    for (x, y), one in zip(places, curve.points, strict=True):
        mean = {"cx": x, "cy": y, "r": 3.5, "class": f"mean {series(number)}"}
        add(chart, "circle", mean, f"{curve.name}, alpha {one.alpha:g}: {_accuracy(one)}")
    x, y = plane.x(curve.learned.alpha), plane.y(curve.learned.mean)
    diamond = join_points([(x, y - 6), (x + 6, y), (x, y + 6), (x - 6, y)])
    mark: dict[str, object] = {"points": diamond, "class": f"published-mark {series(number)}"}
    add(chart, "polygon", mark, f"{curve.name}, learned alpha {curve.learned.alpha:.3g}: {_accuracy(curve.learned)}")


def _accuracy(one: AlphaPoint) -> str:
    spread = "" if one.deviation is None else f" ± {percent(one.deviation)}"
    return f"{percent(one.mean)}{spread} %"
