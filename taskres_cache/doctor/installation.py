"""What is installed beside what this package asks for, by the packages' own metadata; none of them is imported."""

from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Literal

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

OWN = "taskres-cache"
BROUGHT_ALONG = ("torchvision", "huggingface_hub")  # asked for by open_clip, used here as well

# extra -> what cannot be done without it
USES = {
    "onnx": "taskres export --to .onnx",
    "plot": "taskres report --to .png",
}

State = Literal["fine", "missing", "unfit", "broken", "untried"]


@dataclass(frozen=True)
class Package:
    """A package that is asked for.

    Parameters
    ----------
    name : as pip knows it.
    version : None where it is not installed.
    required : versions that are asked for, such as ">=2.11"; empty for any.
    extra : the extra that asks for it; None where the core commands need it.
    state : "fine"; "missing"; "unfit", of a version that is not asked for, or that asks for others than are here;
        "broken", it cannot be imported; "untried", since what it imports itself is broken.
    detail : what is wrong, in words; or what else is to be known of it.
    """

    name: str
    version: str | None
    required: str
    extra: str | None
    state: State
    detail: str = ""

    @property
    def usable(self) -> bool:
        """Whether nothing is wrong with it."""
        return self.state == "fine"


def installed_version(name: str) -> str | None:
    """Return the version of an installed package; None where it is not there."""
    try:
        return metadata.version(name) or None  # what a killed pip left may have none
    except metadata.PackageNotFoundError:
        return None


def required_python() -> str:
    """Return the versions of Python that this package asks for, such as ">=3.11"; empty where it is not installed."""
    try:
        return str(metadata.metadata(OWN).json.get("requires_python", ""))
    except metadata.PackageNotFoundError:
        return ""


def asked_for() -> list[Package]:
    """Return all packages that the core and the extras of `USES` ask for, in the order of the metadata."""
    core = [_found(requirement, None) for requirement in _requirements(OWN)]
    told = {canonicalize_name(package.name) for package in core}
    along = [
        _found(requirement, None)
        for requirement in _requirements("open_clip_torch")
        if canonicalize_name(requirement.name) in {canonicalize_name(name) for name in BROUGHT_ALONG} - told
    ]
    extras = [_found(requirement, extra) for extra in USES for requirement in _requirements(OWN, extra)]
    packages = [*core, *along, *extras]
    return [_in_agreement(package, packages) for package in packages]


def _found(requirement: Requirement, extra: str | None) -> Package:
    """Return what there is for a requirement."""
    version, required = installed_version(requirement.name), str(requirement.specifier)
    if version is None:
        return Package(requirement.name, None, required, extra, "missing", "not installed")
    if not _allows(requirement.specifier, version):
        return Package(requirement.name, version, required, extra, "unfit", f"{required} is needed")
    return Package(requirement.name, version, required, extra, "fine")


def _in_agreement(package: Package, packages: list[Package]) -> Package:
    """Return a package, marked unfit where it asks for other versions of the others than are here.

    torchvision is the usual case: each of its releases goes with one of torch.
    """
    versions = {canonicalize_name(other.name): other.version for other in packages}
    for requirement in _requirements(package.name) if package.usable else ():
        version = versions.get(canonicalize_name(requirement.name))
        if version is not None and not _allows(requirement.specifier, version):
            detail = f"needs {requirement.name}{requirement.specifier}, and {version} is installed"
            return replace(package, state="unfit", detail=detail)
    return package


def _requirements(name: str, extra: str | None = None) -> list[Requirement]:
    """Return what an installed package asks for on this machine: always, or for one of its extras alone."""
    asked = []
    for line in _required_lines(name):
        with suppress(InvalidRequirement):  # of a release from before the standard, which says nothing then
            asked.append(Requirement(line))
    always = [one for one in asked if one.marker is None or one.marker.evaluate({"extra": ""})]
    if extra is None:
        return always
    return [one for one in asked if one not in always and one.marker and one.marker.evaluate({"extra": extra})]


def _required_lines(name: str) -> list[str]:
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []


def _allows(specifier: SpecifierSet, version: str) -> bool:
    return specifier.contains(version, prereleases=True)  # a nightly build of torch is one that somebody chose
