"""What `taskres fit` prints: notes, a line per run, tables, or one JSON document."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from taskres_cache.caches.contents import SplitName
    from taskres_cache.caches.feature_cache import FeatureCache
    from taskres_cache.reporting.conclusions.conclusion import Conclusion
    from taskres_cache.runs.metrics import Metrics
    from taskres_cache.runs.run import Run


def say_notes(cache: "FeatureCache", splits: "Sequence[SplitName]") -> None:
    """Print what the accuracies of the fits leave out, splits without validation images, and a cache without text."""
    from taskres_cache.reporting.notes import test_notes

    from .console import say
    from .notes import calibration_notes, text_notes

    for note in (*text_notes(cache), *calibration_notes(cache, splits), *test_notes(cache)):
        say(f"note: {note}")


def announced(runs: "Iterator[Run]") -> "list[Run]":
    """Return all runs; print a line about each as soon as it is written."""
    from .console import say

    results = []
    for run in runs:
        say(_run_line(run))
        if run.kept is not None:
            say(f"note: {run.kept} holds a run of other inputs and is kept; the new run is in {run.folder}")
        results.append(run)
    return results


def print_results(cache: "FeatureCache", results: "Sequence[Run]", found: "Conclusion", out: Path) -> None:
    """Print the tables, what was gained, and the command that makes a report."""
    from taskres_cache.runs.finding import checkpoint_folder
    from taskres_cache.system.text import command

    from .console import say
    from .fit_conclusions import print_conclusion

    _print_tables(cache, results)
    print_conclusion(cache, found)
    folder = checkpoint_folder(out, cache.provenance) / cache.provenance.dataset
    say("next: " + command("taskres", "report", folder))


def _run_line(result: "Run") -> str:
    """Return a run's folder, test accuracy and times as one line."""
    from taskres_cache.reporting.tables import percent

    test, seconds = result.metrics.test_accuracy, result.metrics.seconds
    base = f", base {seconds.base:.2f} s" if seconds.base else ""
    return f"{result.folder}: test {percent(test)} %, fit {seconds.fit:.2f} s{base}"


def print_results_json(cache: "FeatureCache", results: "Sequence[Run]", found: "Conclusion") -> None:
    """Print summaries over seeds, baselines, what was gained, and all runs as one JSON document."""
    from taskres_cache.runs.results import summarise

    from .console import print_json
    from .fit_conclusions import conclusion_json

    measured = {(one.classifier, one.shots): one.as_json() for one in found.standings}
    summaries = [
        {**summary.to_json(), **measured.get((summary.method, summary.shots), {})}
        for summary in summarise(result.metrics for result in results)
    ]
    runs = [{"folder": str(result.folder), **result.metrics.to_json()} for result in results]
    print_json({"cache": str(cache.path), "summary": summaries, **conclusion_json(found), "runs": runs})


def _print_tables(cache: "FeatureCache", results: "Sequence[Run]") -> None:
    """Print tables for each method: accuracies, and what was chosen from which candidates."""
    from taskres_cache.reporting.choices import candidates_table, settings_table
    from taskres_cache.reporting.sections import choice_table, method_table, prompts_table
    from taskres_cache.runs.results import summarise

    from .console import print_table

    source, only = cache.provenance, "" if cache.half == "all" else f", {cache.half} classes"
    summaries = summarise(result.metrics for result in results)
    if len({summary.prompts for summary in summaries}) > 1:
        print_table(prompts_table(summaries, f"{source.dataset}, {source.backbone} ({source.pretrained}){only}"))
    for method in dict.fromkeys(summary.method for summary in summaries):
        title = f"{source.dataset}, {source.backbone} ({source.pretrained})\n{method}{only}"
        print_table(method_table([summary for summary in summaries if summary.method == method], title))
        chosen = [result.metrics for result in results if result.metrics.method == method]
        if chosen[0].chosen is not None:
            print_table(choice_table(chosen, title))
            _say_edge(chosen)
        for table in (settings_table(chosen, title), candidates_table(chosen, title) if _is_auto(chosen) else None):
            if table is not None:
                print_table(table)


def _is_auto(all_metrics: "Sequence[Metrics]") -> bool:
    record = all_metrics[0].record
    return record is not None and record.name == "auto"


def _say_edge(all_metrics: "Sequence[Metrics]") -> None:
    """Print a note if the largest alpha won, because a larger one may be better."""
    from taskres_cache.methods.search import largest_alpha_won

    from .console import say

    edges = [one.chosen and largest_alpha_won(one.chosen, one.candidates or ()) for one in all_metrics]
    if any(edges):
        won = f"the largest alpha won in {sum(map(bool, edges))} of {len(edges)} fits"
        say(f"note: {won}, so a larger one may be better; try --method auto, whose grid goes on")
