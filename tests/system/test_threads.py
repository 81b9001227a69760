"""How many threads a computation uses, and how they wait."""

import pytest
import torch

from taskres_cache.system.threads import FEWEST_OPERATIONS, SPIN_COUNT, limit_spinning, threads_for


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
