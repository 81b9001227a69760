"""`taskres doctor`: what is installed, what works, and what is missing for which command."""

import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .options import CacheDir, Device, Json, Out

if TYPE_CHECKING:
    from taskres_cache.doctor.examination import Findings, Folder, Lack
    from taskres_cache.doctor.installation import Package
    from taskres_cache.doctor.probing import Machine

    from .console import Mark, Row

GIGABYTE = 10**9


def doctor(
    device: Device = "auto",
    cache_dir: CacheDir = Path("cache"),
    out: Out = Path("runs"),
    as_json: Json = False,
) -> None:
    """Tell what is installed, what it can do here, and what is missing for which command.

    Everything is imported for real, which takes seconds. The exit status is 1 where something is missing, too old or
    broken that every command needs; a missing extra is told and does no harm.

    Example: taskres doctor --device cuda
    """
    from taskres_cache.doctor.examination import examine

    from .console import print_json

    with _patience():
        findings = examine(device, cache_dir, out)
    if as_json:
        print_json({"works": findings.works, **asdict(findings)})
    else:
        _print(findings)
    if not findings.works:
        raise typer.Exit(1)


def _patience() -> AbstractContextManager[object]:
    """Return what tells a person who watches that this takes a while."""
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status("importing everything ...")


def _print(found: "Findings") -> None:
    from .console import print_marked

    print_marked("python", _interpreter(found))
    print_marked("what every command needs", [_package(one) for one in found.packages if one.extra is None])
    print_marked("extras", [_package(one) for one in found.packages if one.extra is not None])
    print_marked("device", _device(found.machine))
    print_marked("folders", _folders(found))
    if found.lacks:
        print_marked("what is missing", [row for lack in found.lacks for row in _lack(lack)])
    print(_verdict(found))


def _interpreter(found: "Findings") -> "list[Row]":
    fits = not any("Python" in lack.why for lack in found.lacks)
    return [
        ("good", ("taskres-cache", found.version, "")),
        ("good" if fits else "bad", ("Python", found.python, found.python_required, found.executable)),
    ]


def _package(package: "Package") -> "Row":
    """Return a line: name, version, what is asked for, and what else is to be said."""
    wrong: Mark = "bad" if package.extra is None and package.state != "untried" else "open"
    extra = "" if package.extra is None else f"[{package.extra}]"
    version = package.version or "not installed"
    said = package.detail if package.version else ""
    return "good" if package.usable else wrong, (package.name, version, package.required, extra, said)


def _device(machine: "Machine | None") -> "list[Row]":
    if machine is None:
        return [("bad", ("device", "not known without torch"))]
    if machine.fault:
        return [("bad", ("device", machine.fault))]
    cpu = machine.device == "cpu"
    bfloat16 = "fast on this processor" if machine.fast_bfloat16 else "no faster than float32 on this processor"
    facts = {
        "device": f"{machine.device}, {machine.name}",
        "memory": "not known" if machine.memory_bytes is None else _size(machine.memory_bytes),
        "cores": f"{machine.cores} that may be used",
        "bfloat16": bfloat16 if cpu else "",
        "--precision auto": machine.precision,
        "note": machine.note,
    }
    return [("open" if name == "note" else "good", (name, fact)) for name, fact in facts.items() if fact]


def _folders(found: "Findings") -> "list[Row]":
    """Return a line for each folder, and one for each cache that cannot be opened."""
    damaged = [cache for cache in found.caches or () if cache.fault]
    caches = (
        "not opened, since h5py or numpy does not work" if found.caches is None else _count(len(found.caches), "cache")
    )
    state = f", {len(damaged)} of them damaged" if damaged else ", readable" if found.caches else ""
    runs = "not counted, since numpy or safetensors does not work" if found.runs is None else _count(found.runs, "run")
    weights = "weights not known" if found.weights is None else ", ".join(found.weights) or "no weights yet"
    rows = [_folder("caches", found.cache_dir, caches + state)]
    rows += [("bad", ("", str(cache.path), cache.fault.removeprefix(f"{cache.path} "))) for cache in damaged]
    rows.append(_folder("runs", found.out, runs))
    if found.hub is not None:
        rows.append(_folder("downloads", found.hub, weights))
    return rows


def _folder(use: str, folder: "Folder", holds: str) -> "Row":
    room = f"{_size(folder.free_bytes)} free" if folder.writable else "cannot be written"
    return "good" if folder.writable else "bad", (use, str(folder.path), f"{holds}; {room}")


def _lack(lack: "Lack") -> "list[Row]":
    """Return what is missing, and below it the remedy."""
    rows: list[Row] = [("bad" if lack.core else "open", (f"{lack.what}: {lack.why}",)), ("", (lack.remedy,))]
    return rows if lack.remedy else rows[:1]


def _verdict(found: "Findings") -> str:
    if not found.works:
        return "The core does not work as it is."
    return "The core works; what is missing is needed for what is named above alone." if found.lacks else "All is here."


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _size(size: int) -> str:
    return f"{size / GIGABYTE:.1f} GB"
