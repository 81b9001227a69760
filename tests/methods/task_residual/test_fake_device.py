"""Steps on fake CUDA tensors, which have a device, a shape and a type but no numbers: no operation mixes devices."""

from itertools import product
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from taskres_cache.methods.task_residual import capture
from taskres_cache.methods.task_residual.adam import PIECE
from taskres_cache.methods.task_residual.epoch import Epoch
from taskres_cache.methods.task_residual.step import ProjectionStep, ResidualStep, Step
from taskres_cache.recipe import Recipe

FITS, ROWS, CLASSES, DIM, WIDTH, BATCH = 3, 40, 70, 257, 33, 16
CUDA = torch.device("cuda", 0)


def run_an_epoch(step: Step) -> None:
    """Take the steps of an epoch one by one, and check where everything lies."""
    labels = torch.zeros(ROWS, dtype=torch.int64, device=CUDA)
    epoch = Epoch(step, labels, (FITS, 2, BATCH))
    step.set_rates([1e-3, 2e-3, 1e-3])
    losses = epoch.run(torch.zeros(FITS, 2, BATCH, dtype=torch.int64, device=CUDA))
    measured = step.head(0).correct_and_loss(torch.zeros(9, DIM, device=CUDA), labels[:9])
    tensors = [losses, measured, *step.values(1).values(), *(part.gradient for part in step.parts.values())]
    assert {(one.device, one.dtype) for one in tensors} == {(CUDA, torch.float32)}
    step.restart()


def adam_of_fakes(values: Any, gradients: Any, means: Any, squares: Any, _: Any, steps: Any, **numbers: Any) -> None:
    """Check the arguments as the kernel does, which has no implementation for fake tensors."""
    assert numbers["lr"].device == CUDA
    assert {one.device for one in steps} == {CUDA}
    for tensors in zip(values, gradients, means, squares, strict=True):
        assert {(one.device, one.dtype, one.shape, one.stride()) for one in tensors} == {
            (CUDA, torch.float32, tensors[0].shape, (1,))
        }


@pytest.fixture(autouse=True)
def no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Epoch, "_recorded", lambda *_: {})
    monkeypatch.setattr(torch, "_fused_adam_", adam_of_fakes)
    assert capture.can_record(CUDA)


@pytest.mark.parametrize(
    ("kind", "rule", "narrow", "own"),
    list(product(("text", "image", "both"), ("fixed", "learn"), (False, True), (False, True))),
)
def test_steps_of_residuals_stay_on_the_gpu(kind: str, rule: str, narrow: bool, own: bool) -> None:
    if narrow and not torch._C._dispatch_has_kernel_for_dispatch_key("aten::bmm.dtype_out", "Meta"):
        pytest.skip("this torch has no fake of a product whose result has another type")
    recipes = [Recipe(residual=kind, alpha_rule=rule, lr=rate) for rate in (0.1, 0.2, 0.1)]
    with FakeTensorMode():
        directions = torch.zeros(ROWS, DIM, device=CUDA, dtype=torch.bfloat16 if narrow else torch.float32)
        base = torch.zeros(*((FITS,) if own else ()), CLASSES, DIM, device=CUDA)
        run_an_epoch(ResidualStep(directions, torch.ones(ROWS, device=CUDA), base, 100.0, recipes, BATCH))


def test_steps_of_projections_stay_on_the_gpu() -> None:
    with FakeTensorMode():
        text, projection = torch.zeros(CLASSES, WIDTH, device=CUDA), torch.zeros(WIDTH, DIM, device=CUDA)
        images = torch.zeros(ROWS, DIM, device=CUDA), torch.ones(ROWS, device=CUDA)
        run_an_epoch(ProjectionStep(*images, text, projection, 100.0, [Recipe()] * FITS, BATCH))


def test_all_fits_with_one_learning_rate_share_a_call_of_adam(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[int]] = []
    monkeypatch.setattr(torch, "_fused_adam_", lambda values, *_, **__: calls.append([one.numel() for one in values]))
    with FakeTensorMode():
        images = torch.zeros(ROWS, DIM, device=CUDA), torch.ones(ROWS, device=CUDA)
        recipes = [Recipe(lr=0.1), Recipe(lr=0.1), Recipe(lr=0.3)]
        step = ResidualStep(*images, torch.zeros(CLASSES, DIM, device=CUDA), 100.0, recipes, BATCH)
        step._adam.step()
    assert [sum(sizes) for sizes in calls] == [2 * CLASSES * DIM, CLASSES * DIM]
    assert all(size == PIECE for sizes in calls for size in sizes[:-1])  # one multiprocessor each
    assert len(calls[0]) == -(-2 * CLASSES * DIM // PIECE)
