"""Comparisons of methods, with numbers worked out by hand."""

import csv
import json
import math
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from taskres_cache.methods.choice import MethodRecord
from taskres_cache.recipe import Recipe
from taskres_cache.reporting.comparison.grid import grid_of, grids_over_datasets, most_shared
from taskres_cache.reporting.comparison.paired import paired_difference
from taskres_cache.reporting.comparison.tables import (
    accuracy_table,
    chosen_table,
    difference_table,
    gain_table,
    is_comparison,
    records_table,
)
from taskres_cache.reporting.report import as_markdown, write_comparison
from taskres_cache.reporting.studies import Study
from taskres_cache.runs.metrics import Seconds
from taskres_cache.runs.results import summarise
from taskres_cache.runs.run import Run
from tests.conftest import Taskres, metrics_of, one_line

TASKRES = "taskres-regular"


def run(method: str, shots: int, seed: int, test: float, **known: Any) -> Run:
    recipe = Recipe() if method.startswith("taskres") else None
    record = None if recipe else MethodRecord(method, {})
    found = {"recipe": recipe, "record": record, "zero_shot_accuracy": 60.0, "seconds": Seconds(fit=0.5), **known}
    return Run(Path("nowhere"), metrics_of(method=method, shots=shots, seed=seed, test_accuracy=test, **found))


def study(*runs: Run, dataset: str = "dtd") -> Study:
    summaries = tuple(summarise(one.metrics for one in runs))
    return Study(dataset, "RN50", "openai", "all", runs, summaries, (), None)


def two_methods(dataset: str = "dtd", shift: float = 0.0) -> Study:
    tests = {TASKRES: (70.0, 72.0, 74.0), "gda": (73.0, 72.0, 77.0)}
    runs = [run(name, 4, seed, test + shift) for name, row in tests.items() for seed, test in enumerate(row, start=1)]
    return study(*runs, dataset=dataset)


def test_an_interval_by_hand() -> None:
    """Differences 3, 0 and 3: mean 2, deviation sqrt(3), so a standard error of 1; t(0.975, 2) = 4.302653."""
    found = paired_difference([73.0, 72.0, 77.0], [70.0, 72.0, 74.0])
    assert (found.mean, found.pairs) == (2.0, 3)
    assert found.low == pytest.approx(2 - 4.302653, abs=1e-6)
    assert found.high == pytest.approx(2 + 4.302653, abs=1e-6)


def test_an_interval_is_that_of_scipys_test() -> None:
    ours, others = [61.2, 63.9, 60.5, 66.1, 62.2], [60.1, 62.0, 61.0, 63.2, 61.9]
    found = paired_difference(ours, others)
    interval = stats.ttest_rel(ours, others).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_one_pair_has_no_interval() -> None:
    found = paired_difference([73.0], [70.0])
    assert (found.mean, found.pairs, found.low, found.high) == (3.0, 1, None, None)


def test_cells_by_hand() -> None:
    grid = grid_of(two_methods())
    taskres, gda, zero_shot = (grid.methods[name][4] for name in (TASKRES, "gda", "zero-shot"))
    assert (taskres.mean, taskres.deviation, taskres.gain) == (72.0, 2.0, 12.0)
    assert (gda.mean, gda.gain) == (74.0, 14.0)
    assert gda.deviation == pytest.approx(math.sqrt(7))  # of 73, 72 and 77: (1 + 4 + 9) / 2
    assert (zero_shot.mean, zero_shot.deviation, zero_shot.gain, zero_shot.seconds) == (60.0, None, 0.0, None)
    assert (gda.rank, taskres.rank, zero_shot.rank) == (1, 2, 3)
    assert (gda.best, taskres.best, zero_shot.best) == (True, False, False)
    assert gda.seconds == 0.5
    assert grid.reference == TASKRES
    assert taskres.difference is None
    assert gda.difference is not None
    assert gda.difference.mean == 2.0


def test_tables_of_a_study() -> None:
    grid = grid_of(two_methods())
    accuracy = accuracy_table(grid)
    assert accuracy.title == "dtd, RN50 (openai)\ntest accuracy in %, mean and standard deviation over seeds 1, 2, 3"
    assert accuracy.columns == ("method", "4 shots", "gain", "s per fit")
    assert accuracy.rows == (
        ("zero-shot", "60.00", "+0.00", "-"),
        (TASKRES, "72.00 ± 2.00", "+12.00", "0.500"),
        ("gda", "74.00 ± 2.65", "+14.00", "0.500"),
    )
    assert accuracy.bold == {(2, 1)}
    assert "| gda | **74.00 ± 2.65** | +14.00 | 0.500 |" in accuracy.as_markdown()
    assert gain_table(grid).rows == ((TASKRES, "+12.00"), ("gda", "+14.00"))
    differences = difference_table(grid)
    assert differences.rows == (("gda", "+2.00 [-2.30, +6.30]"),)
    assert differences.title.endswith("95 % t-interval over seeds (pairs per cell: 3)")


def test_equal_means_are_both_best_and_share_their_rank() -> None:
    grid = grid_of(study(run(TASKRES, 1, 1, 60.001), run("gda", 1, 1, 59.999)))
    assert [cell[1].best for cell in grid.methods.values()] == [True, True, True]
    grid = grid_of(study(run(TASKRES, 1, 1, 70.0), run("gda", 1, 1, 70.0)))
    assert [cell[1].rank for cell in grid.methods.values()] == [3, 1.5, 1.5]


def test_a_method_without_a_seed_of_the_others_has_no_cell() -> None:
    runs = [run(name, 1, seed, 70.0 + seed) for name in (TASKRES, "gda", "clap") for seed in (1, 2, 3)]
    runs = [one for one in runs if (one.metrics.method, one.metrics.seed) != ("clap", 3)]
    grid = grid_of(study(*runs, run(TASKRES, 1, 4, 99.0)))
    assert grid.fits[1] == (("dtd", 1), ("dtd", 2), ("dtd", 3))  # most methods have these
    assert grid.methods[TASKRES][1].mean == 72.0  # without seed 4, which the others do not have
    assert grid.methods["clap"] == {}
    assert grid.notes == ("clap misses a data set or seed of the others at 1 shot",)
    assert dict(zip(grid.methods, [row[1] for row in accuracy_table(grid).rows], strict=True))["clap"] == "-"


def test_most_shared() -> None:
    one, two = (("a", 1),), (("a", 1), ("a", 2))
    assert most_shared([one, two, two[::-1]]) == two
    assert most_shared([one, one, two]) == one
    assert most_shared([one, two]) == one  # the only one that both have
    seeds = [tuple(("a", seed) for seed in range(count)) for count in (10, 3, 3)]
    assert most_shared(seeds) == seeds[1]


def test_averages_over_data_sets_by_hand() -> None:
    first, second = two_methods("dtd"), two_methods("eurosat", shift=10.0)
    (grid,) = grids_over_datasets([first, second])
    assert grid.title == "2 data sets, RN50 (openai)"
    assert grid.datasets == ("dtd", "eurosat")
    taskres, gda = grid.methods["TaskRes"][4], grid.methods["gda"][4]
    assert (taskres.mean, gda.mean) == (77.0, 79.0)
    assert taskres.deviation == 2.0  # of 75, 77 and 79, the means of each seed
    assert gda.difference is not None
    assert gda.difference.pairs == 6
    # Differences 3, 0, 3, 3, 0, 3: mean 2, variance (4 * 1 + 2 * 4) / 5 = 2.4; t(0.975, 5) = 2.570582.
    assert gda.difference.low == pytest.approx(2 - 2.570582 * math.sqrt(2.4 / 6), abs=1e-5)
    table = accuracy_table(grid)
    assert table.columns == ("method", "4 shots", "gain", "rank", "s per fit")
    assert table.rows[2] == ("gda", "79.00 ± 2.65", "+19.00", "1.00", "0.500")
    assert "seeds 1, 2, 3 of the mean over dtd, eurosat" in table.title


def test_a_method_without_a_data_set_is_not_averaged() -> None:
    extra = [run("clap", 4, seed, 90.0) for seed in (1, 2, 3)]
    (grid,) = grids_over_datasets([study(*two_methods().runs, *extra), two_methods("eurosat")])
    assert grid.methods["clap"] == {}
    assert grid.notes == ("clap misses a data set or seed of the others at 4 shots",)


def test_unlike_runs_are_not_averaged() -> None:
    """Other checkpoints, other halves, and one data set with two sets of inputs."""
    first, second = two_methods("dtd"), two_methods("eurosat")
    assert grids_over_datasets([first, replace(second, backbone="ViT-B-16")]) == []
    assert grids_over_datasets([first, replace(second, half="new")]) == []
    assert grids_over_datasets([first, replace(second, dataset="dtd", variant="prompts a {}.")]) == []
    (grid,) = grids_over_datasets([first, second, replace(first, variant="x"), two_methods("food101")])
    assert grid.datasets == ("eurosat", "food101")


def test_the_recipe_of_a_data_set_is_one_method(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flowers has alpha 1; elsewhere alpha 1 is another method."""
    own = {"dtd": {}, "oxford_flowers": {"alpha": 1.0}}

    def studied(dataset: str, **recipes: Recipe) -> Study:
        runs = [run(recipe.method_name(), 4, 1, 70.0, recipe=recipe, dataset=dataset) for recipe in recipes.values()]
        return study(*runs, dataset=dataset)

    class Named:
        def __init__(self, dataset: str) -> None:
            self.provenance = self
            self.recipe = own[dataset]

    monkeypatch.setattr(Run, "classifier", property(lambda one: Named(one.metrics.dataset)))
    dtd = studied("dtd", paper=Recipe(), other=Recipe(alpha=1.0))
    flowers = studied("oxford_flowers", paper=Recipe(alpha=1.0), base=Recipe(alpha=1.0, base="enhanced"))
    (grid,) = grids_over_datasets([dtd, flowers])
    assert list(grid.methods) == ["zero-shot", "TaskRes", "taskres-regular-alpha1", "TaskRes, base enhanced"]
    assert grid.methods["TaskRes"][4].mean == 70.0
    assert grid.methods["taskres-regular-alpha1"] == {}


def test_what_methods_chose() -> None:
    runs = [
        run("gda", 1, 1, 70.0, settings={"alpha": 0.1, "rule": "val"}),
        run("gda", 1, 2, 70.0, settings={"alpha": 1.0, "rule": "val"}),
        run("gda", 2, 1, 70.0, settings={"alpha": 1.0}),
        run("gda", 2, 2, 70.0, settings={"alpha": 1.0}),
        run("clap", 1, 1, 70.0),
    ]
    table = chosen_table(study(*runs))
    assert table is not None
    assert table.rows == (
        ("gda", "1", "seed 1: alpha 0.1, rule val; seed 2: alpha 1, rule val"),
        ("gda", "2", "alpha 1"),
    )
    assert chosen_table(two_methods()) is None


def test_records_are_safe_for_spreadsheets() -> None:
    grid = grid_of(study(run(TASKRES, 4, 1, 70.0), run("=HYPERLINK(1)", 4, 1, 80.0), dataset="@dtd"))
    rows = list(csv.DictReader(StringIO(records_table([grid]).as_csv())))
    assert [row["method"] for row in rows] == ["zero-shot", TASKRES, "'=HYPERLINK(1)"]
    assert rows[0]["title"] == "'@dtd, RN50 (openai)"
    assert (rows[2]["mean"], rows[2]["difference"], rows[2]["difference_low"], rows[2]["pairs"]) == (
        "80.0000", "10.0000", "", "1",
    )  # fmt: skip
    assert [row["best"] for row in rows] == ["no", "no", "yes"]


def test_latex_escapes_names(tmp_path: Path) -> None:
    found = study(run(TASKRES, 4, 1, 70.0), run(r"a_b&c%{\d}", 4, 1, 80.0), run("[x]", 4, 1, 80.0))
    write_comparison([found], tmp_path / "t.tex")
    text = (tmp_path / "t.tex").read_text()
    assert text.startswith("% needs \\usepackage{booktabs}\n")
    assert r"a\_b\&c\%\{\textbackslash{}d\} & \textbf{80.00} & +20.00 & 0.500 \\" in text
    assert r"{[}x] & \textbf{80.00}" in text  # after a line break, [ would begin an argument
    assert r"\caption{dtd, RN50 (openai): test accuracy in \%, mean and standard deviation over seed 1}" in text
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 3


def test_a_report_of_one_method_has_no_comparison() -> None:
    one = study(run(TASKRES, 4, 1, 70.0))
    assert not is_comparison(grid_of(one))
    assert "paired difference" not in as_markdown([one], "t")
    assert "paired difference to taskres-regular" in as_markdown([two_methods()], "t")


def test_the_command(here: Path, taskres: Taskres) -> None:
    assert taskres("extract", "digits", "--shots", "1", "--seeds", "1,2").status == 0
    fit = ("fit", "digits", "--shots", "1", "--seeds", "1,2", "--device", "cpu")
    assert taskres(*fit, "--method", "taskres,gda").status == 0
    outcome = taskres("report", "runs", "--table", "-", "--table", "t.csv", "--table", "t.tex", "--device", "cpu")
    assert outcome.status == 0, outcome.err
    assert "paired difference to taskres-regular-alpha2" in outcome.out
    assert not (here / "report.html").exists()
    rows = list(csv.DictReader((here / "t.csv").open()))
    tests = {
        seed: json.loads(next((here / "runs").glob(f"*/digits/gda*/shots_1/seed_{seed}/metrics.json")).read_text())
        for seed in (1, 2)
    }
    (mean,) = [row["mean"] for row in rows if row["method"] == "gda"]
    assert float(mean) == pytest.approx((tests[1]["test_accuracy"] + tests[2]["test_accuracy"]) / 2, abs=1e-4)
    refused = taskres("report", "runs", "--table", "t.pdf")
    assert refused.status == 2
    assert "cannot write a table to t.pdf; use a suffix of .md, .csv, .tex" in one_line(refused)
    page = taskres("report", "runs", "--device", "cpu")
    assert page.status == 0
    assert "paired difference to taskres-regular-alpha2 in points" in (here / "report.html").read_text()
    assert "What each method chose" in (here / "report.html").read_text()


def test_a_deviation_needs_every_seed_on_every_data_set() -> None:
    first = study(*(run(name, 4, seed, 70.0 + seed) for name in (TASKRES, "gda") for seed in (1, 2)))
    second = study(*(run(name, 4, 1, 80.0) for name in (TASKRES, "gda")), dataset="eurosat")
    (grid,) = grids_over_datasets([first, second])
    assert grid.methods["gda"][4].mean == 75.75  # of 71.5 and 80
    assert grid.methods["gda"][4].deviation is None
