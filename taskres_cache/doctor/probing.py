"""Import the core and ask torch for its device in another process, which a broken library may end.

`python -m taskres_cache.doctor.probing DEVICE PACKAGE...` prints two JSON pairs per step: `[name, null]` before it and
`[name, result]` after it.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

from taskres_cache.doctor.installation import OWN

MODULES = {  # others: the name
    "open_clip_torch": "open_clip",
    "pillow": "PIL.Image",
    "prometheus-client": "prometheus_client",
    "python-multipart": "python_multipart",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
}
OWN_MODULES = ("taskres_cache.encoders.loading", "taskres_cache.extraction.extract", "taskres_cache.estimator")
FIRST = ("numpy", "torch", "torchvision", "timm")  # before the packages that import them
DEVICE = "device"
MAX_REASON = 300  # characters


@dataclass(frozen=True)
class Machine:
    """The device that commands compute on: its torch name, the GPU's name, CPU cores, what `--precision auto` selects.

    `note` says why an installed GPU is not used, `fault` why the requested device cannot be used.
    """

    device: str = ""
    name: str = ""
    cores: int = 0
    precision: str = ""
    note: str = ""
    fault: str = ""


def probe(packages: Sequence[str], device: str) -> tuple[dict[str, str], Machine | None]:
    """Import packages; return why each one failed, empty if it works, and the device.

    Stops at the first failure, since what follows may fail only because of it; then there is no device.
    """
    # -P: a file random.py in the current folder must not replace Python's
    command = [sys.executable, "-P", "-m", __name__, device, *packages]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    results: dict[str, Any] = dict(map(json.loads, ended.stdout.splitlines())) or {OWN: None}
    machine = results.pop(DEVICE, {})
    if machine is None:
        machine = {"fault": _reason_of_end(ended)}
    faults = {name: _reason_of_end(ended) if fault is None else fault for name, fault in results.items()}
    return faults, Machine(**machine) if machine else None


def _reason_of_end(ended: "subprocess.CompletedProcess[str]") -> str:
    if ended.returncode < 0:
        return f"the process that imports it ends with {signal.Signals(-ended.returncode).name}"
    return _one_line(ended.stderr.strip().rpartition("\n")[2] or f"exit status {ended.returncode}")


def _try_all(device: str, packages: Sequence[str], tell: Callable[[str, Any], None]) -> None:
    """Import packages up to the first that fails, then select the device; tell each step and its result."""
    for package in [*sorted(packages, key=(*FIRST, *packages).index), OWN]:
        tell(package, None)
        fault = _import_fault(package)
        tell(package, fault)
        if fault:
            return
    tell(DEVICE, None)
    tell(DEVICE, asdict(_machine(device)))


def _import_fault(package: str) -> str:
    """Return why a package cannot be imported; empty if it can."""
    try:
        for module in OWN_MODULES if package == OWN else (MODULES.get(package, package),):
            import_module(module)
    except Exception as error:  # noqa: BLE001 - a broken library may raise anything
        return _one_line(f"{type(error).__name__}: {error}")
    return ""


def _machine(device: str) -> Machine:
    """Return the device that torch selects."""
    import torch

    from taskres_cache.errors import OptionError
    from taskres_cache.system.devices import available_cores, best_precision, choose_device

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            target = choose_device(device)
        except OptionError as error:
            return Machine(cores=available_cores(), fault=str(error))
    name = torch.cuda.get_device_name(target) if target.type == "cuda" else ""
    note = _unused_gpu([str(one.message) for one in caught]) if (device, target.type) == ("auto", "cpu") else ""
    return Machine(str(target), name, available_cores(), best_precision(target), note)


def _unused_gpu(warned: Sequence[str]) -> str:
    """Return why an installed GPU is not used; empty if there seems to be none."""
    import torch

    if torch.version.cuda is None and torch.version.hip is None and shutil.which("nvidia-smi"):
        return "an NVIDIA driver is installed, but a torch without CUDA: see https://pytorch.org/get-started/locally"
    return _one_line(next((message for message in warned if "CUDA" in message), ""))


def _one_line(text: str) -> str:
    return " ".join(text.split())[:MAX_REASON]


def main() -> None:
    """Print the results to standard output; what libraries print goes to standard error."""
    device, *packages = sys.argv[1:]
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        _try_all(device, packages, lambda *pair: print(json.dumps(pair), file=answers, flush=True))


if __name__ == "__main__":
    main()
