"""What `taskres fit` ends with: all classifiers on the same images, and what was gained, in words."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from taskres_cache.caches.feature_cache import FeatureCache
    from taskres_cache.reporting.conclusions.conclusion import Conclusion
    from taskres_cache.runs.run import Run


def concluded(cache: "FeatureCache", results: "Sequence[Run]", val: str, device: "torch.device") -> "Conclusion":
    """Return what fits come down to, next to a logistic regression on the same splits; say where that is left out."""
    from taskres_cache.reporting.conclusions.conclusion import conclude
    from taskres_cache.reporting.conclusions.standings import LINEAR_PROBE

    if any(run.metrics.record is not None and run.metrics.record.name == LINEAR_PROBE for run in results):
        return conclude(results)
    from taskres_cache.caches.contents import DEFAULT_PROMPTS
    from taskres_cache.runs.fitting.baselines import logistic_regression

    splits = [(run.metrics.shots, run.metrics.seed) for run in results]
    has_templates = DEFAULT_PROMPTS in cache.prompt_sets  # its zero-shot is the one without the name of a set
    of_templates = cache.using(DEFAULT_PROMPTS) if has_templates else cache
    baseline = logistic_regression(of_templates, splits, device, "full" if val == "full" else "few")
    if baseline.left_out:
        _say_left_out(cache, baseline.left_out, splits)
    return conclude(results, baseline.tested)


def _say_left_out(cache: "FeatureCache", left_out: Sequence[int], splits: "Sequence[tuple[int, int]]") -> None:
    """Print the command that fits the logistic regressions that would take too long here."""
    from taskres_cache.datasets.sampling import shots_text
    from taskres_cache.reporting.tables import in_shots
    from taskres_cache.system.text import command

    from .console import say

    seeds = ",".join(str(seed) for seed in dict.fromkeys(seed for _, seed in splits))
    asked = ("--shots", ",".join(map(shots_text, left_out)), "--seeds", seeds, "--method", "linear-probe")
    half = () if cache.half == "all" else ("--classes", cache.half)
    say(
        f"note: logistic regression is left out at {', '.join(map(in_shots, left_out))}, where it takes long; to get "
        f"it: {command('taskres', 'fit', cache.path, *asked, *half)}"
    )


def print_conclusion(cache: "FeatureCache", found: "Conclusion") -> None:
    """Print the table of all classifiers, and the sentences below it."""
    from taskres_cache.reporting.conclusions.standings import standings_table

    from .console import print_table, show

    source, only = cache.provenance, "" if cache.half == "all" else f", {cache.half} classes"
    title = f"{source.dataset}, {source.backbone} ({source.pretrained}){only}"
    print_table(standings_table(found.standings, title))
    for sentence in found.sentences:
        show(sentence)


def conclusion_json(found: "Conclusion") -> dict[str, Any]:
    """Return the classifiers that were not asked for, and the sentences, as plain values."""
    from taskres_cache.datasets.sampling import shots_json
    from taskres_cache.reporting.conclusions.standings import LOGISTIC_REGRESSION

    baselines = [
        {"classifier": one.classifier, "shots": shots_json(one.shots), "seeds": list(one.seeds), **one.as_json()}
        for one in found.standings
        if one.shots == 0 or one.classifier == LOGISTIC_REGRESSION
    ]
    return {"baselines": baselines, "conclusion": list(found.sentences)}
