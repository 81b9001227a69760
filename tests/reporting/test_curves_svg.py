"""Positions in charts, worked out by hand."""

from dataclasses import replace
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from taskres_cache.datasets.sampling import ALL_SHOTS
from taskres_cache.reporting.curves_svg import Curve, accuracy_curves, reliability_diagram, shot_places
from taskres_cache.reporting.published.compared import Compared, Measured
from taskres_cache.reporting.published.figures import Figure, Source
from taskres_cache.reporting.svg import nice_ticks, spread
from taskres_cache.runs.results import Summary
from taskres_cache.runs.scores import reliability


@pytest.mark.parametrize(
    ("lowest", "highest", "expected"),
    [
        (90.8, 98.6, [90, 92, 94, 96, 98, 100]),
        (49.25, 93.31, [40, 50, 60, 70, 80, 90, 100]),
        (96.1, 96.3, [96, 96.2, 96.4]),
        (0.0, 100.0, [0, 20, 40, 60, 80, 100]),
    ],
)
def test_ticks_are_round_and_cover_the_range(lowest: float, highest: float, expected: list[float]) -> None:
    ticks = nice_ticks(lowest, highest)
    assert ticks[0] <= lowest
    assert ticks[-1] >= highest
    assert 2 <= len(ticks) <= 8
    assert np.allclose(np.diff(ticks), ticks[1] - ticks[0])
    assert ticks == expected


def summary(shots: int, mean: float, deviation: float | None) -> Summary:
    return Summary("m", shots, (1, 2), 60.0, 60.0, None, mean, deviation)


def drawn(*curves: Curve, published: tuple[Compared, ...] = ()) -> ElementTree.Element:
    return ElementTree.fromstring(accuracy_curves(curves, published))


def of_kind(chart: ElementTree.Element, kind: str) -> list[ElementTree.Element]:
    return [element for element in chart.iter() if kind in element.get("class", "").split()]


def test_positions_of_means_and_of_shots_by_their_logarithm() -> None:
    rows = [summary(shots, mean, 1.0) for shots, mean in ((1, 70.0), (2, 75.0), (4, 80.0))]
    chart = drawn(Curve("m", rows, [(1, 70.0)], 0))
    means = of_kind(chart, "mean")
    x = [float(mean.get("cx", "")) for mean in means]
    y = [float(mean.get("cy", "")) for mean in means]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1])  # a doubling of shots has one width
    assert y[0] - y[1] == pytest.approx(y[1] - y[2])
    zero_shot = float(of_kind(chart, "zero-shot")[0].get("y1", ""))
    assert zero_shot - y[0] == pytest.approx(2 * (y[0] - y[1]))  # 60 is twice as far below 70 as 70 below 75
    assert means[2][0].text == "m, 4 shots: 80.00 ± 1.00 % (seeds 1, 2)"
    (band,) = of_kind(chart, "band")
    corners = [tuple(map(float, corner.split(","))) for corner in band.get("points", "").split()]
    assert len(corners) == 6
    upper, lower = corners[0][1], corners[-1][1]
    assert y[0] - upper == pytest.approx(lower - y[0])
    assert lower - upper == pytest.approx((y[0] - y[1]) * 2 / 5)
    assert float(of_kind(chart, "dot")[0].get("cy", "")) == y[0]


def test_all_shots_lie_at_the_mean_number_of_images_per_class() -> None:
    rows = [
        summary(1, 70.0, None),
        summary(4, 75.0, None),
        replace(summary(ALL_SHOTS, 80.0, None), images_per_class=64),
    ]
    chart = drawn(Curve("m", rows, [(ALL_SHOTS, 80.0)], 0))
    x = [float(mean.get("cx", "")) for mean in of_kind(chart, "mean")]
    assert x[2] - x[1] == pytest.approx(2 * (x[1] - x[0]), abs=0.02)  # 4 to 64 is twice as many doublings as 1 to 4
    assert float(of_kind(chart, "dot")[0].get("cx", "")) == x[2]
    assert [label.text for label in of_kind(chart, "label") if float(label.get("x", "")) in x] == ["1", "4", "all"]
    assert of_kind(chart, "mean")[2][0].text == "m, all shots: 80.00 % (seeds 1, 2)"


def test_the_label_of_all_shots_does_not_cover_another() -> None:
    few = replace(summary(ALL_SHOTS, 80.0, None), images_per_class=3.0)  # some classes have fewer than 4 images
    assert shot_places([summary(4, 75.0, None), few]) == {4: 4.0, ALL_SHOTS: 6.0}
    assert shot_places([few]) == {ALL_SHOTS: 3.0}


def test_one_seed_has_no_band_and_one_shot_count_is_in_the_middle() -> None:
    chart = drawn(Curve("m", [summary(16, 70.0, None)], [(16, 70.0)], 9))
    assert of_kind(chart, "band") == []
    (mean,) = of_kind(chart, "mean")
    grid = of_kind(chart, "grid")[0]
    assert float(mean.get("cx", "")) == (float(grid.get("x1", "")) + float(grid.get("x2", ""))) / 2
    assert mean.get("class") == "mean series-1"  # colours repeat


def test_published_results_are_drawn_in_the_colour_of_their_method() -> None:
    source = Source("S1", "title", "Table 1", "")

    def published(method: str, shots: int, accuracy: float, **known: Any) -> Compared:
        return Compared(
            Measured(method, shots, 70.0, None), (Figure("TaskRes", "b", "d", shots, accuracy, source, **known),)
        )

    found = (
        published("zero-shot", 0, 60.0),
        published("m", 1, 71.0),
        published("m", 2, 75.0, chose_on_test="yes"),
        published("another variant", 2, 75.0, chose_on_test="yes"),  # the same figure again
    )
    chart = drawn(Curve("m", [summary(1, 70.0, None), summary(2, 75.0, None)], [], 1), published=found)
    marks = of_kind(chart, "published-mark")
    assert [mark[0].text for mark in marks] == [
        "published, 1 shot: 71.00 % (TaskRes, S1)",
        "published, 2 shots: 75.00 % (TaskRes, S1, chose on test: yes)",
    ]
    assert {mark.get("class") for mark in marks} == {"published-mark series-1 dash-0"}
    ticks = [float(line.get("y1", "")) for line in of_kind(chart, "grid")]
    assert all(min(ticks) <= corner_y <= max(ticks) for mark in marks for corner_y in [middle_of(mark)])


def middle_of(mark: ElementTree.Element) -> float:
    return float(mark.get("points", "").split()[1].split(",")[1])


def test_seventeen_curves_are_told_apart() -> None:
    curves = [
        Curve(f"m{n}", [summary(1, 70.0, 1.0), summary(16, 80.0 + 0.1 * n, 1.0)], [(1, 70.0)], n) for n in range(17)
    ]
    chart = drawn(*curves)
    assert len({line.get("class") for line in of_kind(chart, "line")}) == 17
    assert of_kind(chart, "band") == of_kind(chart, "dot") == []
    names = of_kind(chart, "name")
    assert [name.text for name in names] == [f"m{n}" for n in reversed(range(17))]  # the best on top
    levels = [float(name.get("y", "")) for name in names]
    assert min(after - before for before, after in pairwise(levels)) >= 14 - 1e-6
    right = max(float(line.get("x2", "")) for line in of_kind(chart, "grid"))
    assert all(float(name.get("x", "")) > right - 18 for name in names)


def test_names_are_moved_as_little_as_needed() -> None:
    assert spread([10.0, 50.0], 14, 0, 100) == [10, 50]
    assert spread([10.0, 12.0, 60.0], 14, 0, 100) == [4, 18, 60]
    assert spread([90.0, 97.0], 14, 0, 100) == [86, 100]
    assert spread([1.0, 2.0, 3.0], 14, 0, 10) == [0, 5, 10]  # no room


def test_names_are_escaped() -> None:
    name = '<script>alert("&")</script>'
    chart = drawn(Curve(name, [summary(1, 70.0, None)], [], 0))
    assert [element for element in chart.iter() if element.tag == "script"] == []
    assert of_kind(chart, "mean")[0][0].text.startswith(name)  # type: ignore[union-attr]


def test_a_reliability_diagram_by_hand() -> None:
    found = reliability(np.array([0.25, 0.25, 0.75, 0.75]), np.array([True, False, True, True]), bins=2)
    chart = ElementTree.fromstring(reliability_diagram(found, "a title"))
    first, second = of_kind(chart, "bar")
    frame = of_kind(chart, "frame")[0]
    side = float(frame.get("height", ""))
    assert [float(bar.get("height", "")) for bar in (first, second)] == pytest.approx([side / 2, side])
    levels = [float(level.get("y1", "")) - float(frame.get("y", "")) for level in of_kind(chart, "level")]
    assert levels == pytest.approx([0.75 * side, 0.25 * side])
    assert first[0].text == "2 predictions with confidence 25.0 %: 50.0 % correct"
