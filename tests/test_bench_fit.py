"""What `make bench-fit` times: a cache that `taskres fit` accepts, and on a GPU recorded steps of the chosen device."""

import gc
import weakref
from pathlib import Path

import pytest
import torch

from taskres_cache import FeatureCache
from tests import bench_fit
from tests.bench_fit import PROBLEMS, STEPS_ON_GPU, measured, our_step, two_products, write_random_cache
from tests.methods.task_residual.emulated_capture import emulate


def test_the_cache_of_the_benchmark_has_every_split_that_is_timed(tmp_path: Path) -> None:
    cache = FeatureCache(write_random_cache(tmp_path))
    assert set(cache.splits) == {(shots, seed) for shots in (1, 2, 4, 8, 16) for seed in (1, 2, 3)}
    assert [len(cache.rows(part)) for part in ("val", "test")] == [2000, 2000]
    image_features, labels = cache.train(shots=16, seed=3)
    assert (image_features.shape, labels.shape) == ((1600, 1024), (1600,))


def test_steps_on_a_gpu_are_timed_as_recorded_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = emulate(monkeypatch)
    digits, cpu = PROBLEMS[-1], torch.device("cpu")
    for make in (our_step, two_products):
        seen.replays = 0
        turn = make(digits, cpu)
        for number in range(3):
            turn(number)
        assert seen.replays == 3
    operations_of_step, operations_of_products = seen.operations
    assert operations_of_products >= 2 * STEPS_ON_GPU
    assert operations_of_step > operations_of_products


def test_the_chosen_device_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    device, waited = torch.device("cuda", 1), []  # type: ignore[var-annotated]
    monkeypatch.setattr(bench_fit, "wait_for", waited.append)
    monkeypatch.setattr(bench_fit, "SECONDS_PER_TURN", 1e-9)
    times = measured({"turn": lambda number: sum(range(1000))}, device)
    assert set(waited) == {device}
    assert len(times["turn"]) == bench_fit.ROUNDS


def test_a_recorded_turn_keeps_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph does not: its replays would write into memory that others have by then."""
    emulate(monkeypatch)
    monkeypatch.setattr(bench_fit.capture, "recorded", lambda work, device: lambda: None)
    tensor = torch.zeros(3)
    kept = weakref.ref(tensor)

    def step(_: int, tensor: torch.Tensor = tensor) -> None:
        tensor.add_(1)

    turn = bench_fit.as_in_an_epoch(step, torch.device("cpu"))
    del step, tensor
    gc.collect()
    assert kept() is not None
    turn(0)
