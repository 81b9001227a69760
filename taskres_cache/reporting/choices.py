"""What methods other than the task residual chose, and from which candidates, as tables."""

from collections.abc import Mapping, Sequence

import numpy as np

from taskres_cache.datasets.sampling import shots_text
from taskres_cache.reporting.tables import Table, in_shots, percent
from taskres_cache.runs.metrics import Metrics

MOST_CANDIDATES = 30  # in a printed table; metrics.json holds all


def settings_table(all_metrics: Sequence[Metrics], title: str) -> Table | None:
    """Return the hyper-parameters chosen for each shot count and seed; None if the method chooses nothing."""
    names = list(dict.fromkeys(name for metrics in all_metrics for name in metrics.settings or {}))
    if not names:
        return None
    rows = tuple(
        (
            shots_text(metrics.shots),
            str(metrics.seed),
            *(_shown((metrics.settings or {}).get(name)) for name in names),
            percent(metrics.val_accuracy),
            percent(metrics.test_accuracy),
        )
        for metrics in all_metrics
    )
    return Table(f"{title}: chosen", ("shots", "seed", *names, "val %", "test %"), rows, left=0)


def candidates_table(all_metrics: Sequence[Metrics], title: str) -> Table | None:
    """Return the mean loss of each candidate on the images that chose, over shots; None for none or too many."""
    losses: dict[str, dict[int, list[float]]] = {}
    for metrics in all_metrics:
        for trial in metrics.trials or ():
            losses.setdefault(_named(trial.settings), {}).setdefault(metrics.shots, []).append(trial.val_loss)
    if not 0 < len(losses) <= MOST_CANDIDATES:
        return None
    shots = sorted({metrics.shots for metrics in all_metrics})
    rows = tuple(
        (name, *(f"{np.mean(of_shots[count]):.3f}" if count in of_shots else "-" for count in shots))
        for name, of_shots in losses.items()
    )
    return Table(
        f"{title}: loss of each candidate, mean over seeds", ("candidate", *map(in_shots, shots)), rows, left=1
    )


def _named(settings: Mapping[str, float | int | str]) -> str:
    return ", ".join(
        f"{value}" if name == "candidate" else f"{name} {_shown(value)}" for name, value in settings.items()
    )


def _shown(value: float | int | str | None) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:g}"
