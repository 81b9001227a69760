"""The examination: packages, device, and what does not work with its remedy."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from taskres_cache.doctor.installation import OWN, USES, Package, required_packages
from taskres_cache.doctor.probing import Machine, probe

EVERYTHING = "all commands"
BAD = ("missing", "unfit", "broken")
REINSTALL = "pip install --force-reinstall"
PAIR = ("torch", "torchvision")  # only builds of one release and one index work together


@dataclass(frozen=True)
class Problem:
    """Something that does not work: what is affected, why, and what to do; `core` if that needs no extra."""

    what: str
    why: str
    remedy: str
    core: bool


@dataclass(frozen=True)
class Findings:
    """The required packages, the device (None if the core does not work), and the problems, those of the core first."""

    packages: tuple[Package, ...]
    machine: Machine | None
    problems: tuple[Problem, ...]

    @property
    def works(self) -> bool:
        """True if all commands that need no extra work."""
        return not any(problem.core for problem in self.problems)


def examine(device: str = "auto") -> Findings:
    """Examine this installation; imports the core in another process, which takes seconds.

    Parameters
    ----------
    device : str, default "auto"
        The device that commands are to use.
    """
    packages = required_packages()
    core = [package for package in packages if package.extra is None]
    faults, machine = dict[str, str](), None
    if all(package.version is not None for package in core):  # otherwise others fail for that reason alone
        faults, machine = probe([package.name for package in core], device)
    tried = tuple(_tried(package, faults) for package in packages)
    return Findings(tried, machine, (*_core_problems(tried, faults, machine, device), *_extra_problems(tried)))


def _tried(package: Package, faults: Mapping[str, str]) -> Package:
    """Return a package of the core with the result of its import; extras are not imported."""
    fault = faults.get(package.name)
    if package.extra is not None or package.state != "fine" or fault == "":
        return package
    if fault is None:
        return replace(package, state="untried", detail="not tried")
    return replace(package, state="broken", detail=f"cannot be imported ({fault})")


def _core_problems(
    packages: Sequence[Package], faults: Mapping[str, str], machine: Machine | None, device: str
) -> Iterator[Problem]:
    """Yield what affects all commands."""
    if not packages:
        yield Problem(EVERYTHING, f"{OWN} is not installed", "pip install . in the folder of its source", core=True)
    for package in packages:
        if package.extra is None and package.state in BAD:
            yield Problem(EVERYTHING, _reason(package), _remedy(package), core=True)
    if faults.get(OWN):
        yield Problem(EVERYTHING, f"{OWN}: {faults[OWN]}", f"{REINSTALL} {OWN}", core=True)
    if machine is not None and machine.fault:
        yield Problem(f"--device {device}", machine.fault, "", core=True)


def _extra_problems(packages: Sequence[Package]) -> Iterator[Problem]:
    """Yield the commands whose extra is missing."""
    for extra, use in USES.items():
        reasons = [_reason(package) for package in packages if package.extra == extra and package.state in BAD]
        if reasons:
            yield Problem(use, "; ".join(reasons), f"pip install '{OWN}[{extra}]'", core=False)


def _reason(package: Package) -> str:
    name, version = package.name, package.version
    return f"{name} {version}: {package.detail}" if version else f"{name} is {package.detail}"


def _remedy(package: Package) -> str:
    """Return the pip line that fixes a package of the core."""
    others = [name for name in PAIR if package.name in PAIR and name != package.name]
    if package.state == "broken":
        return " ".join([REINSTALL, package.name, *others])
    return " ".join(["pip install --upgrade", f"'{package.name}{package.required}'", *others])
