"""Accuracy over shots as a PNG, for a paper or a slide; the only module that imports matplotlib."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

from taskres_cache.datasets.sampling import shots_text
from taskres_cache.reporting.curves_svg import MOST_DETAILED, published_points, shot_places
from taskres_cache.reporting.destinations import require_matplotlib
from taskres_cache.reporting.studies import Study

PANEL = (6.4, 4.4)  # inches
NAMED = 0.1  # inches of a name in the legend below
PANELS_PER_ROW = 3
DPI = 160
ZERO_SHOT = "#6b7280"
COLOURS = ("#2456c9", "#c2410c", "#0a7f5a", "#8b3fb5", "#b8860b", "#0e7490", "#be185d", "#4d5b2a")  # as on the page
DASHES = ("-", (0, (4, 2.5)), (0, (1, 2)))


def as_png(studies: Sequence[Study]) -> bytes:
    """Return accuracy over shots as a PNG, one panel per study; raises MissingExtraError without matplotlib."""
    require_matplotlib()
    from matplotlib.figure import Figure

    columns = min(len(studies), PANELS_PER_ROW)
    rows = -(-len(studies) // columns)
    height = PANEL[1] + NAMED * max(len(study.methods) for study in studies)
    figure = Figure(figsize=(PANEL[0] * columns, height * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for study, panel in zip(studies, panels, strict=False):
        _draw(panel, study)
    for panel in panels[len(studies) :]:
        panel.set_axis_off()
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=DPI)
    return stream.getvalue()


def _draw(panel: Any, study: Study) -> None:
    """Draw the methods of a study, zero-shot and published results."""
    zero_shot = study.summaries[0].zero_shot_accuracy
    if zero_shot is not None:
        panel.axhline(zero_shot, color=ZERO_SHOT, linestyle="--", linewidth=1.2, label="zero-shot")
    detailed, colours, places = len(study.methods) <= MOST_DETAILED, {}, shot_places(study.summaries)
    for number, (method, rows) in enumerate(study.methods.items()):
        colours[method] = colour = COLOURS[number % len(COLOURS)]
        dash = DASHES[number // len(COLOURS) % len(DASHES)]
        shots = [places[row.shots] for row in rows]
        means = [row.mean_test_accuracy for row in rows]
        deviations = [row.std_test_accuracy or 0.0 for row in rows]
        edges = [[mean + sign * one for mean, one in zip(means, deviations, strict=True)] for sign in (-1, 1)]
        if detailed:
            panel.fill_between(shots, *edges, color=colour, alpha=0.15, linewidth=0)
        panel.plot(shots, means, color=colour, linestyle=dash, marker="o", markersize=5, linewidth=2, label=method)
    for (method, name), found in published_points(study.published if detailed else ()).items():
        points = sorted((one.ours.shots, one.accuracy) for one in found)
        style = {"color": colours[method], "marker": "D", "markerfacecolor": "white", "linestyle": ":"}
        panel.plot(*zip(*points, strict=True), **style, label=f"published: {name}")
    panel.set_xscale("log", base=2)
    panel.set_xticks(list(places.values()), labels=[shots_text(shots) for shots in places])
    panel.set(title=f"{study.title}, {study.backbone} ({study.pretrained})")
    panel.set(xlabel="shots (images per class)", ylabel="test accuracy in %")
    panel.grid(axis="y", color="#e3e6eb")
    panel.spines[["top", "right"]].set_visible(False)
    below = {"loc": "upper left", "bbox_to_anchor": (0.0, -0.14)}  # names are long
    panel.legend(frameon=False, fontsize=8, ncols=1 if detailed else 2, **below)
