"""A report as one HTML page without network access or scripts, in the system's fonts.

Axes: C classes.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from taskres_cache.datasets.images import ImageSource
from taskres_cache.reporting.analysis import Analysis, ClassGain
from taskres_cache.reporting.comparison.grid import Grid, grid_of, grids_over_datasets
from taskres_cache.reporting.comparison.tables import chosen_table, comparison_tables, is_comparison
from taskres_cache.reporting.curves_svg import (
    MOST_DETAILED,
    Curve,
    accuracy_curves,
    published_points,
    reliability_diagram,
)
from taskres_cache.reporting.published.compared import Compared
from taskres_cache.reporting.published.tables import compared_table, sources_table
from taskres_cache.reporting.sections import (
    errors_table,
    every_run_table,
    gains_table,
    key_facts,
    main_result,
    overview_table,
    pairs_table,
    recipe_and_provenance,
    study_tables,
)
from taskres_cache.reporting.studies import Study
from taskres_cache.reporting.svg import series
from taskres_cache.reporting.tables import Table, in_shots, percent, signed
from taskres_cache.reporting.thumbnails import thumbnail
from taskres_cache.runs.image_files import find_images
from taskres_cache.system.version import __version__

HERE = Path(__file__).parent
MAX_CLASSES = 20  # of a confusion matrix; with more classes, the most confused ones are drawn
MAX_GAINS = 12  # bars from the top and from the bottom, if there are more than twice as many classes


def as_page(studies: Sequence[Study], title: str, root: Path | None, made_at: datetime) -> str:
    """Return a report as HTML.

    Parameters
    ----------
    studies : sequence of Study
        The content.
    title : str
        The heading.
    root : Path or None
        Where the images are now, see `image_files.find_images`.
    made_at : datetime
        The date in the footer.
    """
    page = Environment(loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True).get_template("page.html")
    runs = sum(len(study.runs) for study in studies)
    seconds = sum(run.metrics.seconds.fit or 0.0 for study in studies for run in study.runs)
    return page.render(
        title=title,
        lead=f"{runs} fits on cached features, {seconds:.1f} s of training in total.",
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        version=__version__,
        made_at=made_at.strftime("%d %B %Y"),
        overview=overview_table(studies),
        averages=[found for grid in grids_over_datasets(studies) if (found := _comparison(grid))],
        studies=[_study_section(study, f"study-{number}", root) for number, study in enumerate(studies, start=1)],
    )


def _study_section(study: Study, anchor: str, root: Path | None) -> dict[str, Any]:
    """Return what the template shows of a study."""
    curves = curves_of(study)
    classes = "" if study.half == "all" else f", {study.half} half of the classes"
    variant = f", {study.variant}" if study.variant else ""
    test_images = study.runs[0].metrics.images.test
    images = "" if test_images is None else f", {test_images:,} test images"
    return {
        "anchor": anchor,
        "title": study.title,
        "description": f"{study.dataset}{classes}{variant}; features of {study.backbone} ({study.pretrained}){images}.",
        "result": main_result(study),
        "facts": key_facts(study),
        "curves": Markup(accuracy_curves(curves, study.published)),
        "legend": _legend(study, curves),
        "detailed": len(curves) <= MOST_DETAILED,
        "comparison": _comparison(grid_of(study)),
        "chosen": chosen_table(study),
        "tables": study_tables(study),
        "published": compared_table(study.published),
        "sources": sources_of(study.published),
        "analysis_error": study.analysis_error,
        "analysis": None if study.analysis is None else _analysis_sections(study.analysis, root),
        "every_run": every_run_table([study]),
    }


def _comparison(grid: Grid) -> dict[str, Any] | None:
    """Return the tables of a comparison; None for a single method."""
    return {"tables": comparison_tables(grid), "notes": grid.notes} if is_comparison(grid) else None


def curves_of(study: Study) -> list[Curve]:
    """Return one curve per method of a study."""
    runs = [run.metrics for run in study.runs]
    return [
        Curve(method, summaries, [(run.shots, run.test_accuracy) for run in runs if run.method == method], number)
        for number, (method, summaries) in enumerate(study.methods.items())
    ]


def sources_of(published: Sequence[Compared]) -> Table | None:
    """Return the sources of published figures as a table, or None if there are none."""
    figures = [figure for one in published for figure in one.figures]
    return sources_table(figures) if figures else None


def _legend(study: Study, curves: Sequence[Curve]) -> list[dict[str, Any]]:
    line = '<line x1="0" x2="40" y1="6" y2="6" class="{}"/>'
    mark = line + '<circle cx="20" cy="6" r="4.5" class="mean {}"/>'
    entries = [
        {"name": curve.name, "mark": Markup(mark.format(f"line {series(curve.colour)}", series(curve.colour)))}
        for curve in curves
    ]
    if study.summaries[0].zero_shot_accuracy is not None:
        entries.append({"name": "zero-shot", "mark": Markup(line.format("zero-shot"))})
    diamond = '<polygon points="20,0 26,6 20,12 14,6" class="published-mark {}"/>'
    colours = {curve.name: series(curve.colour) for curve in curves}
    published = [
        {"name": f"published: {name}", "mark": Markup(line.format(f"published {colour}") + diamond.format(colour))}
        for (method, name) in (published_points(study.published) if len(curves) <= MOST_DETAILED else ())
        for colour in [colours[method]]
    ]
    return [*entries, *published]


def _analysis_sections(analysis: Analysis, root: Path | None) -> dict[str, Any]:
    """Return what the template shows of an analysis."""
    temperatures = ", ".join(f"{value:.2f}" for value in analysis.temperatures)
    plural = "s" if len(analysis.seeds) > 1 else ""
    seeds = f"seed{plural} {', '.join(map(str, analysis.seeds))}"
    method = analysis.classifier.method
    return {
        "description": f"The sections below show {method}, {in_shots(analysis.classifier.shots)}, {seeds}: "
        f"{analysis.chosen_by}.",
        "notes": analysis.notes,
        **_gain_bars(analysis.gains),
        "all_gains": gains_table(analysis.gains),
        "confusion": _confusion(analysis),
        "pairs": pairs_table(analysis.pairs),
        "thumbnails": _thumbnails(analysis, find_images(analysis.classifier.provenance, root, analysis.cache)),
        "errors": errors_table(analysis.errors),
        "untempered": Markup(reliability_diagram(analysis.untempered, "Accuracy over confidence, without temperature")),
        "tempered": Markup(reliability_diagram(analysis.tempered, "Accuracy over confidence, with temperature")),
        "untempered_error": percent(analysis.untempered.error),
        "tempered_error": percent(analysis.tempered.error),
        "calibration": f"Bars show the accuracy of predictions by confidence, short lines their mean confidence; for a "
        f"calibrated classifier both are on the diagonal. Temperature{plural}, fitted on validation images if there "
        f"are any: {temperatures} ({seeds}).",
        "provenance": recipe_and_provenance(analysis.classifier),
    }


def _gain_bars(gains: Sequence[ClassGain]) -> dict[str, Any]:
    """Return bars for the classes with the largest and smallest gains, on one scale; none without text."""
    known = [(row, row.gain) for row in gains if row.gain is not None]
    if not known:
        return {"gains": []}
    ranked = sorted(known, key=lambda pair: (-pair[1], pair[0].name))
    lowest, highest = min(0.0, ranked[-1][1]), max(0.0, ranked[0][1])
    span = max(highest - lowest, 1e-9)
    zero = 100.0 * -lowest / span
    shown: list[tuple[ClassGain, float] | None] = list(ranked)
    if len(ranked) > 2 * MAX_GAINS:
        shown = [*ranked[:MAX_GAINS], None, *ranked[-MAX_GAINS:]]
    bars = [None if pair is None else _gain_bar(*pair, zero, span) for pair in shown]
    hidden = len(ranked) - 2 * MAX_GAINS
    label = f"{hidden} more classes" if hidden > 1 else "1 more class"
    return {"gains": bars, "zero_at": f"{zero:.2f}", "hidden_gains": label if hidden > 0 else ""}


def _gain_bar(row: ClassGain, gain: float, zero: float, span: float) -> dict[str, Any]:
    width = 100.0 * abs(gain) / span
    return {
        "name": row.name,
        "direction": "none" if gain == 0 else "down" if gain < 0 else "up",
        "left": f"{zero - width if gain < 0 else zero:.2f}",
        "width": f"{width:.2f}",
        "gain": signed(gain),
        "before": percent(row.zero_shot),
        "after": percent(row.adapted),
    }


def _confusion(analysis: Analysis) -> dict[str, Any]:
    """Return the confusion matrix in percent of the true class; with many classes, the most confused ones."""
    names, kept = analysis.classifier.classnames, _most_confused(analysis)
    totals = np.maximum(analysis.confusion.sum(axis=1), 1e-9)
    rows = [
        {
            "name": names[row],
            "cells": [
                _cell(row == column, 100.0 * analysis.confusion[row, column] / totals[row], names[row], names[column])
                for column in kept
            ],
        }
        for row in kept
    ]
    description = "Rows are true classes, columns predicted classes, in percent of the true class, mean over fits."
    if len(kept) < len(names):
        description += f" Only the {len(kept)} most confused of {len(names)} classes; rows do not add up to 100."
    columns = [names[column] for column in kept]
    return {"description": description, "names": columns, "rows": rows, "flat": all(len(name) <= 3 for name in columns)}


def _most_confused(analysis: Analysis) -> list[int]:
    """Return the classes of the matrix to draw, in label order; all if there are few."""
    classes = len(analysis.confusion)
    if classes <= MAX_CLASSES:
        return list(range(classes))
    wrong = analysis.confusion * ~np.eye(classes, dtype=bool)
    kept: dict[int, None] = {}
    for cell in np.argsort(-wrong, axis=None, kind="stable").tolist():
        row, column = divmod(cell, classes)
        if wrong[row, column] == 0 or len({*kept, row, column}) > MAX_CLASSES:
            break
        kept |= dict.fromkeys((row, column))
    return sorted(kept) or list(range(MAX_CLASSES))


def _cell(correct: bool, share: float, true_class: str, predicted_class: str) -> dict[str, str]:
    tooltip = f"{true_class} predicted as {predicted_class}: {share:.2f} %"
    if share == 0:
        return {"kind": "", "share": "0", "text": "", "tooltip": tooltip}
    kind = ("hit" if correct else "miss") + (" deep" if share > (55 if correct else 40) else "")
    text = f"{share:.0f}" if share >= 0.5 else "·"
    return {"kind": kind, "share": f"{share:.1f}", "text": text, "tooltip": tooltip}


def _thumbnails(analysis: Analysis, source: ImageSource | None) -> list[dict[str, Any]]:
    """Return the most confident errors with their images; empty if no image is available."""
    images = [None if source is None else thumbnail(source, one.path, one.stamp) for one in analysis.errors]
    if not any(images):
        return []
    fits = len(analysis.seeds)
    return [
        {
            "path": one.path,
            "true_class": one.true_class,
            "predicted_class": one.predicted_class,
            "confidence": f"confidence {one.confidence:.1f} %",
            "fits": f"{one.fits} of {fits} fits" if fits > 1 else "",
            "image": image,
        }
        for one, image in zip(analysis.errors, images, strict=True)
    ]
