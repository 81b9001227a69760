"""The runs of a report, grouped into studies, in which everything but the few-shot split and the recipe is the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from taskres_cache.caches.contents import DEFAULT_PROMPTS
from taskres_cache.errors import CacheError, OptionError, RunError
from taskres_cache.reporting.analysis import Analysis, analyse
from taskres_cache.reporting.published.compared import Compared, compared, measured
from taskres_cache.runs.finding import find_runs
from taskres_cache.runs.metrics import Metrics
from taskres_cache.runs.results import Summary, summarise
from taskres_cache.runs.run import Run, read_metrics

LONGEST_PROMPTS = 60  # letters in a title


@dataclass(frozen=True)
class Study:
    """All runs of one data set, checkpoint, half of the classes, templates and set of test images.

    Parameters
    ----------
    dataset, backbone, pretrained, half : str
        What the runs have in common.
    runs : tuple of Run
        All runs, those of the regular base first.
    summaries : tuple of Summary
        Mean and deviation over seeds, per method and shot count.
    published : tuple of Compared
        Published figures of the same data set, checkpoint, methods and shots, next to ours.
    analysis : Analysis or None
        Test predictions of one method; None if the cache is not available.
    analysis_error : str
        Why there is no analysis.
    variant : str
        What sets it apart from other studies of the same name; empty if there are none.
    """

    dataset: str
    backbone: str
    pretrained: str
    half: str
    runs: tuple[Run, ...]
    summaries: tuple[Summary, ...]
    published: tuple[Compared, ...]
    analysis: Analysis | None
    analysis_error: str = ""
    variant: str = ""

    @property
    def title(self) -> str:
        """The data set, the half of its classes, and what sets the study apart."""
        half = "" if self.half == "all" else f"{self.half} classes"
        return ", ".join(part for part in (self.dataset, half, self.variant) if part)

    @property
    def methods(self) -> dict[str, list[Summary]]:
        """Method -> its summaries, by shots."""
        found: dict[str, list[Summary]] = {}
        for summary in self.summaries:
            found.setdefault(summary.method, []).append(summary)
        return found


def gather_studies(paths: Sequence[Path], cache_dir: Path, device: torch.device) -> list[Study]:
    """Find runs and group them into studies.

    Parameters
    ----------
    paths : sequence of Path
        Run folders, or folders above several; a run found twice counts once.
    cache_dir : Path
        Folder of all caches, for runs whose cache has moved.
    device : torch.device
        Where test predictions are computed.

    Returns
    -------
    list of Study
        In the order in which they are found.

    Raises
    ------
    RunError
        There is no run, or one is damaged.
    OptionError
        Two runs are the same fit.
    """
    folders = list({folder.resolve(): folder for path in paths for folder in find_runs(path)}.values())
    groups: dict[tuple[str, ...], list[Run]] = {}
    for folder in folders:
        run = Run(folder, read_metrics(folder))
        groups.setdefault(study_key(run.metrics), []).append(run)
    parts = [part for runs in groups.values() for part in without_duplicates(runs)]
    variants = variants_of([part[0] for part in parts])
    return [_study(runs, variant, cache_dir, device) for runs, variant in zip(parts, variants, strict=True)]


def _name(metrics: Metrics) -> tuple[str, ...]:
    """Return what studies are called by; studies of one name may still have different inputs."""
    return metrics.dataset, metrics.backbone, metrics.pretrained, metrics.weights_sha256, metrics.classes


def study_key(metrics: Metrics) -> tuple[str, ...]:
    """Return what all runs of a study share; of earlier versions, of its inputs only the number of classes is known."""
    return *_name(metrics), metrics.study_sha256 or f"{len(metrics.class_accuracies or ())} classes"


def without_duplicates(runs: Sequence[Run]) -> list[list[Run]]:
    """Return runs in parts, none of which counts a seed of a method twice.

    The same seed has other training images if these were drawn from other images, for example after some were added.

    Raises
    ------
    OptionError
        Two runs are the same fit, for example in two folders of runs.
    """
    parts: list[dict[tuple[str, int, int], Run]] = []
    for run in runs:
        fit = run.metrics.method, run.metrics.shots, run.metrics.seed
        for part in parts:
            other = part.get(fit)
            if other is not None and _is_same_fit(run.metrics, other.metrics):
                raise OptionError(f"{other.folder} and {run.folder} are the same fit; pass the folder of one of them")
        free = next((part for part in parts if fit not in part), None)
        if free is None:
            parts.append(free := {})
        free[fit] = run
    return [list(part.values()) for part in parts]


def _is_same_fit(one: Metrics, other: Metrics) -> bool:
    """Return True for two runs with the same inputs; runs of earlier versions that record none count as the same."""
    return one.inputs_sha256 == other.inputs_sha256 or "" in (one.inputs_sha256, other.inputs_sha256)


def variants_of(runs: Sequence[Run]) -> list[str]:
    """Return what sets each of several studies apart from those of the same name, given a run of each."""
    return [_variant(run, [other for other in runs if _name(other.metrics) == _name(run.metrics)]) for run in runs]


def _variant(run: Run, alike: Sequence[Run]) -> str:
    if len(alike) == 1:
        return ""
    described = [_description(other) for other in alike]
    own = described[alike.index(run)]
    differing = [text for name, text in own.items() if len({other.get(name) for other in described}) > 1]
    variant = ", ".join(differing)
    if sum(all(text in other.values() for text in differing) for other in described) > 1:
        inputs = run.metrics.inputs_sha256[:8] or "of an earlier version"
        variant = ", ".join(part for part in (variant, f"inputs {inputs}") if part)
    return variant


def _description(run: Run) -> dict[str, str]:
    """Return what a reader recognises the inputs of a study by."""
    try:
        classifier = run.classifier
    except RunError:
        return {}
    prompts = " | ".join(classifier.templates) or classifier.prompts
    return {
        "classes": f"{len(classifier.classnames)} classes",
        "prompts": f"prompts {prompts if len(prompts) <= LONGEST_PROMPTS else prompts[:LONGEST_PROMPTS] + '...'}",
        "split": f"split {classifier.provenance.split}",
        "images": f"{run.metrics.images.test} test images",
    }


def _study(runs: Sequence[Run], variant: str, cache_dir: Path, device: torch.device) -> Study:
    dataset, backbone, pretrained, _, half = _name(runs[0].metrics)
    runs = sorted(runs, key=_order)
    summaries = tuple(summarise(run.metrics for run in runs))
    published = compared(measured(summaries), dataset, backbone, pretrained) if half == "all" else ()
    chosen, chosen_by = _chosen(summaries)
    fits = [run for run in runs if (run.metrics.method, run.metrics.shots) == (chosen.method, chosen.shots)]
    analysis, analysis_error = None, ""
    try:
        analysis = analyse(fits, chosen_by, cache_dir, device)
    except (CacheError, RunError) as error:
        analysis_error = str(error)
    results = tuple(runs), summaries, published, analysis, analysis_error
    return Study(dataset, backbone, pretrained, half, *results, variant)


def _order(run: Run) -> tuple[bool, bool, bool]:
    """Return a sort key: the paper's method, task residuals on other bases, other methods; templates come first."""
    return run.metrics.record is not None, run.metrics.base != "regular", run.metrics.prompts != DEFAULT_PROMPTS


def _chosen(summaries: Sequence[Summary]) -> tuple[Summary, str]:
    """Return the summary to analyse, and why: at the most shots the best by validation accuracy, never by test."""
    most = max(summary.shots for summary in summaries)
    candidates = [summary for summary in summaries if summary.shots == most]
    if len(candidates) == 1:
        return candidates[0], "the only method at the most shots"
    if any(summary.mean_val_accuracy is None for summary in candidates):
        return candidates[0], "the first method, since validation accuracies are missing"
    best = max(candidates, key=lambda summary: summary.mean_val_accuracy or 0.0)
    return best, "the method with the best validation accuracy at the most shots"
