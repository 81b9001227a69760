"""Tables of a benchmark from results made by hand: methods, and published figures next to ours."""

from pathlib import Path

from taskres_cache.benchmark.method_tables import method_tables
from taskres_cache.benchmark.pipeline import DatasetResult, ShiftResult
from taskres_cache.benchmark.tables import benchmark_markdown, benchmark_tables, write_benchmark
from taskres_cache.methods.choice import MethodRecord
from taskres_cache.recipe import Recipe
from taskres_cache.runs.metrics import Seconds
from taskres_cache.runs.results import summarise
from taskres_cache.runs.run import Run
from tests.conftest import metrics_of


def result(name: str, shift: float = 0.0, pretrained: str = "openai") -> DatasetResult:
    """Return TaskRes with 66 and 68 % and GDA with 67 and 70 % at 16 shots."""
    tests = {"taskres-regular": (66.0, 68.0), "gda": (67.0, 70.0)}
    runs = {
        method: tuple(
            Run(
                Path("nowhere"),
                metrics_of(
                    dataset=name, backbone="RN50", pretrained=pretrained, method=method, seed=seed,
                    recipe=Recipe() if method == "taskres-regular" else None,
                    record=None if method == "taskres-regular" else MethodRecord(method, {}),
                    zero_shot_accuracy=40.0, test_accuracy=test + shift, seconds=Seconds(fit=0.25),
                ),
            )
            for seed, test in enumerate(row, start=1)
        )
        for method, row in tests.items()
    }  # fmt: skip
    ours, others = (tuple(summarise(run.metrics for run in row)) for row in runs.values())
    return DatasetResult(name, ours, (*runs["taskres-regular"], *runs["gda"]), 0, (), others)


def test_published_figures_are_next_to_ours() -> None:
    shifted = ShiftResult("imagenetv2", 16, (1, 2), 51.0, 57.0, 0.5)
    *_, table, sources = benchmark_tables([result("dtd"), shifted], "RN50 (openai)")
    assert table.title == "RN50 (openai): next to published results"
    rows = {(row[0], row[1], row[4]): row for row in table.rows}
    taskres, gda = rows["dtd", "taskres-regular", "S15"], rows["dtd", "gda", "S4 S5"]
    assert taskres[2:] == ("16 shots", "TaskRes (by others)", "S15", "no", "67.00 ± 1.41", "67.02", "-0.02", "yes")
    assert gda[2:4] == ("16 shots", "GDA")
    assert gda[6] == "68.50 ± 2.12"
    assert rows["imagenetv2", "taskres-regular", "S18"][6] == "57.00 ± 0.50"
    assert rows["dtd", "zero-shot", "S1"][6:] == ("40.00", "42.20", "-2.20", "-")
    assert {"S15", "S4", "S5", "S18"} <= {row[0] for row in sources.rows}


def test_figures_of_another_checkpoint_are_not_compared() -> None:
    tables = benchmark_tables([result("dtd", pretrained="yfcc15m")], "RN50 (yfcc15m)")
    assert [table for table in tables if "published" in table.title] == []


def test_methods_are_compared_per_data_set_and_over_data_sets() -> None:
    tables = method_tables([result("dtd"), result("eurosat", shift=10.0)])
    assert [table.title.split("\n")[0] for table in tables] == [
        *["dtd, RN50 (openai)"] * 3, *["eurosat, RN50 (openai)"] * 3, *["2 data sets, RN50 (openai)"] * 3,
    ]  # fmt: skip
    average, _, difference = tables[6:]
    assert average.columns == ("method", "16 shots", "gain", "rank", "s per fit")
    assert average.rows == (
        ("zero-shot", "40.00", "+0.00", "3.00", "-"),
        ("TaskRes", "72.00 ± 1.41", "+32.00", "2.00", "0.250"),
        ("gda", "73.50 ± 2.12", "+33.50", "1.00", "0.250"),
    )
    # Differences 1, 2, 1, 2: mean 1.5, deviation 1/sqrt(3); t(0.975, 3) = 3.182446, so 3.182446 / sqrt(12) = 0.918693.
    assert difference.rows == (("gda", "+1.50 [+0.58, +2.42]"),)
    assert method_tables([]) == []


def test_they_are_written(tmp_path: Path) -> None:
    outcomes = [result("dtd"), result("eurosat")]
    markdown = benchmark_markdown(outcomes, "RN50 (openai)")
    assert "## RN50 (openai): next to published results" in markdown
    assert "| gda | **68.50 ± 2.12** |" in markdown
    names = [file.name for file in write_benchmark(outcomes, "RN50 (openai)", tmp_path)]
    assert names == ["benchmark.md", "benchmark.csv", "benchmark-methods.csv"]
