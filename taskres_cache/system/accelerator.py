"""A GPU's current device, streams, memory and clock. On a CPU most of this does nothing."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch

CAPTURE_STREAM = 0  # number of the stream on which epochs are captured
FIRST_LANE_STREAM = 1  # further ones belong to the lanes of the image encoder

# torch raises OutOfMemoryError only from its own CUDA allocator
MESSAGES_OF_FULL_MEMORY = (
    "out of memory",  # the CUDA driver and MPS
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "ALLOCATION_FAILED",  # cuDNN 9: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED
    "can't allocate memory",  # torch on a CPU
)


def computing_on(device: torch.device) -> AbstractContextManager[Any]:
    """Make a GPU the current one: streams, synchronisation and captures use the current GPU unless told otherwise."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@cache
def own_stream(device: torch.device, number: int) -> torch.cuda.Stream:
    """Return a stream of a GPU, the same one at every call: freed memory stays reserved for the stream that used it."""
    return torch.cuda.Stream(device)


def wait_for(device: torch.device) -> None:
    """Wait until a device has finished all submitted work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that this process can still use on a device; None on a CPU.

    Memory that torch has reserved but does not use counts as free: torch reuses it, or returns it before it fails.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + unused)
    if device.type == "mps":
        return max(0, torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    return None


def return_unused_memory(device: torch.device) -> None:
    """Return memory that torch has reserved but does not use, so that larger blocks can be allocated."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error, or one that led to it, says that memory is full.

    An allocation that fails while a CUDA graph is captured leads to another error when the capture ends.
    """
    return any(
        isinstance(one, torch.OutOfMemoryError)
        or (isinstance(one, RuntimeError) and any(message in str(one) for message in MESSAGES_OF_FULL_MEMORY))
        for one in _chain(error)
    )


def use_float32_convolutions() -> None:
    """Compute convolutions of float32 in float32 from now on: by default cuDNN rounds their operands to TF32.

    The setting belongs to the process and is not restored, because threads encode at the same time.
    """
    torch.backends.cudnn.allow_tf32 = False
    # The old setting alone leaves TF32 on if the program has set torch.backends.fp32_precision. With the RNNs' setting
    # unlike that of convolutions, torch raises an error to whoever reads the old one.
    for operator in ("conv", "rnn"):
        getattr(torch.backends.cudnn, operator).fp32_precision = "ieee"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and the errors that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
