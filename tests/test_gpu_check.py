"""`make check-gpu` on the CPU: its parts run, and it notices what it is there to notice."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from taskres_cache.methods.task_residual import epoch
from taskres_cache.methods.task_residual.loop import try_residuals
from tests import bench_extract, gpu_check
from tests.gpu_check import CPU, SCALE, cosine, gap, parity, row, variants
from tests.methods.task_residual.emulated_capture import emulate


@pytest.fixture
def few_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "variants", lambda precision, _: list(variants(precision, (3,)))[:2])


def results(table: gpu_check.Table) -> dict[str, str]:
    return {cells[0]: cells[-1] for cells in table.rows if cells[-1]}


@pytest.mark.usefixtures("few_variants")
def test_a_device_equals_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = emulate(monkeypatch)
    assert set(results(parity(CPU, (3,))).values()) == {"yes"}
    assert seen.replays > 0
    assert callable(epoch.Epoch._recorded)


@pytest.mark.usefixtures("few_variants")
def test_other_numbers_miss_the_goals(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def drifting(*arguments: object) -> list[object]:
        calls.append(1)
        noise = np.random.default_rng(len(calls)).normal(scale=3e-3, size=(20, 64)).astype(np.float32)
        return [replace(fit, residual=fit.residual + noise) for fit in try_residuals(*arguments)]

    monkeypatch.setattr(gpu_check, "try_residuals", drifting)
    missed = {what for what, met in results(parity(CPU, (3,))).items() if met == "NO"}
    assert {"fp32: recorded epochs against steps, relative gap", "fp32: against the CPU, cosine"} <= missed


def test_goals() -> None:
    assert row("time", 0.5, 1.0, " s") == ("time", "0.5 s", "at most 1 s", "yes")
    assert row("cosine", 0.9, 0.99, at_most=False)[-1] == "NO"
    assert row("gap", float("nan"), 1.0)[-1] == "NO"


@pytest.mark.parametrize("broken", [0, 2])
def test_a_nan_in_any_fit_is_a_gap(broken: int) -> None:
    *_, (task,) = variants("fp32", (1,))
    fits = try_residuals([replace(task, epochs=1, seed=seed) for seed in range(3)], SCALE, CPU)
    assert (gap(fits, fits), cosine(fits, fits)) == (0.0, pytest.approx(1.0))
    other = list(fits)
    other[broken] = replace(fits[broken], residual=np.full_like(fits[broken].residual, np.nan))
    for one, two in ((other, fits), (fits, other), (other, other)):
        assert np.isnan(gap(one, two))
        assert np.isnan(cosine(one, two))


@pytest.mark.parametrize(("ratio", "missed"), [("0.90", 0), ("0.89", 1), ("nan", 1)])
def test_an_extraction_below_its_goal_is_missed(ratio: str, missed: int) -> None:
    rows = (("extract", "9", "1", ratio, bench_extract.OF_BARE), ("plain", "9", "1", "0.1", ">= 3"))
    assert bench_extract.goals_missed(gpu_check.Table("speed", bench_extract.COLUMNS, rows)) == missed


def test_random_caches_have_the_splits_of_the_paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "DIM", 8)
    monkeypatch.setattr(gpu_check, "SIZES", {"imagenet": (3, 6), "dtd": (4, 8)})
    table = gpu_check.papers_grid(CPU, ("imagenet", "dtd"), tmp_path, 1)
    assert [cells[0] for cells in table.rows] == ["imagenet, 15 fits", "dtd, 15 fits", "all"]
    assert len(list(tmp_path.rglob("metrics.json"))) == 30


def test_variants_cover_epochs_of_several_graphs() -> None:
    *_, (task,) = variants("fp32", (1,))
    assert len(task.training.labels) // task.recipe.batch_size > epoch.CAPTURED_STEPS
    assert len(list(variants("fp32", (1, 3)))) == 3 * 2 * 2 * 2 * 2 + 1
    assert torch.isfinite(torch.tensor(try_residuals([task], SCALE, CPU)[0].losses)).all()
