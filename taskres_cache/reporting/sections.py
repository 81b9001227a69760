"""The parts of a report that are words and numbers, whatever it is written as: tables, facts, recipe, provenance."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from taskres_cache.recipe import Recipe
from taskres_cache.reporting.closer_look import ClassGain, ConfusedPair, Mistake
from taskres_cache.reporting.published_results import Figures
from taskres_cache.reporting.studies import Study
from taskres_cache.reporting.tables import Table, in_shots, percent, signed, with_deviation
from taskres_cache.runs.metrics import Metrics
from taskres_cache.runs.results import Summary
from taskres_cache.runs.run import Classifier, Run


@dataclass(frozen=True)
class Fact:
    """A name, a value, and what there is to say of it.

    Parameters
    ----------
    changed : whether it differs from the paper's recipe.
    code : whether it is for programs rather than for people.
    """

    name: str
    value: str
    told: str = ""
    changed: bool = False
    code: bool = False


def facts_of(study: Study) -> list[Fact]:
    """Return what one wants to know first of a study: where it began, where it ended, and what that took.

    The method is that of the closer look, or the first: the best by test accuracy would be a choice by test accuracy.
    """
    method = study.summaries[0].method if study.closer is None else study.closer.classifier.recipe.method_name()
    last = study.methods.get(method, list(study.summaries))[-1]
    seeds = f"over {len(last.seeds)} seeds" if len(last.seeds) > 1 else f"seed {last.seeds[0]}"
    spread = seeds if last.std_test_accuracy is None else f"± {percent(last.std_test_accuracy)} {seeds}"
    facts = [
        Fact("zero-shot", f"{percent(last.zero_shot_accuracy)} %", "the text classifier alone"),
        Fact(in_shots(last.shots), f"{percent(last.mean_test_accuracy)} %", spread),
        Fact("gain", signed(last.gain), "points over zero-shot"),
    ]
    if last.mean_calibration_error is not None:
        told = "with the temperature, mean of the fits"
        facts.append(Fact("calibration error", f"{percent(last.mean_calibration_error)} %", told))
    if last.mean_fit_seconds is not None:
        facts.append(Fact("time of a fit", _seconds(last.mean_fit_seconds), f"{len(study.runs)} runs in this study"))
    return facts


def overview_table(studies: Sequence[Study]) -> Table:
    """Return a row for each study and method, with what its largest shot count comes to."""
    rows = [
        (
            study.title,
            f"{study.backbone} ({study.pretrained})",
            method,
            str(summaries[-1].shots),
            percent(summaries[-1].zero_shot_accuracy),
            _test_of(summaries[-1]),
            signed(summaries[-1].gain),
        )
        for study in studies
        for method, summaries in study.methods.items()
    ]
    columns = ("data set", "checkpoint", "method", "shots", "zero-shot %", "test %", "gain")
    return Table("Overview", columns, tuple(rows), left=3)


def study_tables(study: Study) -> list[Table]:
    """Return a table over shots for each method of a study, and what val chose where it had a choice."""
    tables = []
    for method, summaries in study.methods.items():
        tables.append(_method_table(method, summaries))
        chosen = [run.metrics for run in sorted(study.runs, key=_place) if run.metrics.method == method]
        tables += [choice_table(chosen, method)] if all(metrics.chosen is not None for metrics in chosen) else []
    return tables


def _method_table(method: str, summaries: Sequence[Summary]) -> Table:
    has_base = summaries[0].base != "regular"
    rows = tuple(
        (
            str(row.shots),
            ", ".join(map(str, row.seeds)),
            *([percent(row.mean_base_accuracy)] if has_base else []),
            percent(row.mean_val_accuracy),
            _test_of(row),
            signed(row.gain),
            percent(row.mean_top5_accuracy),
            percent(row.mean_calibration_error),
            _seconds(row.mean_fit_seconds),
        )
        for row in summaries
    )
    base = ["base %"] if has_base else []
    columns = ("shots", "seeds", *base, "val %", "test %", "gain", "top-5 %", "ECE %", "time of a fit")
    return Table(method, columns, rows, left=0)


def method_table(summaries: Sequence[Summary], title: str) -> Table:
    """Return one method's accuracy over shots, with that of its base where that is not zero-shot's own."""
    own_base = summaries[0].base != "regular"
    base = ["base %"] if own_base else []
    rows = tuple(
        (
            str(row.shots),
            ",".join(map(str, row.seeds)),
            percent(row.zero_shot_accuracy),
            *([percent(row.mean_base_accuracy)] if own_base else []),
            percent(row.mean_val_accuracy),
            percent(row.mean_test_accuracy),
            percent(row.std_test_accuracy),
            signed(row.gain),
        )
        for row in summaries
    )
    columns = ("shots", "seeds", "zero-shot %", *base, "val %", "test %", "std", "gain")
    return Table(f"{title}: test accuracy, mean and standard deviation over seeds", columns, rows, left=0)


def choice_table(all_metrics: Sequence[Metrics], title: str) -> Table:
    """Return what val accuracy chose for each shot count and seed, from how many, and what it came to."""
    rows = tuple(
        (
            str(metrics.shots),
            str(metrics.seed),
            *(f"{value:g}" for value in (metrics.chosen.alpha, metrics.chosen.lr, metrics.chosen.weight_decay)),
            str(len(metrics.candidates or ())),
            percent(metrics.val_accuracy),
            percent(metrics.test_accuracy),
        )
        for metrics in all_metrics
        if metrics.chosen is not None
    )
    columns = ("shots", "seed", "alpha", "lr", "weight decay", "out of", "val %", "test %")
    return Table(f"{title}: chosen by val accuracy", columns, rows, left=0)


def figures_table(figures: Sequence[Figures]) -> Table | None:
    """Return what others have published, a column for each shot count; None where nothing is known."""
    if not figures:
        return None
    shots = sorted({count for one in figures for count in one.accuracy})
    rows = tuple(
        (one.method, one.setting, *(percent(one.accuracy.get(count)) for count in shots), one.source.where)
        for one in figures
    )
    headings = ["zero-shot" if count == 0 else in_shots(count) for count in shots]
    return Table("", ("method", "setting", *headings, "from"), rows, left=2)


def all_gains_table(gains: Sequence[ClassGain]) -> Table:
    """Return every class in label order."""
    rows = tuple(
        (row.name, str(row.images), percent(row.zero_shot), percent(row.adapted), signed(row.gain)) for row in gains
    )
    return Table("", ("class", "test images", "zero-shot %", "test %", "gain"), rows)


def pairs_table(pairs: Sequence[ConfusedPair]) -> Table:
    """Return the most confused pairs of classes."""
    rows = tuple((pair.name, pair.taken_for, f"{pair.images:.1f}", percent(pair.share)) for pair in pairs)
    return Table("", ("images of", "taken for", "images a fit", "% of the class"), rows, left=2)


def mistakes_table(mistakes: Sequence[Mistake]) -> Table:
    """Return the most certain mistakes in words."""
    rows = tuple((one.path, one.name, one.taken_for, f"{one.confidence:.1f}", str(one.fits)) for one in mistakes)
    return Table("", ("image", "is", "taken for", "% sure", "fits"), rows, left=3)


def every_run_table(studies: Sequence[Study]) -> Table:
    """Return a row for each run with all of its numbers, for other programs as well."""
    columns = (
        "dataset", "backbone", "pretrained", "classes", "method", "shots", "seed", "zero_shot", "base", "val", "test",
        "top5", "calibration_error", "temperature", "fit_seconds", "folder",
    )  # fmt: skip
    rows = [
        _run_row(study, run.metrics, str(run.folder)) for study in studies for run in sorted(study.runs, key=_place)
    ]
    return Table("", columns, tuple(rows), left=5)


def _place(run: Run) -> tuple[str, int, int]:
    return run.metrics.method, run.metrics.shots, run.metrics.seed


def _run_row(study: Study, metrics: Metrics, folder: str) -> tuple[str, ...]:
    numbers = (
        metrics.zero_shot_accuracy, metrics.base_accuracy, metrics.val_accuracy, metrics.test_accuracy,
        metrics.top5_accuracy, metrics.calibration_error, metrics.temperature, metrics.seconds.fit,
    )  # fmt: skip
    names = (study.dataset, study.backbone, study.pretrained, study.half, metrics.method)
    cells = ("" if number is None else f"{number:.4f}" for number in numbers)
    return (*names, str(metrics.shots), str(metrics.seed), *cells, folder)


def as_made(classifier: Classifier) -> list[Fact]:
    """Return recipe and provenance of a fit, what differs from the paper's recipe marked."""
    made_from, recipe = classifier.provenance, classifier.recipe
    deviations = recipe.deviations()
    epochs = f"{recipe.epochs_for(classifier.shots)} epochs"
    marked = [
        Fact("base", recipe.base, changed=recipe.base != "regular"),
        Fact("alpha", f"{classifier.alpha:g}", changed="alpha" in deviations or recipe.alpha_rule != "fixed"),
        Fact("optimiser", _optimiser(recipe), changed=bool({"lr", "weight_decay", "batch_size"} & set(deviations))),
        Fact("length", epochs, changed="epochs" in deviations or recipe.patience is not None),
    ]
    others = {name: value for name, value in deviations.items() if name not in SAID_ALREADY}
    marked += [Fact(name.replace("_", " "), str(value), changed=True) for name, value in others.items()]
    return [
        *marked,
        Fact("prompts", "  ".join(classifier.templates)),
        Fact("backbone", f"{made_from.backbone} ({made_from.pretrained}), built as {made_from.model_config}"),
        Fact("weights", made_from.weights_sha256, code=True),
        Fact("logit scale", f"{made_from.logit_scale:g}"),
        Fact("preprocessing", json.dumps(made_from.preprocess), code=True),
        Fact("precision of the features", made_from.precision),
        Fact("split", made_from.split),
        Fact("versions", ", ".join(f"{name} {number}" for name, number in made_from.versions.items()) or "unknown"),
    ]


SAID_ALREADY = ("alpha", "lr", "weight_decay", "batch_size", "epochs")


def _optimiser(recipe: Recipe) -> str:
    return f"Adam, peak rate {recipe.lr:g}, weight decay {recipe.weight_decay:g}, batches of {recipe.batch_size}"


def _test_of(row: Summary) -> str:
    return with_deviation(row.mean_test_accuracy, row.std_test_accuracy)


def _seconds(number: float | None) -> str:
    return "-" if number is None else f"{number:.2f} s"
