"""`taskres doctor`: what is installed, what works, and how to fix the rest."""

import platform
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from taskres_cache.system.version import __version__

from .options import Device, Json

if TYPE_CHECKING:
    from taskres_cache.doctor.examination import Findings, Problem
    from taskres_cache.doctor.installation import Package
    from taskres_cache.doctor.probing import Machine

    from .console import Mark, Row


def doctor(device: Device = "auto", as_json: Json = False) -> None:
    """Check the installation: versions, imports, the device, and what is missing for which command.

    Imports the core, which takes seconds. Exit status 1 means that it does not work; a missing extra affects only the
    command that needs it.

    Example: taskres doctor --device cuda
    """
    from taskres_cache.doctor.examination import examine

    from .console import print_json

    found = examine(device)
    if as_json:
        print_json(_as_json(found))
    else:
        _print(found)
    if not found.works:
        raise typer.Exit(1)


def _as_json(found: "Findings") -> dict[str, Any]:
    return {
        "works": found.works,
        "version": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "packages": [asdict(package) for package in found.packages],
        "machine": found.machine and asdict(found.machine),
        "lacks": [asdict(problem) for problem in found.problems],
    }


def _print(found: "Findings") -> None:
    from .console import print_marked

    versions = f"taskres-cache {__version__}, Python {platform.python_version()}"
    print_marked("versions", [("good", (versions, sys.executable))])
    print_marked("core", [_package(package) for package in found.packages if package.extra is None])
    print_marked("extras", [_package(package) for package in found.packages if package.extra is not None])
    if found.machine is not None:
        print_marked("device", _device(found.machine))
    if found.problems:
        print_marked("problems", [row for problem in found.problems for row in _problem(problem)])
    print("The core works." if found.works else "The core does not work.")


def _package(package: "Package") -> "Row":
    """Return a row: name, version, required versions, extra, and what is wrong."""
    sign: Mark = "good" if package.state == "fine" else "bad" if package.extra is None else "open"
    extra = f"[{package.extra}]" if package.extra else ""
    return sign, (package.name, package.version or "", package.required, extra, package.detail)


def _problem(problem: "Problem") -> "list[Row]":
    """Return a row, and one below it for the remedy."""
    sign: Mark = "bad" if problem.core else "open"
    rows: list[Row] = [(sign, (f"{problem.what}: {problem.why}",)), ("", (problem.remedy,))]
    return rows if problem.remedy else rows[:1]


def _device(machine: "Machine") -> "list[Row]":
    if machine.fault:
        return [("bad", (machine.fault,))]
    name = f"{machine.device} {machine.name}".rstrip()
    rows: list[Row] = [("good", (f"{name}, {machine.cores} CPU cores, --precision auto: {machine.precision}",))]
    return [*rows, ("open", (machine.note,))] if machine.note else rows
