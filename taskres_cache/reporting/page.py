"""A report as one page of HTML that needs nothing from anywhere else: no network, no script, letters of the system.

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
from taskres_cache.reporting.closer_look import ClassGain, CloserLook
from taskres_cache.reporting.curves_svg import SERIES, Curve, accuracy_curves, reliability_diagram
from taskres_cache.reporting.sections import (
    all_gains_table,
    as_made,
    every_run_table,
    facts_of,
    figures_table,
    mistakes_table,
    overview_table,
    pairs_table,
    study_tables,
)
from taskres_cache.reporting.studies import Study
from taskres_cache.reporting.tables import in_shots, percent, signed
from taskres_cache.reporting.thumbnails import find_images, thumbnail
from taskres_cache.system.version import __version__

HERE = Path(__file__).parent
MOST_CLASSES_DRAWN = 20  # of a confusion matrix; beyond it the ones that are confused most
MOST_GAINS = 12  # bars from the top and from the bottom, where there are more than twice as many classes


def as_page(studies: Sequence[Study], title: str, root: Path | None, made_at: datetime) -> str:
    """Return a report as HTML.

    Parameters
    ----------
    studies : what it is about.
    title : of the page.
    root : where the images are, if they are no longer where the cache says; see `thumbnails.find_images`.
    made_at : the date to put below it.
    """
    page = Environment(loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True).get_template("page.html")
    runs = sum(len(study.runs) for study in studies)
    seconds = sum(run.metrics.seconds.fit or 0.0 for study in studies for run in study.runs)
    return page.render(
        title=title,
        lead=f"{runs} fits of a task residual on cached features, {seconds:.1f} s of training in all.",
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        version=__version__,
        made_at=made_at.strftime("%d %B %Y"),
        overview=overview_table(studies),
        studies=[_as_section(study, f"study-{number}", root) for number, study in enumerate(studies, start=1)],
    )


def _as_section(study: Study, anchor: str, root: Path | None) -> dict[str, Any]:
    """Return what the template shows of a study."""
    curves = curves_of(study)
    classes = "" if study.half == "all" else f", the {study.half} half of its classes"
    test_images = study.runs[0].metrics.images.test
    tests = "" if test_images is None else f", {test_images:,} test images"
    return {
        "anchor": anchor,
        "title": study.title,
        "told": f"{study.dataset}{classes}; features of {study.backbone} ({study.pretrained}){tests}.",
        "facts": facts_of(study),
        "curves": Markup(accuracy_curves(curves, study.figures)),
        "legend": _legend(study, curves),
        "tables": study_tables(study),
        "figures": figures_table(study.figures),
        "sources": list(dict.fromkeys(figures.source for figures in study.figures)),
        "unseen": study.unseen,
        "closer": None if study.closer is None else _as_closer_look(study.closer, root),
        "every_run": every_run_table([study]),
    }


def curves_of(study: Study) -> list[Curve]:
    """Return a curve for each method of a study."""
    runs = [run.metrics for run in study.runs]
    return [
        Curve(
            method,
            summaries,
            [(run.shots, run.test_accuracy) for run in runs if run.method == method],
            number,
        )
        for number, (method, summaries) in enumerate(study.methods.items())
    ]


def _legend(study: Study, curves: Sequence[Curve]) -> list[dict[str, Any]]:
    line = '<line x1="0" x2="26" y1="6" y2="6" class="{}"/>'
    mark = line + '<circle cx="13" cy="6" r="4.5" class="mean {}"/>'
    colours = [f"series-{curve.colour % SERIES}" for curve in curves]
    entries = [
        {"name": curve.name, "mark": Markup(mark.format(f"line {colour}", colour))}
        for curve, colour in zip(curves, colours, strict=True)
    ]
    entries.append({"name": "zero-shot", "mark": Markup(line.format("zero-shot"))})
    rhombus = '<polygon points="13,0 19,6 13,12 7,6" class="published-mark"/>'
    shots = {row.shots for row in study.summaries}
    drawn = [figures for figures in study.figures if shots & figures.accuracy.keys()]
    published = dict.fromkeys(f"{figures.method}, published" for figures in drawn)
    return [*entries, *({"name": name, "mark": Markup(line.format("published") + rhombus)} for name in published)]


def _as_closer_look(closer: CloserLook, root: Path | None) -> dict[str, Any]:
    """Return what the template shows of a closer look."""
    fits, temperatures = len(closer.seeds), ", ".join(f"{value:.2f}" for value in closer.temperatures)
    seeds = f"seed{'s' if fits > 1 else ''} {', '.join(map(str, closer.seeds))}"
    return {
        "told": f"{closer.classifier.recipe.method_name()}, {in_shots(closer.classifier.shots)}, {seeds}: "
        f"{closer.chosen_by}.",
        "notes": closer.notes,
        **_gain_bars(closer.gains),
        "all_gains": all_gains_table(closer.gains),
        "confusion": _confusion(closer),
        "pairs": pairs_table(closer.pairs),
        "mistakes": _pictured(closer, find_images(closer.classifier.provenance, root)),
        "mistakes_listed": mistakes_table(closer.mistakes),
        "mistakes_told": "Wrong with the most confidence first. Some may be mistakes of the labels.",
        "untempered": Markup(reliability_diagram(closer.untempered, "Confidence against accuracy, as trained")),
        "tempered": Markup(reliability_diagram(closer.tempered, "Confidence against accuracy, with the temperature")),
        "untempered_error": percent(closer.untempered.error),
        "tempered_error": percent(closer.tempered.error),
        "calibration_told": f"A temperature of {temperatures} was fitted on the val images ({seeds}) and is applied "
        "wherever probabilities are shown. Bars are how often predictions of a confidence are right, short lines the "
        "confidence itself: where both meet on the diagonal, it can be taken at its word.",
        "made": as_made(closer.classifier),
    }


def _gain_bars(gains: Sequence[ClassGain]) -> dict[str, Any]:
    """Return bars for the classes that gain most and least, all on one scale with a common zero."""
    ranked = sorted(gains, key=lambda row: (-row.gain, row.name))
    lowest, highest = min(0.0, ranked[-1].gain), max(0.0, ranked[0].gain)
    span = max(highest - lowest, 1e-9)
    zero = 100.0 * -lowest / span
    shown: list[ClassGain | None] = list(ranked)
    if len(ranked) > 2 * MOST_GAINS:
        shown = [*ranked[:MOST_GAINS], None, *ranked[-MOST_GAINS:]]
    bars = [None if row is None else _gain_bar(row, zero, span) for row in shown]
    between = len(ranked) - 2 * MOST_GAINS
    told = f"{between} classes in between" if between > 1 else "one class in between"
    return {"gains": bars, "zero_at": f"{zero:.2f}", "gains_between": told if between > 0 else ""}


def _gain_bar(row: ClassGain, zero: float, span: float) -> dict[str, Any]:
    width = 100.0 * abs(row.gain) / span
    return {
        "name": row.name,
        "direction": "none" if row.gain == 0 else "down" if row.gain < 0 else "up",
        "left": f"{zero - width if row.gain < 0 else zero:.2f}",
        "width": f"{width:.2f}",
        "gain": signed(row.gain),
        "before": percent(row.zero_shot),
        "after": percent(row.adapted),
    }


def _confusion(closer: CloserLook) -> dict[str, Any]:
    """Return the confusion matrix as cells in percent of their row; of many classes those that are confused most."""
    names, kept = closer.classifier.classnames, _confused_most(closer)
    totals = np.maximum(closer.confusion.sum(axis=1), 1e-9)
    rows = [
        {
            "name": names[row],
            "cells": [
                _cell(row == column, 100.0 * closer.confusion[row, column] / totals[row], names[row], names[column])
                for column in kept
            ],
        }
        for row in kept
    ]
    told = "Rows are what images are, columns what they are taken for, in percent of the row, mean over the fits."
    if len(kept) < len(names):
        told += f" Of {len(names)} classes the {len(kept)} that are confused most; rows therefore do not add up to 100."
    return {"told": told, "names": [names[column] for column in kept], "rows": rows, "flat": _short(names, kept)}


def _short(names: Sequence[str], kept: Sequence[int]) -> bool:
    """Return whether every name is so short that it need not be turned."""
    return all(len(names[place]) <= 3 for place in kept)


def _confused_most(closer: CloserLook) -> list[int]:
    """Return the classes of the matrix to draw, in label order: all where they are few."""
    classes = len(closer.confusion)
    if classes <= MOST_CLASSES_DRAWN:
        return list(range(classes))
    wrong = closer.confusion * ~np.eye(classes, dtype=bool)
    kept: dict[int, None] = {}
    for cell in np.argsort(-wrong, axis=None, kind="stable").tolist():
        row, column = divmod(cell, classes)
        if wrong[row, column] == 0 or len({*kept, row, column}) > MOST_CLASSES_DRAWN:
            break
        kept |= dict.fromkeys((row, column))
    return sorted(kept) or list(range(MOST_CLASSES_DRAWN))


def _cell(hit: bool, share: float, name: str, taken_for: str) -> dict[str, str]:
    if share == 0:
        return {"kind": "", "share": "0", "text": "", "told": f"{name} taken for {taken_for}: never"}
    kind = ("hit" if hit else "miss") + (" deep" if share > (55 if hit else 40) else "")
    text = f"{share:.0f}" if share >= 0.5 else "·"
    return {"kind": kind, "share": f"{share:.1f}", "text": text, "told": f"{name} taken for {taken_for}: {share:.2f} %"}


def _pictured(closer: CloserLook, source: ImageSource | None) -> list[dict[str, Any]]:
    """Return the most certain mistakes with their pictures; nothing where not one picture is to be had."""
    pictures = [None if source is None else thumbnail(source, one.path, one.stamp) for one in closer.mistakes]
    if not any(pictures):
        return []
    fits = len(closer.seeds)
    return [
        {
            "path": one.path,
            "name": one.name,
            "taken_for": one.taken_for,
            "told": f"{one.confidence:.1f} % sure" + (f", {one.fits} of {fits} fits" if fits > 1 else ""),
            "picture": picture,
        }
        for one, picture in zip(closer.mistakes, pictures, strict=True)
    ]
