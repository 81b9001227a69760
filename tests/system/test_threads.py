"""How many threads a computation uses, and how they wait."""

from pathlib import Path

import pytest
import torch

from taskres_cache.system.threads import (
    FEWEST_OPERATIONS,
    SPIN_COUNT,
    idle_cores,
    idle_threads_for,
    limit_spinning,
    threads_for,
)


def test_small_computations_use_one_thread_and_the_setting_is_restored() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with threads_for(FEWEST_OPERATIONS / 2):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        with threads_for(FEWEST_OPERATIONS * 2):
            assert torch.get_num_threads() == 1  # never more than the user has set
    finally:
        torch.set_num_threads(before)


def test_large_computations_use_the_cores_that_are_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        monkeypatch.setattr("taskres_cache.system.devices.available_cores", lambda: 3)
        with threads_for(FEWEST_OPERATIONS):
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_the_users_own_way_of_waiting_is_kept() -> None:
    empty: dict[str, str] = {}
    limit_spinning(empty)
    assert empty == {"GOMP_SPINCOUNT": SPIN_COUNT}
    for own in ({"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}):
        kept = dict(own)
        limit_spinning(kept)
        assert kept == own


@pytest.mark.parametrize(("running", "cores", "idle"), [(1, 4, 4), (3, 4, 2), (4, 4, 1), (9, 4, 0)])
def test_idle_cores_are_those_without_another_running_thread(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, running: int, cores: int, idle: int
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    (tmp_path / "loadavg").write_text(f"0.5 0.4 0.3 {running}/345 12345\n")
    assert idle_cores(tmp_path / "loadavg") == idle
    assert idle_cores(tmp_path / "missing") == cores


def test_threads_leave_busy_cores_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        monkeypatch.setattr("taskres_cache.system.devices.available_cores", lambda: 4)
        for idle, expected in ((0, 1), (2, 2), (9, 4)):
            monkeypatch.setattr("taskres_cache.system.threads.idle_cores", lambda idle=idle: idle)
            with idle_threads_for(FEWEST_OPERATIONS):
                assert torch.get_num_threads() == expected
            assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
