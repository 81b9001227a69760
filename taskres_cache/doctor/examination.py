"""What works here and what does not: packages, device and folders, and what each lack keeps from, with its remedy."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote

from packaging.specifiers import SpecifierSet

from taskres_cache.doctor.installation import OWN, USES, Package, asked_for, required_python
from taskres_cache.doctor.probing import Machine, Probe, probe
from taskres_cache.errors import RunError, TaskresError
from taskres_cache.system.version import __version__

EVERYTHING = "all commands"
REINSTALL = "pip install --force-reinstall"
TWINS = ("torch", "torchvision")  # builds of one release, from one index, or the operators of one miss the other's


@dataclass(frozen=True)
class Lack:
    """Something that does not work.

    Parameters
    ----------
    what : the command, or the use, that it is lacking for.
    why : what is missing or broken.
    remedy : what to do.
    core : whether the commands that need no extra are kept from working.
    """

    what: str
    why: str
    remedy: str
    core: bool


@dataclass(frozen=True)
class Folder:
    """A folder that may have to be made yet: whether it can be written, and the room for it in bytes."""

    path: Path
    writable: bool
    free_bytes: int


@dataclass(frozen=True)
class FoundCache:
    """A cache file; `fault` is why it cannot be opened, empty where it can."""

    path: Path
    fault: str


@dataclass(frozen=True)
class Findings:
    """All that was found out.

    Parameters
    ----------
    version : of this package.
    python, python_required, executable : the interpreter.
    packages : that are asked for, see `installation`.
    machine : the device; None where torch cannot be imported.
    cache_dir, out, hub : folders of caches, runs and downloads; None for downloads where that cannot be told.
    caches : below `cache_dir`; None where none can be opened since h5py is lacking.
    runs : how many there are below `out`; None where they cannot be counted.
    weights : those of open_clip that are downloaded already; None where that cannot be told.
    lacks : what does not work, the gravest first.
    """

    version: str
    python: str
    python_required: str
    executable: str
    packages: tuple[Package, ...]
    machine: Machine | None
    cache_dir: Folder
    caches: tuple[FoundCache, ...] | None
    out: Folder
    runs: int | None
    hub: Folder | None
    weights: tuple[str, ...] | None
    lacks: tuple[Lack, ...]

    @property
    def works(self) -> bool:
        """Whether the core works: all that needs no extra."""
        return not any(lack.core for lack in self.lacks)


def examine(device: str, cache_dir: Path, out: Path) -> Findings:
    """Return what works here and what does not; imports what is installed in another process, which takes seconds.

    Parameters
    ----------
    device : that commands are to compute on, auto for the best there is.
    cache_dir, out : where caches and runs would be looked for.
    """
    asked = asked_for()
    probed = probe([package.name for package in asked if package.version is not None], device)
    packages = tuple(_tried(package, probed) for package in asked)
    usable = {package.name for package in packages if package.usable}
    places = _folder(cache_dir), _folder(out), _folder(Path(probed.hub)) if probed.hub else None
    return Findings(
        version=__version__,
        python=platform.python_version(),
        python_required=required_python(),
        executable=sys.executable,
        packages=packages,
        machine=probed.machine,
        cache_dir=places[0],
        caches=_caches(cache_dir) if usable >= {"numpy", "h5py"} else None,
        out=places[1],
        runs=_count_runs(out) if usable >= {"numpy", "safetensors"} else None,
        hub=places[2],
        weights=None if probed.weights is None else tuple(probed.weights),
        lacks=(*_core_lacks(packages, probed, device), *_extra_lacks(packages), *_folder_lacks(*places)),
    )


def _tried(package: Package, probed: Probe) -> Package:
    """Return a package with what came of importing it."""
    if package.version is None:
        return package
    fault = probed.faults.get(package.name)
    if fault is None:
        return replace(package, state="untried", detail="not tried, since it imports what does not work")
    if fault:
        return replace(package, state="broken", detail=f"cannot be imported ({fault})")
    if package.name == "h5py" and package.usable:
        return replace(package, detail=f"HDF5 {probed.hdf5}")
    return package


def _core_lacks(packages: Sequence[Package], probed: Probe, device: str) -> Iterator[Lack]:
    """Yield what keeps the core from working."""
    python, required = platform.python_version(), required_python()
    if not required:
        yield Lack(EVERYTHING, f"{OWN} is not installed as a package", "pip install the folder it lies in", core=True)
    if not SpecifierSet(required).contains(python, prereleases=True):
        yield Lack(EVERYTHING, f"Python {python}: {required} is needed", "install it into another Python", core=True)
    if OWN in probed.faults:
        yield Lack(EVERYTHING, f"{OWN}: {probed.faults[OWN]}", f"{REINSTALL} {OWN}", core=True)
    for package in packages:
        if package.extra is None and package.state not in ("fine", "untried"):
            yield Lack(EVERYTHING, _why(package), _remedy(package), core=True)
    if probed.machine is not None and probed.machine.fault:
        yield Lack(f"--device {device}", probed.machine.fault, "", core=True)


def _extra_lacks(packages: Sequence[Package]) -> Iterator[Lack]:
    """Yield what cannot be done for want of an extra."""
    for extra, use in USES.items():
        of_extra = [package for package in packages if package.extra == extra]
        missing = ", ".join(package.name for package in of_extra if package.state == "missing")
        faulty = [_why(package) for package in of_extra if package.state in ("unfit", "broken")]
        broken = " ".join(package.name for package in of_extra if package.state == "broken")
        only_broken = broken and not any(package.state in ("missing", "unfit") for package in of_extra)
        if missing or faulty:
            why = "; ".join([*([f"needs {missing}"] if missing else []), *faulty])
            yield Lack(
                use, why, f"{REINSTALL} {broken}" if only_broken else f"pip install '{OWN}[{extra}]'", core=False
            )


def _why(package: Package) -> str:
    if package.version is None:
        return f"{package.name} is not installed"
    return f"{package.name} {package.version}: {package.detail}"


def _remedy(package: Package) -> str:
    """Return how to mend a package of the core."""
    twins = TWINS if package.name in TWINS else (package.name,)
    if package.state == "broken":
        return f"{REINSTALL} {' '.join(twins)}" + (" (both from one index)" if len(twins) > 1 else "")
    others = [name for name in twins if name != package.name]
    return " ".join(["pip install --upgrade", quote(package.name + package.required), *others])


def _folder_lacks(cache_dir: Folder, out: Folder, hub: Folder | None) -> Iterator[Lack]:
    """Yield which commands cannot write what they leave."""
    if not cache_dir.writable:
        yield Lack("taskres extract", f"{cache_dir.path} cannot be written", "pass another --cache-dir", core=False)
    if not out.writable:
        yield Lack("taskres fit", f"{out.path} cannot be written", "pass another --out", core=False)
    if hub is not None and not hub.writable:
        why = f"{hub.path} cannot be written"
        yield Lack("weights to be downloaded", why, "set HF_HOME to a folder that can", core=False)


def _folder(path: Path) -> Folder:
    """Return whether a folder can be written, or made where it is not there yet."""
    absolute = path.absolute()
    nearest = next(above for above in (absolute, *absolute.parents) if os.path.exists(above))
    writable = nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
    return Folder(path, writable, shutil.disk_usage(nearest).free)


def _caches(cache_dir: Path) -> tuple[FoundCache, ...]:
    """Return the caches below a folder, each opened."""
    from taskres_cache.caches.feature_cache import FeatureCache

    found = []
    for path in sorted(cache_dir.glob("*/*.h5")):
        try:
            FeatureCache(path)
            found.append(FoundCache(path, ""))
        except (TaskresError, OSError) as error:
            found.append(FoundCache(path, str(error)))
    return tuple(found)


def _count_runs(out: Path) -> int:
    from taskres_cache.runs.finding import find_runs

    try:
        return len(find_runs(out))
    except RunError:
        return 0
