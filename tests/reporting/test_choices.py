"""Tables of what methods chose, and from which candidates."""

from taskres_cache.methods.method import Trial
from taskres_cache.reporting.choices import MOST_CANDIDATES, candidates_table, settings_table
from tests.conftest import metrics_of


def test_chosen_values_are_listed_for_each_split() -> None:
    first = metrics_of(seed=1, val_accuracy=75.0, settings={"judged by": "val", "taskres alpha": 2.0})
    second = metrics_of(seed=2, val_accuracy=None, settings={"judged by": "val", "gda weight": 0.1})
    table = settings_table([first, second], "auto")
    assert table is not None
    assert table.columns == ("shots", "seed", "judged by", "taskres alpha", "gda weight", "val %", "test %")
    assert table.rows[0] == ("16", "1", "val", "2", "-", "75.00", "80.00")
    assert table.rows[1][:5] == ("16", "2", "val", "-", "0.1")
    assert settings_table([metrics_of()], "prolip") is None


def test_losses_of_candidates_are_means_over_seeds() -> None:
    def trials(loss: float) -> tuple[Trial, ...]:
        return (
            Trial({"candidate": "zero-shot"}, 50.0, 1.0),
            Trial({"candidate": "taskres", "alpha": 0.5}, 50.0, loss),
        )

    runs = [metrics_of(seed=1, trials=trials(0.2)), metrics_of(seed=2, trials=trials(0.4))]
    table = candidates_table([*runs, metrics_of(shots=1, trials=trials(2.0)[:1])], "auto")
    assert table is not None
    assert table.rows == (("zero-shot", "1.000", "1.000"), ("taskres, alpha 0.5", "-", "0.300"))
    assert candidates_table([metrics_of()], "auto") is None
    many = tuple(Trial({"C": float(number)}, 0.0, 0.0) for number in range(MOST_CANDIDATES + 1))
    assert candidates_table([metrics_of(trials=many)], "auto") is None
