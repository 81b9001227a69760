"""CUDA graphs emulated on the CPU: the operations of some work are recorded, and replayed on the same tensors.

As on a GPU, a replay runs no Python: a number that the host has changed since is not seen, and every result goes to the
memory that it had while recording. Unlike on a GPU, the work is computed while it is recorded.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from taskres_cache.methods.task_residual import capture


@dataclass
class Emulation:
    """What was recorded and replayed."""

    operations: list[int] = field(default_factory=list)  # per recording
    replays: int = 0


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func != torch.ops.aten._local_scalar_dense.default, "the host waits for the device"
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        for func, args, kwargs, result in self.calls:
            for old, new in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def emulate(monkeypatch: pytest.MonkeyPatch) -> Emulation:
    """Let epochs on the CPU be recorded and replayed as on a GPU."""
    seen = Emulation()

    def recorded(work: Callable[[], None], device: torch.device) -> capture.Recorded:
        recorder = _Recorder()
        with recorder:
            work()
        seen.operations.append(len(recorder.calls))

        def replay() -> None:
            seen.replays += 1
            recorder.replay()

        return replay

    monkeypatch.setattr(capture, "can_record", lambda device: True)
    monkeypatch.setattr(capture, "warm_up", lambda work, device: work())
    monkeypatch.setattr(capture, "recorded", recorded)
    return seen
