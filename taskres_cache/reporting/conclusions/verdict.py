"""One or two plain sentences on what a fit gained, and whether that may be chance."""

from collections.abc import Sequence

from taskres_cache.datasets.sampling import ALL_SHOTS
from taskres_cache.reporting.conclusions.standings import (
    LINEAR_PROBE,
    LOGISTIC_REGRESSION,
    Standing,
    to_text,
)
from taskres_cache.reporting.tables import in_shots
from taskres_cache.runs.statistics.intervals import PairedDifference, paired_difference

CHANCE = 0.05  # largest p-value of a difference that is more than chance


def verdicts(found: Sequence[Standing], method: str) -> list[str]:
    """Return what a method gained at the most shots, and at which other shots zero-shot is better.

    Parameters
    ----------
    found : sequence of Standing
        What `standings` returns.
    method : str
        The method to speak of.
    """
    own = [one for one in found if one.classifier == method]
    if not own:
        return []
    last = max(own, key=lambda one: one.shots)
    sentences = [gained(last)]
    logistic = [one for one in found if one.shots == last.shots and is_logistic(one) and one is not last]
    sentences += [_against_logistic(last, one) for one in logistic]
    fewer = [(one.shots, one.against_zero_shot) for one in own if one.shots < last.shots]
    worse = [(shots, against) for shots, against in fewer if against is not None and is_worse(against)]
    if worse and last.against_zero_shot is not None and not is_worse(last.against_zero_shot):
        counts = ", ".join(with_labels(shots) for shots, _ in worse)
        by = ", ".join(f"{-against.difference:.1f}" for _, against in worse)
        sentences.append(f"warning: with {counts}, zero-shot is better by {by} points: use it there")
    return sentences


def gained(one: Standing) -> str:
    """Return the accuracy of a classifier, its interval and, with text, the difference to zero-shot, as a sentence."""
    against = one.against_zero_shot
    start = f"{one.classifier} with {with_labels(one.shots)}: {one.hits.accuracy:.1f} % ({to_text(one.interval)})"
    if against is None:
        return start
    points = f"{abs(against.difference):.1f} points"
    if is_worse(against):
        return (
            f"warning: {start}; zero-shot is better by {points}, more than chance ({p_text(against)}): use it, or add "
            "labels"
        )
    if against.difference > 0 and against.p_value < CHANCE:
        return f"{start}, {points} above zero-shot; the difference is more than chance ({p_text(against)})"
    if against.difference == 0:
        return f"{start}, as accurate as zero-shot: add labels"
    side = "above" if against.difference > 0 else "below"
    return f"{start}, {points} {side} zero-shot, which may be chance ({p_text(against)}): add labels"


def is_logistic(one: Standing) -> bool:
    """Return True for logistic regression, as a baseline or as a fitted method."""
    return one.classifier == LOGISTIC_REGRESSION or one.classifier.startswith(LINEAR_PROBE)


def with_labels(shots: int) -> str:
    """Return "1 shot", "2 shots" and so on, and "all labels"."""
    return "all labels" if shots == ALL_SHOTS else in_shots(shots)


def is_worse(against: PairedDifference) -> bool:
    """Return True if zero-shot is better, by more than chance."""
    return against.difference < 0 and against.p_value < CHANCE


def p_text(against: PairedDifference) -> str:
    """Return "p < 0.001", "p = 0.004" or "p = 0.34"."""
    if against.p_value < 0.001:
        return "p < 0.001"
    return f"p = {against.p_value:.3f}" if against.p_value < 0.1 else f"p = {against.p_value:.2f}"


def _against_logistic(one: Standing, logistic: Standing) -> str:
    """Return the difference to logistic regression as one sentence."""
    against = paired_difference(one.hits, logistic.hits)
    has = f"{LOGISTIC_REGRESSION}: {logistic.hits.accuracy:.1f} %"
    if against.difference == 0:
        return f"{has}, as accurate"
    more = "less" if against.difference > 0 else "more"
    chance = "more than chance" if against.p_value < CHANCE else "which may be chance"
    return f"{has}, {abs(against.difference):.1f} points {more}, {chance} ({p_text(against)})"


def spoken_of(val_accuracies: dict[str, float | None]) -> str:
    """Return the method to speak of: the best by validation, never by test; the first if one has no validation.

    Parameters
    ----------
    val_accuracies : dict of str to float or None
        Mean validation accuracy of each method at the most shots; None without validation images.
    """
    known = {name: value for name, value in val_accuracies.items() if value is not None}
    return max(known, key=lambda name: known[name]) if len(known) == len(val_accuracies) else next(iter(val_accuracies))
