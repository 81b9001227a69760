"""`taskres doctor`: what it finds where all is well, and where something is missing, too old or broken."""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement

from taskres_cache.doctor import examination, installation, probing
from taskres_cache.doctor.examination import Findings, examine
from taskres_cache.doctor.probing import Machine, Probe, probe
from taskres_cache.system.devices import available_cores, best_precision, choose_device, has_fast_bfloat16
from tests.conftest import Taskres, one_line

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
SCRIPT = str(Path(sys.executable).with_name("taskres"))
CPU = Machine("cpu", "a processor", 8 * 10**9, 4, False, "fp32")

Installed = Callable[..., None]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Installed:
    """Let packages be missing, or of another version: `installed(onnx=None, torch="2.5.0")`; nothing is imported."""

    def install(needs: dict[str, str] | None = None, **versions: str | None) -> None:
        found = metadata.distribution

        def distribution(name: str) -> metadata.Distribution:
            plain = name.replace("-", "_")
            if plain not in versions:
                return found(name)
            if versions[plain] is None:
                raise metadata.PackageNotFoundError(name)
            folder = tmp_path / "site" / f"{plain}-{versions[plain]}.dist-info"
            folder.mkdir(parents=True, exist_ok=True)
            lines = [f"Requires-Dist: {needs[plain]}\n"] if needs and plain in needs else []
            text = "".join(["Metadata-Version: 2.1\n", f"Name: {name}\nVersion: {versions[plain]}\n", *lines])
            (folder / "METADATA").write_text(text)
            return metadata.PathDistribution(folder)

        monkeypatch.setattr(metadata, "distribution", distribution)

    monkeypatch.setattr(examination, "probe", lambda packages, device: probed(packages))
    return install


def probed(packages: list[str], **faults: str) -> Probe:
    """Return what is found where all can be imported, but for `faults`."""
    return Probe(dict.fromkeys(packages, "") | faults, "1.14.6", CPU, None, None)


def examined(here: Path) -> Findings:
    return examine("auto", here / "cache", here / "runs")


def stub(folder: Path, module: str, program: str) -> None:
    """Put a module where `PYTHONPATH` can find it before the real one."""
    (folder / module).mkdir(parents=True)
    (folder / module / "__init__.py").write_text(program)


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A hub's cache that holds one model's weights, and has begun with another's."""
    folder = tmp_path / "hub"
    for repository, file in (
        ("models--timm--resnet50_clip.openai", "open_clip_model.safetensors"),
        ("models--laion--CLIP-ViT-B-32-laion2B-s34B-b79K", "open_clip_config.json"),
    ):
        snapshot = folder / repository / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (snapshot / file).touch()
        (folder / repository / "refs").mkdir()
        (folder / repository / "refs" / "main").write_text("0" * 40)
    return folder


def test_all_that_is_here_is_told(here: Path, cache_file: Path, hub: Path) -> None:
    """The installed script in the real environment, beside what Python's own metadata and torch say."""
    (cache_file.parent / "bad.h5").write_bytes(cache_file.read_bytes()[:1000])
    run = here / "runs" / "tower-random" / "toy" / "taskres-regular" / "shots_1" / "seed_1"
    run.mkdir(parents=True)
    (run / "classifier.safetensors").touch()
    environment = {**os.environ, "HF_HUB_CACHE": str(hub)}
    printed = subprocess.run([SCRIPT, "doctor", "--json"], env=environment, capture_output=True, text=True, check=True)
    assert printed.stderr == ""
    found = json.loads(printed.stdout)
    assert (found["works"], found["version"], found["lacks"]) == (True, PROJECT["version"], [])
    versions = {package["name"]: package["version"] for package in found["packages"]}
    assert versions == {name: metadata.version(name) for name in versions}
    assert {"torch", "torchvision", "open_clip_torch", "h5py", "numpy", "pillow", "timm", "safetensors"} <= set(
        versions
    )
    assert {"onnx", "onnxruntime", "onnxscript", "matplotlib", "scikit-learn", "scipy"} <= set(versions)
    device = choose_device("auto")
    machine = found["machine"]
    assert (machine["device"], machine["precision"]) == (str(device), best_precision(device))
    assert (machine["cores"], machine["fast_bfloat16"]) == (available_cores(), has_fast_bfloat16(device))
    assert machine["name"]
    assert machine["memory_bytes"] > 10**8
    assert [Path(cache["path"]).name for cache in found["caches"] if not cache["fault"]] == ["toy.h5"]
    assert [Path(cache["path"]).name for cache in found["caches"] if cache["fault"]] == ["bad.h5"]
    assert found["runs"] == 1
    assert (found["hub"]["path"], found["weights"]) == (str(hub), ["RN50 (openai)"])
    h5py = next(package for package in found["packages"] if package["name"] == "h5py")
    import h5py as imported

    assert h5py["detail"] == f"HDF5 {imported.version.hdf5_version}"


def test_bounds_are_those_of_the_package_itself() -> None:
    asked = {package.name: (package.required, package.extra) for package in installation.asked_for()}
    for line in PROJECT["dependencies"]:
        requirement = Requirement(line)
        assert asked[requirement.name] == (str(requirement.specifier), None)
    for extra in installation.USES:
        for line in PROJECT["optional-dependencies"][extra]:
            requirement = Requirement(line)
            assert asked[requirement.name] == (str(requirement.specifier), extra)


def test_every_extra_is_told_what_it_is_for() -> None:
    assert set(installation.USES) == set(PROJECT["optional-dependencies"]) - {"all", "dev", "docs"}


def test_a_healthy_machine_in_words(here: Path, installed: Installed, taskres: Taskres) -> None:
    installed()
    outcome = taskres("doctor")
    assert (outcome.status, outcome.err) == (0, "")
    lines = [line.split() for line in outcome.out.splitlines()]
    assert ["✓", "torch", metadata.version("torch"), ">=2.11"] in lines
    assert ["✓", "scikit-learn", metadata.version("scikit-learn"), ">=1.6"] in lines
    assert ["✓", "memory", "8.0", "GB"] in lines
    assert ["✓", "--precision", "auto", "fp32"] in lines
    assert "✗" not in outcome.out
    assert lines[-1] == ["All", "is", "here."]


def test_a_missing_extra_does_no_harm_and_is_told_with_its_command(
    here: Path, installed: Installed, taskres: Taskres
) -> None:
    installed(onnx=None, onnxruntime=None, matplotlib="3.5")
    outcome = taskres("doctor")
    assert outcome.status == 0
    missing = [line.strip() for line in outcome.out.partition("what is missing\n")[2].splitlines()]
    assert missing[:4] == [
        "–  taskres export --to .onnx: needs onnx, onnxruntime",
        "pip install 'taskres-cache[onnx]'",
        "–  taskres report --to .png: matplotlib 3.5: >=3.9 is needed",
        "pip install 'taskres-cache[plot]'",
    ]
    assert missing[-1].startswith("The core works")


@pytest.mark.parametrize(
    ("versions", "why", "remedy"),
    [
        ({"torch": None}, "torch is not installed", "pip install --upgrade 'torch>=2.11' torchvision"),
        ({"h5py": "3.1"}, "h5py 3.1: >=3.11 is needed", "pip install --upgrade 'h5py>=3.11'"),
        ({"torchvision": None}, "torchvision is not installed", "pip install --upgrade 'torchvision>=0.26' torch"),
    ],
)
def test_what_the_core_lacks(
    here: Path, installed: Installed, taskres: Taskres, versions: dict[str, str | None], why: str, remedy: str
) -> None:
    installed(**versions)
    told = json.loads(taskres("doctor", "--json").out)
    assert not told["works"]
    assert {"what": "all commands", "why": why, "remedy": remedy, "core": True} in told["lacks"]
    outcome = taskres("doctor")
    assert outcome.status == 1
    assert f"✗  all commands: {why}" in outcome.out


def test_torch_and_torchvision_of_two_releases(here: Path, installed: Installed) -> None:
    installed({"torchvision": "torch (==2.12.0)"}, torchvision="0.27.0", torch="2.13.0+cpu")
    lacks = [lack for lack in examined(here).lacks if lack.core]
    assert [(lack.why, lack.remedy) for lack in lacks] == [
        (
            "torchvision 0.27.0: needs torch==2.12.0, and 2.13.0+cpu is installed",
            "pip install --upgrade 'torchvision>=0.26' torch",
        )
    ]


def test_a_nightly_build_and_a_local_one_are_new_enough(here: Path, installed: Installed) -> None:
    installed({"torchvision": "torch (>=2.11)"}, torchvision="0.30.0", torch="2.15.0.dev20260101+cu130")
    assert examined(here).works


def test_what_cannot_be_read_of_a_package_says_nothing(here: Path, installed: Installed) -> None:
    installed({"timm": "torch (>=2011k)"}, timm="1.0.20")
    assert examined(here).works


def test_a_broken_extra_is_installed_anew(here: Path, installed: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    installed()
    monkeypatch.setattr(examination, "probe", lambda packages, device: probed(packages, onnxruntime="ImportError: x"))
    (lack,) = examined(here).lacks
    assert (lack.what, lack.core) == ("taskres export --to .onnx", False)
    assert lack.why.endswith(": cannot be imported (ImportError: x)")
    assert lack.remedy == "pip install --force-reinstall onnxruntime"


def test_a_broken_torchvision_for_real(here: Path) -> None:
    """The usual case, end to end: the command lives on, names one cause, and blames nobody else."""
    stub(here / "stubs", "torchvision", "raise RuntimeError('operator torchvision::nms does not exist')")
    environment = {**os.environ, "PYTHONPATH": str(here / "stubs")}
    printed = subprocess.run([SCRIPT, "doctor"], env=environment, capture_output=True, text=True, check=False)
    assert (printed.returncode, printed.stderr) == (1, "")
    missing = printed.stdout.partition("what is missing\n")[2]
    assert missing.count("✗") == 1
    assert "cannot be imported (RuntimeError: operator torchvision::nms does not exist)" in missing
    assert "pip install --force-reinstall torch torchvision (both from one index)" in missing
    assert "not tried, since it imports what does not work" in printed.stdout


def test_a_library_that_ends_its_process_is_told_and_the_others_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub(tmp_path, "h5py", "import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    stub(tmp_path, "PIL", "import os; os._exit(3)")
    stub(tmp_path, "timm", "")
    stub(tmp_path, "safetensors", 'print(\'["fault", {"numpy": "noise"}]\')\nprint(\'more noise\')')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = probe(["h5py", "numpy", "pillow", "safetensors", "timm"], "cpu")
    assert found.faults["h5py"] == "SIGILL ends the process that does"
    assert (found.faults["numpy"], found.faults["pillow"]) == ("", "exit status 3")
    assert "safetensors.numpy" in found.faults["safetensors"]
    assert "timm" not in found.faults  # torchvision, which it imports, is not there
    assert found.machine is None


def test_a_file_called_like_a_library_is_not_taken_for_it(here: Path) -> None:
    (here / "numpy.py").write_text("raise RuntimeError('the wrong file')")
    assert probe(["numpy"], "cpu").faults == {"numpy": ""}


def test_a_device_that_cannot_be_used(here: Path, installed: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    found = probe(["torch"], "cuda:99")
    assert found.machine is not None
    assert "cuda:99" in found.machine.fault
    installed()
    monkeypatch.setattr(examination, "probe", lambda packages, device: replace(probed(packages), machine=found.machine))
    findings = examine("cuda:99", here, here)
    assert not findings.works
    assert [lack.what for lack in findings.lacks] == ["--device cuda:99"]


def test_folders_that_cannot_be_written(here: Path, installed: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "file").touch()
    (here / "file").chmod(0o777)
    installed()
    hub = str(here / "file" / "hub")
    monkeypatch.setattr(examination, "probe", lambda packages, device: replace(probed(packages), hub=hub))
    findings = examine("auto", here / "file" / "cache", here / "new" / "runs")
    assert [lack.what for lack in findings.lacks] == ["taskres extract", "weights to be downloaded"]
    assert findings.works
    assert findings.out.writable
    assert not (here / "new").exists()


def test_a_graphics_card_is_told_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(name="NVIDIA H100", total_memory=80 * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    assert probing._name_and_memory(torch.device("cuda:1")) == ("NVIDIA H100", 80 * 10**9)
    assert best_precision(torch.device("cuda:1")) == "fp16"


def test_a_graphics_card_that_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(probing.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert "built without CUDA" in probing._unused_card([])
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert probing._unused_card([]) == ""
    assert probing._unused_card(["other", "CUDA initialization:\n the driver is too old"]).endswith("is too old")


def test_memory_is_what_a_container_grants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(probing, "MEMORY_LIMIT", limit)
    whole = probing._memory()
    limit.write_text("1000000\n")
    assert probing._memory() == 1_000_000
    limit.write_text("max\n")
    assert probing._memory() == whole


def test_signs_are_told_apart_without_colour_and_without_letters_for_them() -> None:
    program = "from taskres_cache.cli.console import print_marked as p; p('title', [('good', ('a',)), ('bad', ('b',))])"
    lines = {}
    for encoding in ("ascii", "utf-8"):
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        printed = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
        lines[encoding] = printed.stdout.decode().splitlines()[1:3]
    assert lines == {"ascii": ["ok  a", "NO  b"], "utf-8": ["✓  a", "✗  b"]}


def test_a_command_that_lacks_a_library_points_here(
    here: Path, taskres: Taskres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "taskres_cache.caches.finding", None)
    outcome = taskres("inspect", "digits")
    assert outcome.status == 1
    assert "`taskres doctor` tells" in one_line(outcome)
