"""Which device to compute on."""

import torch

from taskres_cache.errors import OptionError


def choose_device(device: str) -> torch.device:
    """Return the device by its name; auto takes CUDA, then Apple's MPS, then the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise OptionError(f"device {device!r} cannot be used here ({reason}); use --device auto or cpu") from error
