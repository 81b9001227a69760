"""Epochs as CUDA graphs: emulated on the CPU, and the streams and devices of a real one with a stub of torch.cuda."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from taskres_cache.errors import FitError
from taskres_cache.methods.task_residual import capture, epoch
from taskres_cache.methods.task_residual.epoch import steps_at_once
from taskres_cache.methods.task_residual.loop import try_residuals, tune_projections
from taskres_cache.methods.task_residual.task import Fit, FitTask, Task
from taskres_cache.recipe import Recipe
from taskres_cache.system import accelerator
from tests.methods.task_residual.emulated_capture import emulate
from tests.methods.task_residual.problems import CPU, SCALE, problem_with_validation

KINDS = ("text", "image", "both")
CUDA_1 = torch.device("cuda", 1)


def variants(**changes: Any) -> list[FitTask]:
    """Return three tasks with two learning rates, of which two share an optimiser."""
    training, validation, base = problem_with_validation()
    base = base.astype(np.float32)
    rates = (2e-3, 0.05, 2e-3)
    recipes = [Recipe(lr=rate, batch_size=16, alpha=0.5 + n, **changes) for n, rate in enumerate(rates)]
    return [FitTask(training, recipe, 6, n, validation, base=base) for n, recipe in enumerate(recipes)]


def assert_equal_bits(fits: list[Fit], others: list[Fit]) -> None:
    for one, other in zip(fits, others, strict=True):
        assert np.array_equal(one.residual, other.residual)
        assert (one.image_residual is None) == (other.image_residual is None)
        assert one.image_residual is None or np.array_equal(one.image_residual, other.image_residual)
        assert (one.losses, one.alpha, one.kept_epochs) == (other.losses, other.alpha, other.kept_epochs)


@pytest.mark.parametrize(
    ("kind", "rule", "patience", "precision"), list(product(KINDS, ("fixed", "learn"), (None, 2), ("fp32", "bf16")))
)
def test_a_replayed_epoch_has_the_bits_of_its_steps(
    kind: str, rule: str, patience: int | None, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = variants(residual=kind, alpha_rule=rule, patience=patience, precision=precision)
    with monkeypatch.context() as eager:
        seen = emulate(eager)
        eager.setattr(epoch.Epoch, "_recorded", lambda *_: {})  # with learning rates in tensors, as a recording needs
        expected = try_residuals(tasks, SCALE, CPU)
        assert seen.replays == 0
    seen = emulate(monkeypatch)
    assert_equal_bits(try_residuals(tasks, SCALE, CPU), expected)
    assert seen.replays == len(max((fit.losses for fit in expected), key=len))
    assert any(np.abs(fit.residual).max() > 0 or fit.image_residual is not None for fit in expected)


def test_a_replayed_projection_has_the_bits_of_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    training, _, _ = problem_with_validation()
    rng = np.random.default_rng(2)
    inputs = rng.normal(size=(5, 7)).astype(np.float32), rng.normal(size=(7, 12)).astype(np.float32)
    tasks = [Task(training, Recipe(batch_size=16), 5, seed) for seed in (1, 2)]
    with monkeypatch.context() as eager:
        emulate(eager)
        eager.setattr(epoch.Epoch, "_recorded", lambda *_: {})
        expected = tune_projections(tasks, *inputs, SCALE, CPU)
    seen = emulate(monkeypatch)
    for one, other in zip(tune_projections(tasks, *inputs, SCALE, CPU), expected, strict=True):
        assert np.array_equal(one.projection, other.projection)
    assert seen.replays == 5
    assert not np.array_equal(expected[0].projection, inputs[1])


def test_the_emulation_sees_a_learning_rate_that_only_the_host_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = try_residuals(variants(), SCALE, CPU)
    emulate(monkeypatch)
    monkeypatch.setattr("taskres_cache.methods.task_residual.adam.capture", SimpleNamespace(can_record=lambda _: False))
    stale = try_residuals(variants(), SCALE, CPU)
    assert not np.array_equal(stale[0].residual, expected[0].residual)


@pytest.mark.parametrize(("limit", "lengths"), [(512, [2]), (1, [1]), (3, [5, 5])])
def test_long_epochs_replay_graphs_of_some_steps(
    limit: int, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    training, validation, base = problem_with_validation()  # 40 images
    batch = 4 if limit == 3 else 16  # 10 steps in graphs of 3, 3, 3 and 1; or 2 steps
    task = FitTask(training, Recipe(batch_size=batch), 4, 1, validation, base=base.astype(np.float32))
    with monkeypatch.context() as eager:
        emulate(eager)
        eager.setattr(epoch.Epoch, "_recorded", lambda *_: {})
        expected = try_residuals([task], SCALE, CPU)
    seen = emulate(monkeypatch)
    monkeypatch.setattr(epoch, "CAPTURED_STEPS", limit)
    assert_equal_bits(try_residuals([task], SCALE, CPU), expected)
    assert seen.replays == 4 * {512: 1, 1: 2, 3: 4}[limit]
    assert len(seen.operations) == {512: 1, 1: 1, 3: 2}[limit]


@pytest.mark.parametrize(("steps", "length"), [(1, 1), (512, 512), (513, 257), (1600, 400), (1025, 342)])
def test_graphs_of_an_epoch_have_nearly_equal_lengths(steps: int, length: int) -> None:
    assert steps_at_once(steps) == length


class StubOfCuda:
    """The parts of torch.cuda that a recording uses; it notes device and stream of everything that happens."""

    def __init__(self) -> None:
        self.device, self.stream, self.events = "cuda:0", "default", []  # type: ignore[var-annotated]
        self.is_empty = False

    def make(self, device: torch.device) -> SimpleNamespace:
        stream = SimpleNamespace(name=f"stream of {device}", wait_stream=lambda other: None)
        self.events.append(("made", str(device)))
        return stream

    @contextmanager
    def on_device(self, device: torch.device) -> Iterator[None]:
        before, self.device = self.device, str(device)
        yield
        self.device = before

    @contextmanager
    def on_stream(self, stream: SimpleNamespace) -> Iterator[None]:
        before, self.stream = self.stream, stream.name
        yield
        self.stream = before

    @contextmanager
    def recording(self, graph: object, stream: SimpleNamespace) -> Iterator[None]:
        self.events.append(("began", self.device, self.stream, stream.name))
        yield
        if self.is_empty:
            warnings.warn("The CUDA Graph is empty. This usually means that", stacklevel=1)

    def work(self) -> None:
        self.events.append(("worked", self.device, self.stream))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubOfCuda]:
    stub = StubOfCuda()
    accelerator.own_stream.cache_clear()
    replacements = {
        "Stream": stub.make,
        "device": stub.on_device,
        "stream": stub.on_stream,
        "current_stream": lambda device: SimpleNamespace(wait_stream=lambda other: None),
        "graph": stub.recording,
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None),
    }
    for name, value in replacements.items():
        monkeypatch.setattr(torch.cuda, name, value)
    yield stub
    accelerator.own_stream.cache_clear()


def test_an_epoch_of_the_second_gpu_is_recorded_on_a_stream_of_that_gpu(cuda: StubOfCuda) -> None:
    for _ in range(2):
        capture.warm_up(cuda.work, CUDA_1)
        capture.recorded(cuda.work, CUDA_1)
    own = "stream of cuda:1"
    once = [("worked", "cuda:1", own), ("began", "cuda:1", own, own), ("worked", "cuda:1", own)]
    assert cuda.events == [("made", "cuda:1"), *once, *once]  # the second time on the same stream: it keeps its memory
    assert (cuda.device, cuda.stream) == ("cuda:0", "default")


def test_an_empty_graph_is_an_error(cuda: StubOfCuda) -> None:
    cuda.is_empty = True
    with pytest.raises(FitError, match="the CUDA graph of an epoch on cuda:1 is empty"):
        capture.recorded(cuda.work, CUDA_1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    ("kind", "rule", "precision"), list(product(KINDS, ("fixed", "learn"), ("fp32", "tf32", "bf16")))
)
def test_fits_on_a_gpu_equal_those_on_the_cpu(
    kind: str, rule: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    tasks = variants(residual=kind, alpha_rule=rule)
    expected = try_residuals(tasks, SCALE, CPU)
    on_gpu = [FitTask(**{**vars(task), "recipe": task.recipe.changed(precision=precision)}) for task in tasks]
    replayed = try_residuals(on_gpu, SCALE, device)
    monkeypatch.setattr(epoch.Epoch, "_recorded", lambda *_: {})
    stepped = try_residuals(on_gpu, SCALE, device)
    least = {"fp32": 0.9999, "tf32": 0.9995, "bf16": 0.999}[precision]  # tiny gradients may differ in sign
    for one, other, third in zip(replayed, stepped, expected, strict=True):
        for name in ("residual", "image_residual"):
            arrays = [getattr(fit, name) for fit in (one, other, third)]
            if arrays[0] is not None:
                assert np.abs(arrays[0] - arrays[1]).max() <= 1e-5 * np.abs(arrays[1]).max()
                lengths = np.linalg.norm(arrays[0]) * np.linalg.norm(arrays[2])
                assert (arrays[0] * arrays[2]).sum() >= least * lengths
