"""The device to compute on, the cores that may be used, and the memory allocator."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from taskres_cache.errors import OptionError

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # "200000 100000" in a container that may use two cores
# parameters of glibc's allocator, from malloc.h
TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
LARGEST = (1 << 31) - 1
GLIBC_THRESHOLD = 32 << 20  # what glibc's dynamic threshold reaches once large blocks have been freed
FAST_BFLOAT16 = ("avx512_bf16", "amx_bf16")  # CPUs with either one are faster in bfloat16 than in float32


def choose_device(device: str) -> torch.device:
    """Return the device of a name; `auto` prefers CUDA, then Apple's MPS, then the CPU.

    Under torchrun, each process of a machine uses its own GPU unless the name has a number.

    Raises
    ------
    OptionError
        The device does not exist or is not supported here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if device == "cuda" and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        device = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    try:
        found = torch.empty(0, device=device).device
        if found.type == "meta":
            raise RuntimeError("it computes shapes only")
        return found
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise OptionError(f"device {device!r} cannot be used here ({reason}); use --device auto or cpu") from error


def available_cores() -> int:
    """Return how many cores this process may use, at least one.

    The limits are CPU affinity, the container's quota and OMP_NUM_THREADS. Under torchrun the cores are divided among
    its processes on this machine instead of following OMP_NUM_THREADS, which torchrun itself sets to 1.
    """
    granted = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    granted = min(granted, _container_quota() or granted)
    if "LOCAL_WORLD_SIZE" in os.environ:
        return max(1, granted // int(os.environ["LOCAL_WORLD_SIZE"]))
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(granted, max(1, int(asked))) if asked.isdigit() else granted


def has_fast_bfloat16(device: torch.device) -> bool:
    """Return True for a CPU with bfloat16 instructions, with which it is twice as fast as in float32."""
    if device.type != "cpu":
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in FAST_BFLOAT16)


def best_precision(device: torch.device) -> str:
    """Return the default precision of the image tower: fp16 on CUDA, bf16 on CPUs that are fast in it, else fp32."""
    return "fp16" if device.type == "cuda" else "bf16" if has_fast_bfloat16(device) else "fp32"


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep freed memory in the process, so that each batch reuses the memory of the previous one.

    Otherwise the system maps every large tensor anew, page by page: 1,000 to 5,000 page faults per image, a tenth of
    RN50's time (measured). Does nothing if the C library is not glibc.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        yield
        return
    library.mallopt(MMAP_THRESHOLD, 1 << 30)
    library.mallopt(TRIM_THRESHOLD, LARGEST)
    library.mallopt(ARENA_MAX, 1)  # threads started from now on share the main heap, the only one that is never trimmed
    try:
        yield
    finally:
        library.mallopt(MMAP_THRESHOLD, GLIBC_THRESHOLD)
        library.mallopt(TRIM_THRESHOLD, 2 * GLIBC_THRESHOLD)
        library.mallopt(ARENA_MAX, 0)
        library.malloc_trim(0)


def _container_quota() -> int | None:
    """Return the cores that the container may use, at least one; None if there is no limit."""
    try:
        quota, period = CPU_QUOTA.read_text().split()[:2]
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return None
