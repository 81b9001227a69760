"""The packages that taskres-cache requires and the installed versions, from their metadata; imports none of them."""

from dataclasses import dataclass
from importlib import metadata
from typing import Literal

from packaging.requirements import Requirement

OWN = "taskres-cache"
USES = {  # extra -> what needs it
    "datasets": "data sets of Hugging Face",
    "heic": "photos in HEIC",
    "onnx": "taskres export --to FILE.onnx",
    "pandas": "to_frame() in Python",
    "plot": "taskres report --to FILE.png",
    "serve": "taskres serve",
}


@dataclass(frozen=True)
class Package:
    """A required package: its version (None: not installed), and the extra that requires it (None: the core).

    "unfit" is a version that is not accepted; "untried" comes after the first package that cannot be imported.
    """

    name: str
    version: str | None
    required: str
    extra: str | None
    state: Literal["fine", "missing", "unfit", "broken", "untried"]
    detail: str = ""


def required_packages() -> list[Package]:
    """Return the packages of the core, then those of each extra in `USES`; none if taskres-cache is not installed."""
    lines = metadata.requires(OWN) if _installed_version(OWN) else None
    requirements = [Requirement(line) for line in lines or ()]
    core = [one for one in requirements if _applies(one, "")]
    extras = [(one, extra) for extra in USES for one in requirements if _applies(one, extra) and one not in core]
    return [_found(one, None) for one in core] + [_found(one, extra) for one, extra in extras]


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _found(requirement: Requirement, extra: str | None) -> Package:
    """Return a required package with the version that is installed."""
    name, required, version = requirement.name, str(requirement.specifier), _installed_version(requirement.name)
    if version is None:
        return Package(name, None, required, extra, "missing", "not installed")
    if not requirement.specifier.contains(version, prereleases=True):  # a nightly build was chosen on purpose
        return Package(name, version, required, extra, "unfit", f"{required} is required")
    return Package(name, version, required, extra, "fine")


def _installed_version(name: str) -> str | None:
    try:
        return metadata.version(name) or None  # a pip that was killed leaves an empty one
    except metadata.PackageNotFoundError:
        return None
