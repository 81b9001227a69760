"""Importing what is installed, and asking torch for its device, in a process of its own.

A library that does not fit may end the process that imports it, or print a page of warnings; whoever asks lives on and
hears of it in one line. Run as `python -m taskres_cache.doctor.probing DEVICE PACKAGE...`, it prints a topic and what
there is to say of it, as JSON, for each thing that it found out.
"""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# What a package is imported by, where that is not its name; the module that uses open_clip is tried with it.
MODULES = {
    "open_clip_torch": ("open_clip", "taskres_cache.encoders.loading"),
    "pillow": ("PIL.Image",),
    "safetensors": ("safetensors.numpy",),
    "scikit-learn": ("sklearn",),
    "scipy": ("scipy.io",),
}
IMPORTS = {"torchvision": "torch", "timm": "torchvision", "open_clip_torch": "torchvision", "onnxscript": "onnx"}
FIRST = ("torch", "torchvision", "onnx")  # before those that import them
DEVICE = "device"  # what is tried after all packages
CPU_NAMES = Path("/proc/cpuinfo")
MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container
LONGEST_REASON = 300  # characters

Tell = Callable[[str, Any], None]


@dataclass(frozen=True)
class Machine:
    """The device that commands compute on.

    Parameters
    ----------
    device : as torch calls it; empty where the one that was asked for cannot be used.
    name : of the processor or graphics card.
    memory_bytes : that the device has and this process may use; None where that cannot be told.
    cores : that this process may keep busy.
    fast_bfloat16 : whether the processor has instructions for it.
    precision : what `--precision auto` takes.
    note : what a person should know of it, if anything.
    fault : why it cannot be used; empty where it can.
    """

    device: str
    name: str = ""
    memory_bytes: int | None = None
    cores: int = 0
    fast_bfloat16: bool = False
    precision: str = ""
    note: str = ""
    fault: str = ""


@dataclass(frozen=True)
class Probe:
    """What came of it.

    Parameters
    ----------
    faults : package -> why it cannot be imported; empty where it can. Lacks what was not tried, since something that it
        imports is broken.
    hdf5 : version of the HDF5 library that h5py uses.
    machine : None where torch cannot be imported.
    hub : folder that the hub keeps downloads in; None where that cannot be told.
    weights : those of open_clip that are downloaded already, such as "RN50 (openai)"; None where that cannot be told.
    """

    faults: dict[str, str]
    hdf5: str | None
    machine: Machine | None
    hub: str | None
    weights: list[str] | None


def probe(packages: Sequence[str], device: str) -> Probe:
    """Return which of the installed `packages` can be imported, and what torch says of a device.

    Takes as long as the imports do, several seconds.
    """
    # -P, lest a file of the user's that is called random.py be taken for Python's
    command = [sys.executable, "-P", "-m", "taskres_cache.doctor.probing", device, *packages]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    faults: dict[str, str] = {}
    trying, told = "taskres-cache", dict[str, Any]()
    for topic, content in map(json.loads, ended.stdout.splitlines()):
        if topic == "trying":
            trying = content
        elif topic == "fault":
            faults |= content
        else:
            told[topic] = content
    if ended.returncode != 0 and trying in packages:  # the others are told by a process that leaves it alone
        rest = probe([package for package in packages if package != trying], device)
        return replace(rest, faults=rest.faults | {trying: _how_it_ended(ended)})
    machine = Machine(**told["machine"]) if "machine" in told else None
    if ended.returncode != 0 and trying == DEVICE:
        machine = Machine("", fault=_how_it_ended(ended))
    elif ended.returncode != 0:
        faults[trying] = _how_it_ended(ended)
    return Probe(faults, told.get("hdf5"), machine, told.get("hub"), told.get("weights"))


def _how_it_ended(ended: "subprocess.CompletedProcess[str]") -> str:
    """Return why a process that should have ended well did not."""
    if ended.returncode < 0:
        return f"{signal.Signals(-ended.returncode).name} ends the process that does"
    return _short(ended.stderr.strip().rpartition("\n")[2] or f"exit status {ended.returncode}")


def answer(packages: Sequence[str], device: str, tell: Tell) -> None:
    """Tell one thing after the other, and before each what is tried: it may be the end of this process."""
    faults: dict[str, str] = {}
    for package in sorted(packages, key=(*FIRST, *packages).index):
        imported = IMPORTS.get(package)
        if imported is not None and faults.get(imported, "missing"):
            continue
        tell("trying", package)
        faults[package] = _import_fault(package)
        tell("fault", {package: faults[package]})
    fine = {package for package, fault in faults.items() if not fault}
    if "h5py" in fine:
        tell("hdf5", import_module("h5py").version.hdf5_version)
    if "open_clip_torch" in fine:
        tell("trying", "open_clip_torch")
        pairs = import_module("taskres_cache.encoders.loading").downloaded_weights()
        tell("weights", [f"{name} ({tag})" for name, tag in pairs])
        tell("hub", import_module("huggingface_hub.constants").HF_HUB_CACHE)
    if "torch" in fine:
        tell("trying", DEVICE)
        tell("machine", asdict(_machine(device)))


def _import_fault(package: str) -> str:
    """Return why a package cannot be imported; empty where it can."""
    try:
        for module in MODULES.get(package, (package.replace("-", "_"),)):
            import_module(module)
    except Exception as error:  # noqa: BLE001 - whatever a library that does not fit raises is the answer
        return _short(f"{type(error).__name__}: {error}")
    return ""


def _machine(device: str) -> Machine:
    """Return what torch says of a device."""
    from taskres_cache.errors import OptionError
    from taskres_cache.system.devices import available_cores, best_precision, choose_device, has_fast_bfloat16

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            target = choose_device(device)
        except OptionError as error:
            return Machine("", cores=available_cores(), fault=str(error))
    name, memory = _name_and_memory(target)
    note = _unused_card([str(warning.message) for warning in heard]) if (device, target.type) == ("auto", "cpu") else ""
    return Machine(
        str(target), name, memory, available_cores(), has_fast_bfloat16(target), best_precision(target), note
    )


def _name_and_memory(device: "torch.device") -> tuple[str, int | None]:
    """Return what a device is called, and its memory in bytes."""
    import torch

    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        return card.name, card.total_memory
    if device.type == "mps":
        return _processor(), torch.mps.recommended_max_memory()
    return _processor(), _memory()


def _unused_card(warned: Sequence[str]) -> str:
    """Return why a graphics card that is here is not used; empty where there seems to be none."""
    import torch

    if torch.version.cuda is None and torch.version.hip is None and shutil.which("nvidia-smi"):
        return (
            "an NVIDIA driver is here, and this torch is built without CUDA; "
            "https://pytorch.org/get-started/locally says how to install one that is not"
        )
    return _short(next((message for message in warned if "CUDA" in message), ""))


def _processor() -> str:
    """Return the processor's name as the system has it."""
    with suppress(OSError):
        for line in CPU_NAMES.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    """Return the bytes of memory that this process may use: the machine's, or what a container is granted of it."""
    try:
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not everywhere
        return None
    with suppress(OSError, ValueError):  # "max" where there is no limit
        return min(machine, int(MEMORY_LIMIT.read_text()))
    return machine


def _short(reason: object) -> str:
    return " ".join(str(reason).split())[:LONGEST_REASON]


def main() -> None:
    """Answer on standard output, to which nothing else can get: what libraries print there goes to standard error."""
    device, *packages = sys.argv[1:]
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        answer(packages, device, lambda topic, content: print(json.dumps([topic, content]), file=answers, flush=True))


if __name__ == "__main__":
    main()
