"""`taskres doctor`: a working installation, and packages that are missing, too old or broken."""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from taskres_cache.doctor import examination, installation, probing
from taskres_cache.doctor.examination import examine
from taskres_cache.doctor.probing import Machine, probe
from taskres_cache.system.devices import available_cores, best_precision, choose_device
from tests.conftest import Taskres, one_line

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
SCRIPT = str(Path(sys.executable).with_name("taskres"))
CPU = Machine("cpu", "", 4, "fp32")

Installed = Callable[..., None]
Stub = Callable[[str, str], None]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Installed:
    """Let packages be missing, or of another version: `installed(onnx=None, torch="2.5.0")`; nothing is imported."""

    def install(**versions: str | None) -> None:
        found = metadata.distribution

        def distribution(name: str) -> metadata.Distribution:
            plain = name.replace("-", "_")
            if plain not in versions:
                return found(name)
            if versions[plain] is None:
                raise metadata.PackageNotFoundError(name)
            folder = tmp_path / "site" / f"{plain}-{versions[plain]}.dist-info"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {versions[plain]}\n")
            return metadata.PathDistribution(folder)

        monkeypatch.setattr(metadata, "distribution", distribution)

    monkeypatch.setattr(examination, "probe", lambda packages, device: (dict.fromkeys(packages, ""), CPU))
    return install


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stub:
    """Let a module hide the real one from other processes: `stub("numpy", "raise ImportError")`."""

    def write(module: str, program: str) -> None:
        (tmp_path / "stubs" / module).mkdir(parents=True)
        (tmp_path / "stubs" / module / "__init__.py").write_text(program)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "stubs"), prepend=os.pathsep)

    return write


def test_a_working_installation(here: Path) -> None:
    """The installed script against Python's own metadata and torch."""
    printed = subprocess.run([SCRIPT, "doctor", "--json"], capture_output=True, text=True, check=True)
    assert printed.stderr == ""
    found = json.loads(printed.stdout)
    assert (found["works"], found["version"], found["lacks"]) == (True, PROJECT["version"], [])
    assert Path(found["executable"]).parent.samefile(Path(sys.executable).parent)
    assert {package["name"]: package["version"] for package in found["packages"]} == {
        package["name"]: metadata.version(package["name"]) for package in found["packages"]
    }
    assert {package["state"] for package in found["packages"]} == {"fine"}
    device = choose_device("auto")
    assert (found["machine"]["device"], found["machine"]["precision"]) == (str(device), best_precision(device))
    assert (found["machine"]["cores"], found["machine"]["fault"]) == (available_cores(), "")


def test_the_requirements_are_those_of_pyproject() -> None:
    found = {(one.name, one.required, one.extra) for one in installation.required_packages()}
    groups = {None: PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
    lines = [(extra, Requirement(line)) for extra in (None, *installation.USES) for line in groups[extra]]
    assert found == {(line.name, str(line.specifier), extra) for extra, line in lines}
    assert set(installation.USES) == set(PROJECT["optional-dependencies"]) - {"all", "dev", "docs"}


def test_it_does_not_import_torch_itself() -> None:
    program = (
        "import sys; from taskres_cache.doctor.examination import examine; examine(); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"


def test_output_of_a_working_installation(here: Path, installed: Installed, taskres: Taskres) -> None:
    installed()
    outcome = taskres("doctor")
    assert (outcome.status, outcome.err) == (0, "")
    lines = [line.split() for line in outcome.out.splitlines()]
    assert ["✓", "scikit-learn", metadata.version("scikit-learn"), ">=1.6"] in lines
    assert ["✓", "matplotlib", metadata.version("matplotlib"), ">=3.9", "[plot]"] in lines
    assert "✓  cpu, 4 CPU cores, --precision auto: fp32" in outcome.out
    assert "✗" not in outcome.out
    assert outcome.out.endswith("\nThe core works.\n")


def test_a_missing_extra_is_named_with_its_command_and_the_core_works(
    here: Path, installed: Installed, taskres: Taskres
) -> None:
    installed(onnx=None, onnxruntime=None, matplotlib="3.5")
    outcome = taskres("doctor")
    assert outcome.status == 0
    assert [line.strip() for line in outcome.out.partition("problems\n")[2].splitlines()] == [
        "–  taskres export --to FILE.onnx: onnx is not installed; onnxruntime is not installed",
        "pip install 'taskres-cache[onnx]'",
        "–  taskres report --to FILE.png: matplotlib 3.5: >=3.9 is required",
        "pip install 'taskres-cache[plot]'",
        "",
        "The core works.",
    ]


@pytest.mark.parametrize(
    ("versions", "why", "remedy"),
    [
        ({"torch": None}, "torch is not installed", "pip install --upgrade 'torch>=2.11' torchvision"),
        ({"h5py": "3.1"}, "h5py 3.1: >=3.11 is required", "pip install --upgrade 'h5py>=3.11'"),
        ({"torchvision": None}, "torchvision is not installed", "pip install --upgrade 'torchvision>=0.26' torch"),
        ({"taskres_cache": None}, "taskres-cache is not installed", "pip install . in the folder of its source"),
    ],
)
def test_a_package_of_the_core_is_missing_or_too_old(
    here: Path, installed: Installed, taskres: Taskres, versions: dict[str, str | None], why: str, remedy: str
) -> None:
    installed(**versions)
    found = json.loads(taskres("doctor", "--json").out)
    assert not found["works"]
    assert found["lacks"] == [{"what": "all commands", "why": why, "remedy": remedy, "core": True}]
    outcome = taskres("doctor")
    assert outcome.status == 1
    assert f"✗  all commands: {why}" in outcome.out
    assert outcome.out.endswith("\nThe core does not work.\n")


def test_a_nightly_build_is_new_enough(here: Path, installed: Installed) -> None:
    installed(torch="2.15.0.dev20260101+cu130")
    assert examine().works


def test_a_broken_torchvision_is_one_line(here: Path, stub: Stub) -> None:
    """The usual case, end to end: one cause, and what imports it is not blamed."""
    stub("torchvision", "raise RuntimeError('operator torchvision::nms does not exist')")
    printed = subprocess.run([SCRIPT, "doctor"], capture_output=True, text=True, check=False)
    assert (printed.returncode, printed.stderr) == (1, "")
    assert printed.stdout.partition("problems\n")[2].count("✗") == 1
    assert "cannot be imported (RuntimeError: operator torchvision::nms does not exist)" in printed.stdout
    assert "pip install --force-reinstall torchvision torch" in printed.stdout
    assert [line.split()[-2:] for line in printed.stdout.splitlines() if " timm " in line] == [["not", "tried"]]


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "the process that imports it ends with SIGILL"),
        ("import os; os._exit(3)", "exit status 3"),
        ("print('[\"noise\", null]'); raise OSError('two\\nlines')", "OSError: two lines"),
    ],
)
def test_a_library_that_breaks_or_ends_its_process(stub: Stub, program: str, reason: str) -> None:
    stub("h5py", program)
    assert probe(["h5py", "numpy", "pillow"], "cpu") == ({"numpy": "", "h5py": reason}, None)


def test_a_broken_core_of_our_own(stub: Stub) -> None:
    stub("taskres_cache", "raise SyntaxError('half a file')")
    faults, machine = probe(["numpy"], "cpu")
    assert list(faults) == ["taskres-cache"]
    assert faults["taskres-cache"].endswith("SyntaxError: half a file")
    assert machine is None


def test_a_file_named_like_a_library_does_not_hide_it(here: Path) -> None:
    (here / "numpy.py").write_text("raise RuntimeError('the wrong file')")
    assert probe(["numpy"], "cpu")[0]["numpy"] == ""


def test_a_device_that_cannot_be_used(here: Path, installed: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    _, machine = probe(["torch"], "cuda:99")
    assert machine is not None
    assert "cuda:99" in machine.fault
    installed()
    monkeypatch.setattr(examination, "probe", lambda packages, device: (dict.fromkeys(packages, ""), machine))
    findings = examine("cuda:99")
    assert not findings.works
    assert [problem.what for problem in findings.problems] == ["--device cuda:99"]


def test_a_gpu_that_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(probing.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert "torch without CUDA" in probing._unused_gpu([])
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert probing._unused_gpu([]) == ""
    assert probing._unused_gpu(["other", "CUDA initialization:\n the driver is too old"]).endswith("is too old")


def test_a_command_that_misses_a_library_points_here(
    here: Path, taskres: Taskres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "taskres_cache.caches.finding", None)
    outcome = taskres("inspect", "digits")
    assert outcome.status == 1
    assert "run `taskres doctor` to see what is missing" in one_line(outcome)
