"""A report's curves as a PNG, for a paper or a slide; the only module that knows matplotlib."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

from taskres_cache.reporting.studies import Study
from taskres_cache.system.extras import require

PANEL = (6.4, 4.4)  # inches
PANELS_ABREAST = 3
DOTS_AN_INCH = 160
ZERO_SHOT, PUBLISHED = "#6b7280", "#9aa2b1"
COLOURS = ("#2456c9", "#c2410c", "#0a7f5a", "#8b3fb5", "#b8860b", "#0e7490", "#be185d", "#4d5b2a")  # the page's


def refuse_without_matplotlib() -> None:
    """Raise MissingExtraError where matplotlib is not installed."""
    require("`taskres report` to PNG", "plot", ["matplotlib"])


def as_picture(studies: Sequence[Study]) -> bytes:
    """Return accuracy over shots as a PNG, a panel for each study; raises MissingExtraError without matplotlib."""
    refuse_without_matplotlib()
    from matplotlib.figure import Figure

    abreast = min(len(studies), PANELS_ABREAST)
    down = -(-len(studies) // abreast)
    figure = Figure(figsize=(PANEL[0] * abreast, PANEL[1] * down), layout="constrained")
    panels = list(figure.subplots(down, abreast, squeeze=False).flat)
    for study, panel in zip(studies, panels, strict=False):
        _draw(panel, study)
    for panel in panels[len(studies) :]:
        panel.set_axis_off()
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=DOTS_AN_INCH)
    return stream.getvalue()


def _draw(panel: Any, study: Study) -> None:
    """Draw a study's methods, zero-shot, and what others have published into a panel."""
    zero_shot = study.summaries[0].zero_shot_accuracy
    panel.axhline(zero_shot, color=ZERO_SHOT, linestyle="--", linewidth=1.2, label="zero-shot")
    for (method, rows), colour in zip(study.methods.items(), COLOURS * len(study.methods), strict=False):
        shots = [row.shots for row in rows]
        means = [row.mean_test_accuracy for row in rows]
        deviations = [row.std_test_accuracy or 0.0 for row in rows]
        edges = [[mean + sign * one for mean, one in zip(means, deviations, strict=True)] for sign in (-1, 1)]
        panel.fill_between(shots, *edges, color=colour, alpha=0.15, linewidth=0)
        panel.plot(shots, means, color=colour, marker="o", markersize=5, linewidth=2, label=method)
    drawn = {row.shots for row in study.summaries}
    for figures in study.figures:
        points = sorted((shots, accuracy) for shots, accuracy in figures.accuracy.items() if shots in drawn)
        if points:
            label = f"{figures.method}, published"
            panel.plot(*zip(*points, strict=True), color=PUBLISHED, marker="D", linestyle=":", label=label)
    panel.set_xscale("log", base=2)
    panel.set_xticks(sorted(drawn), labels=[str(shots) for shots in sorted(drawn)])
    panel.set(title=f"{study.title}, {study.backbone} ({study.pretrained})")
    panel.set(xlabel="shots (images a class)", ylabel="test accuracy in %")
    panel.grid(axis="y", color="#e3e6eb")
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0.0, -0.14))  # below: names are long
