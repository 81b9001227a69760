"""Work on a GPU recorded as a CUDA graph, which launches all its kernels at once."""

import warnings
from collections.abc import Callable

import torch

from taskres_cache.errors import FitError
from taskres_cache.system.accelerator import CAPTURE_STREAM, computing_on, own_stream

EMPTY = "CUDA Graph is empty"  # of torch's warning
Recorded = Callable[[], None]  # does the work once


def can_record(device: torch.device) -> bool:
    """Return True for devices with CUDA graphs."""
    return device.type == "cuda"


def warm_up(work: Callable[[], None], device: torch.device) -> None:
    """Do work once on the stream that records: libraries initialise on first use, which a recording does not allow.

    cuBLAS also allocates its workspace per stream, which would otherwise happen while the graph is recorded.
    """
    with computing_on(device):
        stream = own_stream(device, CAPTURE_STREAM)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            work()
        torch.cuda.current_stream(device).wait_stream(stream)


def recorded(work: Callable[[], None], device: torch.device) -> Recorded:
    """Return work as a CUDA graph; nothing is computed yet. Its tensors must stay at their addresses.

    Parameters
    ----------
    work : callable
        What to record, after `warm_up`. It must not wait for the device.
    device : torch.device
        Where its tensors are. The graph is recorded on a stream of this GPU: on the stream of another one, torch
        records nothing and every replay does nothing.

    Raises
    ------
    FitError
        The graph is empty.
    """
    graph = torch.cuda.CUDAGraph()
    stream = own_stream(device, CAPTURE_STREAM)
    with warnings.catch_warnings(record=True) as caught, computing_on(device), torch.cuda.stream(stream):
        warnings.simplefilter("always")
        with torch.cuda.graph(graph, stream=stream):
            work()
    if any(EMPTY in str(warning.message) for warning in caught):
        raise FitError(f"the CUDA graph of an epoch on {device} is empty; use --device cpu, and report this")
    return graph.replay
