"""Which device to compute on, how much of the machine there is to use, and how memory is dealt with."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from taskres_cache.errors import OptionError

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # "200000 100000" in a container that may use two cores
# glibc's parameters of its allocator, from malloc.h
TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
EVERYTHING = (1 << 31) - 1
AS_GLIBC_ENDS_UP = 32 << 20  # the threshold that glibc by itself arrives at once large blocks have been freed
FAST_BFLOAT16 = ("avx512_bf16", "amx_bf16")  # a processor that has either computes faster in it than in float32


def choose_device(device: str) -> torch.device:
    """Return the device by its name; auto takes CUDA, then Apple's MPS, then the CPU.

    Under torchrun, each process of a machine takes a graphics card of its own unless a number is given.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if device == "cuda" and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        device = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise OptionError(f"device {device!r} cannot be used here ({reason}); use --device auto or cpu") from error


def available_cores() -> int:
    """Return how many cores this process may keep busy, at least one.

    That is what the system and the container grant, shared out among the processes that torchrun started here, or what
    OMP_NUM_THREADS says (which torchrun sets to 1 for everybody, so that it says nothing there).
    """
    granted = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    granted = min(granted, _container_quota() or granted)
    if "LOCAL_WORLD_SIZE" in os.environ:
        return max(1, granted // int(os.environ["LOCAL_WORLD_SIZE"]))
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(granted, max(1, int(asked))) if asked.isdigit() else granted


def has_fast_bfloat16(device: torch.device) -> bool:
    """Return whether a processor has instructions for bfloat16, with which it is twice as fast as in float32."""
    if device.type != "cpu":
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in FAST_BFLOAT16)


def best_precision(device: torch.device) -> str:
    """Return what an image tower computes in where nobody chose: fp16 on CUDA, bf16 where a processor is good at it."""
    return "fp16" if device.type == "cuda" else "bf16" if has_fast_bfloat16(device) else "fp32"


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let what is freed stay with the process until the end, so that each batch computes in the last one's memory.

    Otherwise every large tensor is new from the system, page by page: 1,000 to 5,000 faults an image, a tenth of the
    time of RN50 (measured). On systems whose C library is not glibc nothing is done.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        yield
        return
    library.mallopt(MMAP_THRESHOLD, 1 << 30)
    library.mallopt(TRIM_THRESHOLD, EVERYTHING)
    library.mallopt(ARENA_MAX, 1)  # threads that are started now share one heap, which alone is never given back
    try:
        yield
    finally:
        library.mallopt(MMAP_THRESHOLD, AS_GLIBC_ENDS_UP)
        library.mallopt(TRIM_THRESHOLD, 2 * AS_GLIBC_ENDS_UP)
        library.mallopt(ARENA_MAX, 0)
        library.malloc_trim(0)


def _container_quota() -> int | None:
    """Return the cores that a container may use, at least one; None where there is no limit."""
    try:
        quota, period = CPU_QUOTA.read_text().split()[:2]
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return None
