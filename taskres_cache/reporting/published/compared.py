"""Ours next to published figures of the same data set, backbone, shots and method."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from taskres_cache.reporting.published.figures import (
    ChoseOnTest,
    Figure,
    Source,
    published_backbone,
    published_method,
    read_figures,
)
from taskres_cache.runs.results import Summary

ROUNDING = 0.011  # points


@dataclass(frozen=True)
class Measured:
    """Our test accuracy of a method.

    Parameters
    ----------
    method : str
        Name with options, as in a run; "zero-shot" for the text classifier alone.
    shots : int
        Training images per class; 0 for zero-shot.
    mean : float
        In percent, over seeds.
    deviation : float or None
        Standard deviation over seeds; None for one seed.
    """

    method: str
    shots: int
    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Compared:
    """One of our accuracies next to a published one.

    Parameters
    ----------
    ours : Measured
        What we measured.
    figures : tuple of Figure
        Figures of the same accuracy; more than one if a source lists the result of another.
    """

    ours: Measured
    figures: tuple[Figure, ...]

    @property
    def accuracy(self) -> float:
        """The published accuracy in percent."""
        return self.figures[0].accuracy

    @property
    def difference(self) -> float:
        """Ours minus the published accuracy, in points."""
        return self.ours.mean - self.accuracy

    @property
    def within(self) -> bool | None:
        """True if the difference is at most our standard deviation over seeds; None without a deviation."""
        return None if self.ours.deviation is None else abs(self.difference) <= self.ours.deviation + 1e-9

    @property
    def chose_on_test(self) -> ChoseOnTest:
        """Whether the published figure was chosen by test accuracy; of several sources, what speaks most against it."""
        found = {one.chose_on_test for one in self.figures}
        return "yes" if "yes" in found else "unknown" if "unknown" in found else "no"

    @property
    def sources(self) -> tuple[Source, ...]:
        """The sources of the figures."""
        return tuple(one.source for one in self.figures)


def measured(summaries: Sequence[Summary]) -> list[Measured]:
    """Return what was measured on one data set: zero-shot if there is text, and every method and shot count."""
    ours = [Measured(row.method, row.shots, row.mean_test_accuracy, row.std_test_accuracy) for row in summaries]
    zero_shot = summaries[0].zero_shot_accuracy
    return ours if zero_shot is None else [Measured("zero-shot", 0, zero_shot, None), *ours]


def compared(ours: Iterable[Measured], dataset: str, backbone: str, pretrained: str) -> tuple[Compared, ...]:
    """Return ours next to the published figures of the same data set, checkpoint, method and shots."""
    checkpoint = published_backbone(backbone, pretrained)
    published: dict[tuple[str, int], list[Figure]] = {}
    for figure in read_figures():
        if (figure.dataset, figure.backbone) == (dataset, checkpoint):
            published.setdefault((figure.method, figure.shots), []).append(figure)
    return tuple(
        Compared(one, figures)
        for one in ours
        for figures in _equal(published.get((published_method(one.method) or "", one.shots), []))
    )


def _equal(figures: Sequence[Figure]) -> list[tuple[Figure, ...]]:
    """Return figures in groups of one name, way of choosing and, up to rounding, accuracy."""
    groups: list[list[Figure]] = []
    for figure in figures:
        group = next((group for group in groups if _is_same(group[0], figure)), None)
        if group is None:
            groups.append(group := [])
        group.append(figure)
    return [tuple(group) for group in groups]


def _is_same(one: Figure, other: Figure) -> bool:
    """Return True if two sources list the same result; one of them may have rounded it."""
    same_kind = (one.name, one.chose_on_test) == (other.name, other.chose_on_test)
    return same_kind and abs(one.accuracy - other.accuracy) < ROUNDING
