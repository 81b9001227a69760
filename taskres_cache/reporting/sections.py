"""The parts of a report that are words and numbers, for every output format: key facts, tables, recipe, provenance."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from taskres_cache.caches.contents import DEFAULT_PROMPTS
from taskres_cache.datasets.sampling import shots_text
from taskres_cache.recipe import Recipe
from taskres_cache.reporting.analysis import ClassGain, ConfusedPair, Misclassification
from taskres_cache.reporting.conclusions.verdict import gained
from taskres_cache.reporting.studies import Study
from taskres_cache.reporting.tables import Table, in_shots, percent, signed, with_deviation
from taskres_cache.runs.classifier import Classifier, MethodClassifier, ResidualClassifier
from taskres_cache.runs.metrics import Metrics
from taskres_cache.runs.results import Summary
from taskres_cache.runs.run import Run

LISTED_FIELDS = ("alpha", "lr", "weight_decay", "batch_size", "epochs")  # of a recipe, always in the report


@dataclass(frozen=True)
class Fact:
    """A name and a value, with a note.

    Parameters
    ----------
    name, value : str
        What the reader sees.
    note : str
        An explanation of the value.
    changed : bool
        Whether it differs from the paper's recipe.
    code : bool
        Whether the value is shown as code.
    """

    name: str
    value: str
    note: str = ""
    changed: bool = False
    code: bool = False


def main_result(study: Study) -> str:
    """Return what the analysed method gained, and whether that may be chance; empty without test predictions."""
    standing = None if study.analysis is None else study.analysis.standing
    return "" if standing is None else f"{gained(standing)}."


def key_facts(study: Study) -> list[Fact]:
    """Return the main results of a study: zero-shot, test accuracy, gain, calibration and fit time.

    They are of the analysed method, or of the first one. To show the method with the best test accuracy would be a
    choice by test accuracy.
    """
    method = study.summaries[0].method if study.analysis is None else study.analysis.classifier.method
    last = study.methods.get(method, list(study.summaries))[-1]
    seeds = f"over {len(last.seeds)} seeds" if len(last.seeds) > 1 else f"seed {last.seeds[0]}"
    spread = seeds if last.std_test_accuracy is None else f"± {percent(last.std_test_accuracy)} {seeds}"
    facts = [Fact(in_shots(last.shots), f"{percent(last.mean_test_accuracy)} %", spread)]
    if last.zero_shot_accuracy is not None:
        zero_shot = Fact("zero-shot", f"{percent(last.zero_shot_accuracy)} %", "text classifier alone")
        facts = [zero_shot, *facts, Fact("gain", signed(last.gain), "points over zero-shot")]
    if last.mean_calibration_error is not None:
        note = "with the temperature, mean over fits"
        facts.append(Fact("calibration error", f"{percent(last.mean_calibration_error)} %", note))
    if last.mean_fit_seconds is not None:
        facts.append(Fact("fit time", _seconds(last.mean_fit_seconds), f"{len(study.runs)} runs in this study"))
    return facts


def overview_table(studies: Sequence[Study]) -> Table:
    """Return one row per study and method, with the results of the largest shot count."""
    rows = [
        (
            study.title,
            f"{study.backbone} ({study.pretrained})",
            method,
            shots_text(summaries[-1].shots),
            percent(summaries[-1].zero_shot_accuracy),
            _test_accuracy(summaries[-1]),
            signed(summaries[-1].gain),
        )
        for study in studies
        for method, summaries in study.methods.items()
    ]
    columns = ("data set", "checkpoint", "method", "shots", "zero-shot %", "test %", "gain")
    return Table("Overview", columns, tuple(rows), left=3)


def study_tables(study: Study) -> list[Table]:
    """Return a table over shots for each method of a study, and one of what was chosen by validation accuracy."""
    tables = []
    for method, summaries in study.methods.items():
        tables.append(_method_table(method, summaries))
        chosen = [run.metrics for run in sorted(study.runs, key=_order) if run.metrics.method == method]
        tables += [choice_table(chosen, method)] if all(metrics.chosen is not None for metrics in chosen) else []
    return tables


def _method_table(method: str, summaries: Sequence[Summary]) -> Table:
    """Return the table of a method in a report."""
    has_base = summaries[0].base != "regular"
    has_text = summaries[0].zero_shot_accuracy is not None
    rows = tuple(
        (
            shots_text(row.shots),
            ", ".join(map(str, row.seeds)),
            *([percent(row.mean_base_accuracy)] if has_base else []),
            percent(row.mean_val_accuracy),
            _test_accuracy(row),
            *([signed(row.gain)] if has_text else []),
            percent(row.mean_top5_accuracy),
            percent(row.mean_calibration_error),
            _seconds(row.mean_fit_seconds),
        )
        for row in summaries
    )
    base = ["base %"] if has_base else []
    gain = ["gain"] if has_text else []
    columns = ("shots", "seeds", *base, "val %", "test %", *gain, "top-5 %", "ECE %", "fit time")
    return Table(method, columns, rows, left=0)


def method_table(summaries: Sequence[Summary], title: str) -> Table:
    """Return the accuracy of one method over shots, with that of its base unless the base is zero-shot."""
    has_base = summaries[0].base != "regular"
    has_text = summaries[0].zero_shot_accuracy is not None
    base = ["base %"] if has_base else []
    rows = tuple(
        (
            shots_text(row.shots),
            ",".join(map(str, row.seeds)),
            *([percent(row.zero_shot_accuracy)] if has_text else []),
            *([percent(row.mean_base_accuracy)] if has_base else []),
            percent(row.mean_val_accuracy),
            percent(row.mean_test_accuracy),
            percent(row.std_test_accuracy),
            *([signed(row.gain)] if has_text else []),
        )
        for row in summaries
    )
    zero_shot, gain = (["zero-shot %"], ["gain"]) if has_text else ([], [])
    columns = ("shots", "seeds", *zero_shot, *base, "val %", "test %", "std", *gain)
    return Table(f"{title}: test accuracy, mean and standard deviation over seeds", columns, rows, left=0)


def prompts_table(summaries: Sequence[Summary], title: str) -> Table:
    """Return one row per method, shot count and set of prompts; zero-shot is of the same set."""
    methods = list(dict.fromkeys(_without_set(row) for row in summaries))
    ordered = sorted(summaries, key=lambda row: (methods.index(_without_set(row)), row.shots))  # sets stay as listed
    rows = tuple(
        (
            _without_set(row),
            row.prompts,
            shots_text(row.shots),
            percent(row.zero_shot_accuracy),
            percent(row.mean_val_accuracy),
            _test_accuracy(row),
            signed(row.gain),
        )
        for row in ordered
    )
    columns = ("method", "prompts", "shots", "zero-shot %", "val %", "test %", "gain")
    return Table(f"{title}: sets of prompts", columns, rows, left=2)


def _without_set(row: Summary) -> str:
    """Return the name of a method without that of its set of prompts."""
    return row.method if row.prompts == DEFAULT_PROMPTS else row.method.removesuffix(f"@{row.prompts}")


def choice_table(all_metrics: Sequence[Metrics], title: str) -> Table:
    """Return what validation accuracy chose for each shot count and seed, and from how many candidates."""
    rows = tuple(
        (
            shots_text(metrics.shots),
            str(metrics.seed),
            *(f"{value:g}" for value in (metrics.chosen.alpha, metrics.chosen.lr, metrics.chosen.weight_decay)),
            str(len(metrics.candidates or ())),
            percent(metrics.val_accuracy),
            percent(metrics.test_accuracy),
        )
        for metrics in all_metrics
        if metrics.chosen is not None
    )
    columns = ("shots", "seed", "alpha", "lr", "weight decay", "candidates", "val %", "test %")
    return Table(f"{title}: chosen by validation accuracy", columns, rows, left=0)


def gains_table(gains: Sequence[ClassGain]) -> Table:
    """Return the gain of every class, in label order; its accuracy alone if there is no text."""
    if not any(row.zero_shot is not None for row in gains):
        accuracies = tuple((row.name, str(row.images), percent(row.adapted)) for row in gains)
        return Table("", ("class", "test images", "test %"), accuracies)
    rows = tuple(
        (row.name, str(row.images), percent(row.zero_shot), percent(row.adapted), signed(row.gain)) for row in gains
    )
    return Table("", ("class", "test images", "zero-shot %", "test %", "gain"), rows)


def pairs_table(pairs: Sequence[ConfusedPair]) -> Table:
    """Return the most confused pairs of classes."""
    rows = tuple((pair.true_class, pair.predicted_class, f"{pair.images:.1f}", percent(pair.share)) for pair in pairs)
    return Table("", ("true class", "predicted as", "images per fit", "% of class"), rows, left=2)


def errors_table(errors: Sequence[Misclassification]) -> Table:
    """Return the most confident errors."""
    rows = tuple(
        (one.path, one.true_class, one.predicted_class, f"{one.confidence:.1f}", str(one.fits)) for one in errors
    )
    return Table("", ("image", "true class", "predicted as", "confidence %", "fits"), rows, left=3)


def every_run_table(studies: Sequence[Study]) -> Table:
    """Return one row per run with all numbers; other programs read it as CSV."""
    columns = (
        "dataset", "backbone", "pretrained", "classes", "method", "shots", "seed", "zero_shot", "base", "val", "test",
        "top5", "calibration_error", "temperature", "fit_seconds", "folder",
    )  # fmt: skip
    rows = [
        _run_row(study, run.metrics, str(run.folder)) for study in studies for run in sorted(study.runs, key=_order)
    ]
    return Table("", columns, tuple(rows), left=5)


def _order(run: Run) -> tuple[str, int, int]:
    return run.metrics.method, run.metrics.shots, run.metrics.seed


def _run_row(study: Study, metrics: Metrics, folder: str) -> tuple[str, ...]:
    numbers = (
        metrics.zero_shot_accuracy, metrics.base_accuracy, metrics.val_accuracy, metrics.test_accuracy,
        metrics.top5_accuracy, metrics.calibration_error, metrics.temperature, metrics.seconds.fit,
    )  # fmt: skip
    names = (study.dataset, study.backbone, study.pretrained, study.half, metrics.method)
    cells = ("" if number is None else f"{number:.4f}" for number in numbers)
    return (*names, shots_text(metrics.shots), str(metrics.seed), *cells, folder)


def recipe_and_provenance(classifier: Classifier) -> list[Fact]:
    """Return recipe and provenance of a fit; deviations from the paper's recipe are marked."""
    source = classifier.provenance
    facts = _method_facts(classifier) if isinstance(classifier, MethodClassifier) else _recipe_facts(classifier)
    return [
        *facts,
        Fact("prompts", "  ".join(classifier.templates) or f"the set {classifier.prompts}"),
        Fact("backbone", f"{source.backbone} ({source.pretrained}), open_clip model {source.model_config}"),
        Fact("weights", source.weights_sha256, code=True),
        Fact("logit scale", f"{source.logit_scale:g}"),
        Fact("preprocessing", json.dumps(source.preprocess), code=True),
        Fact("feature precision", source.precision),
        Fact("split", source.split),
        Fact("versions", ", ".join(f"{name} {number}" for name, number in source.versions.items()) or "unknown"),
    ]


def _recipe_facts(classifier: ResidualClassifier) -> list[Fact]:
    recipe = classifier.recipe
    deviations = recipe.deviations()
    epochs = f"{recipe.epochs_for(classifier.shots)} epochs"
    facts = [
        Fact("base", recipe.base, changed=recipe.base != "regular"),
        Fact("alpha", f"{classifier.alpha:g}", changed="alpha" in deviations or recipe.alpha_rule != "fixed"),
        Fact("optimiser", _optimiser(recipe), changed=bool({"lr", "weight_decay", "batch_size"} & set(deviations))),
        Fact("length", epochs, changed="epochs" in deviations or recipe.patience is not None),
    ]
    others = {name: value for name, value in deviations.items() if name not in LISTED_FIELDS}
    return facts + [Fact(name.replace("_", " "), str(value), changed=True) for name, value in others.items()]


def _method_facts(classifier: MethodClassifier) -> list[Fact]:
    record = classifier.record
    options = [Fact(name.replace("_", " "), str(value)) for name, value in record.options.items()]
    views = [Fact("augmented views", str(record.views))] if record.views else []
    val = [Fact("chosen by", "the whole val partition", changed=True)] if record.val == "full" else []
    return [Fact("method", record.name), *options, *views, *val, Fact("kind of head", classifier.head.kind)]


def _optimiser(recipe: Recipe) -> str:
    return f"Adam, learning rate {recipe.lr:g}, weight decay {recipe.weight_decay:g}, batch size {recipe.batch_size}"


def _test_accuracy(row: Summary) -> str:
    return with_deviation(row.mean_test_accuracy, row.std_test_accuracy)


def _seconds(number: float | None) -> str:
    return "-" if number is None else f"{number:.2f} s"
