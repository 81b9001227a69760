"""The training loop against the second implementation with autograd and torch.optim.Adam."""

import numpy as np
import pytest
import torch

from taskres_cache.errors import FitError, OptionError
from taskres_cache.methods.task_residual import orders
from taskres_cache.methods.task_residual.loop import _operations, fit_residuals
from taskres_cache.methods.task_residual.orders import epoch_order, epoch_orders
from taskres_cache.methods.task_residual.task import FitTask
from taskres_cache.methods.training_sets import TrainingSet
from taskres_cache.recipe import Recipe
from tests.by_hand import logits, mean_cross_entropy
from tests.methods.task_residual.problems import CPU, SCALE, few_shot_problem, fit_alone, reference_residual


@pytest.mark.parametrize(("count", "batch"), [(50, 16), (48, 16), (10, 16), (16, 16)])
def test_residual_equals_the_reference(count: int, batch: int) -> None:
    training, base = few_shot_problem(count)
    recipe = Recipe(alpha=0.7, lr=5e-3, batch_size=batch, weight_decay=2e-3)
    fit = fit_alone(training, base, recipe, epochs=15, seed=4)
    reference = reference_residual(training, base, recipe, epochs=15, seed=4)
    assert fit.residual.dtype == np.float64
    assert np.abs(reference).max() > 1e-2
    assert np.abs(fit.residual - reference).max() <= 1e-5 * np.abs(reference).max()


def test_the_same_seed_gives_the_same_fit() -> None:
    training, base = few_shot_problem(50)
    recipe = Recipe(batch_size=16)
    first, again, different = (fit_alone(training, base, recipe, 5, seed).residual for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, different)


def test_losses_are_per_epoch_and_decrease() -> None:
    training, base = few_shot_problem(60)
    fit = fit_alone(training, base.astype(np.float32), Recipe(), epochs=40, seed=1)
    assert len(fit.losses) == 40
    assert fit.losses[-1] < fit.losses[0]
    assert fit.residual.dtype == np.float32


def test_the_first_loss_is_that_of_zero_shot() -> None:
    training, base = few_shot_problem(20)
    fit = fit_alone(training, base, Recipe(), epochs=1, seed=1)
    zero_shot = mean_cross_entropy(logits(training.directions[0], base, SCALE), training.labels)
    assert fit.losses[0] == pytest.approx(zero_shot)


@pytest.mark.parametrize(("count", "batch", "shape"), [(10, 4, (2, 4)), (8, 4, (2, 4)), (3, 3, (1, 3)), (5, 4, (1, 4))])
def test_rows_that_do_not_fill_a_batch_are_dropped(count: int, batch: int, shape: tuple[int, int]) -> None:
    order = epoch_order(count, batch, torch.Generator().manual_seed(0))
    assert tuple(order.shape) == shape
    assert len(set(order.flatten().tolist())) == order.numel()


def test_divergence_raises() -> None:
    training, base = few_shot_problem(20)
    with pytest.raises(FitError, match="became NaN or infinite in epoch .* with lr 1e\\+300"):
        fit_alone(training, base, Recipe(lr=1e300), epochs=5, seed=1)


def test_no_tasks_give_no_fits() -> None:
    assert fit_residuals([], SCALE, torch.device("cpu")) == []


def test_bf16_products_give_nearly_the_same_residual() -> None:
    training, base = few_shot_problem(200, dim=64)
    base = base.astype(np.float32)
    full, low = (fit_alone(training, base, Recipe(precision=precision), 30, 1) for precision in ("fp32", "bf16"))
    assert low.residual.dtype == np.float32
    cosine = (low.residual * full.residual).sum() / np.linalg.norm(low.residual) / np.linalg.norm(full.residual)
    assert 0.99 < cosine < 1.0
    assert low.losses[-1] == pytest.approx(full.losses[-1], rel=0.05)


def test_tf32_needs_cuda_and_torchs_precision_is_restored() -> None:
    training, base = few_shot_problem(20)
    before = torch.get_float32_matmul_precision()
    with pytest.raises(OptionError, match="tf32 needs CUDA, got device cpu"):
        fit_alone(training, base, Recipe(precision="tf32"), epochs=3, seed=1)
    try:
        torch.set_float32_matmul_precision("medium")
        fit_alone(training, base, Recipe(), epochs=1, seed=1)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("views", [2, 3, 40])
def test_epoch_e_uses_view_e_mod_v(views: int) -> None:
    rng = np.random.default_rng(views)
    single, base = few_shot_problem(50)
    recipe = Recipe(batch_size=16)
    permuted = np.stack([rng.permutation(single.directions[0], axis=1) for _ in range(views)])
    several = TrainingSet.from_views(permuted, single.labels)
    fit = fit_alone(several, base, recipe, epochs=30, seed=3)
    reference = reference_residual(several, base, recipe, epochs=30, seed=3)
    assert np.abs(fit.residual - reference).max() <= 1e-9 * np.abs(reference).max()
    without_views = reference_residual(single, base, recipe, epochs=30, seed=3)
    assert np.abs(fit.residual - without_views).max() > 0.01 * np.abs(reference).max()


def test_the_seconds_of_a_fit_end_after_its_results_have_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    # A GPU computes while the host goes on: the clock must not be read before the results are on the host.
    training, base = few_shot_problem(20)
    events: list[str] = []
    to_host = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: events.append(str(tuple(tensor.shape))) or to_host(tensor))
    monkeypatch.setattr(
        "taskres_cache.methods.task_residual.loop.perf_counter", lambda: events.append("clock") or len(events)
    )
    fit = fit_alone(training, base, Recipe(), epochs=2, seed=1)
    assert events[0] == events[-1] == "clock"
    assert events.count("clock") == 2
    assert {str(base.shape), "(2, 1)"} <= set(events)  # the residual, and the losses of two epochs
    assert fit.seconds == len(events) - 1


@pytest.mark.parametrize("together", [1, 3, 100])
def test_orders_sent_together_are_those_of_each_epoch(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    training, base = few_shot_problem(20)
    several = TrainingSet.from_views(np.stack([training.directions[0]] * 2), training.labels)
    tasks = [FitTask(several, Recipe(batch_size=8), 7, seed, base=base) for seed in (4, 5)]
    expected = list(epoch_orders(tasks, [0, 40], 8, CPU))
    monkeypatch.setattr(orders, "BYTES_AT_ONCE", together * 8 * 2 * 16)
    sent: list[int] = []
    monkeypatch.setattr(orders, "_sent", lambda block, device: sent.append(len(block)) or block)
    found = list(epoch_orders(tasks, [0, 40], 8, torch.device("cuda")))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert sent == {1: [1] * 7, 3: [3, 3, 1], 100: [7]}[together]
    assert [order.min().item() // 20 for order in found[:2]] == [0, 1]  # the view of the epoch
    shuffler = torch.Generator().manual_seed(5)
    assert torch.equal(found[0][1], epoch_order(20, 8, shuffler) + 40)
    assert torch.equal(found[1][1], epoch_order(20, 8, shuffler) + 60)


def test_only_a_fit_on_the_cpu_needs_its_cores() -> None:
    training, base = few_shot_problem(20)
    task = FitTask(training, Recipe(batch_size=16), 1, 1, base=base)
    assert _operations(task, torch.empty(5, 12)) == 4 * 16 * 5 * 12
    assert _operations(task, torch.empty(5, 12, device="meta")) == 0


def test_a_program_that_sets_the_precision_of_a_backend_keeps_it() -> None:
    training, base = few_shot_problem(50)
    backend = torch.backends.cuda.matmul
    before = backend.fp32_precision
    backend.fp32_precision = "tf32"
    try:
        with pytest.raises(RuntimeError, match="mix of the legacy and new APIs"):
            torch.get_float32_matmul_precision()
        fit_alone(training, base, Recipe(), 1, 1)
        assert backend.fp32_precision == "tf32"
    finally:
        backend.fp32_precision = before
