"""The house rules: who may import whom."""

import ast
import re
from dataclasses import fields
from inspect import signature
from pathlib import Path

import pytest

from taskres_cache.caches.provenance import Provenance
from taskres_cache.methods.task_residual.loop import fit_residuals
from taskres_cache.methods.task_residual.task import FitTask

ROOT = Path(__file__).parents[1]
LIBRARY = sorted((ROOT / "taskres_cache").rglob("*.py"))
COMMANDS = sorted((ROOT / "cli").glob("*.py"))


def imports(file: Path) -> set[str]:
    """Return every module that a file imports anywhere, with the names taken from it."""
    return names_in(ast.parse(file.read_text()))


def imported_with(file: Path) -> set[str]:
    """Return every module that is imported when a file is: not those in functions or for types alone."""
    body = ast.parse(file.read_text()).body
    statements = [one for one in body if isinstance(one, ast.Import | ast.ImportFrom)]
    return {name for one in statements for name in names_in(one)}


def names_in(tree: ast.AST) -> set[str]:
    """Return every module that a tree imports, with the names taken from it."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def importers(module: str, files: list[Path]) -> set[str]:
    return {
        file.relative_to(ROOT).as_posix()
        for file in files
        if any(name == module or name.startswith(f"{module}.") for name in imports(file))
    }


def reached_from(module: str) -> set[str]:
    """Return every foreign package that importing a module of ours imports, directly or through another of ours."""
    seen: set[str] = set()
    outside: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        file = ROOT / Path(*name.split(".")).with_suffix(".py")
        file = file if file.exists() else ROOT / Path(*name.split(".")) / "__init__.py"
        if name in seen or not file.exists():
            continue
        seen.add(name)
        for imported in imported_with(file):
            (waiting.append if imported.startswith("taskres_cache") else outside.add)(imported.split(":")[0])
    return {name.split(".")[0] for name in outside}


# Which packages and modules of the library each one may import, besides `errors` and `system`; every import goes down.
MAY_IMPORT = {
    "errors": set(),
    "system": set(),
    "bundled": set(),
    "recipe": set(),
    "heads": set(),
    "methods": {"heads", "recipe"},
    "datasets": {"recipe", "bundled"},
    "encoders": {"datasets", "bundled"},
    "caches": {"datasets"},
    "extraction": {"caches", "encoders", "datasets"},
    "runs": {"methods", "caches", "encoders", "datasets", "heads", "recipe"},
    "doctor": set(),
    "estimator": {"runs", "methods", "caches", "heads", "recipe"},
    "exporting": {"runs", "caches", "encoders", "datasets", "heads"},
    "serving": {"runs", "encoders", "datasets"},
    "reporting": {"runs", "caches", "datasets", "recipe"},
    "choosing": {"runs", "methods", "caches", "encoders", "datasets", "heads", "reporting"},
    "inspection": {"choosing", "runs", "methods", "caches", "datasets"},
    "benchmark": {"extraction", "runs", "methods", "caches", "datasets", "encoders", "recipe", "reporting"},
}


def illegal_imports(package: str, allowed: set[str]) -> set[tuple[str, str]]:
    """Return each (file, imported package) of a package, or module, of the library that the table does not allow."""
    folder = ROOT / "taskres_cache" / package
    files = folder.rglob("*.py") if folder.is_dir() else [folder.with_suffix(".py")]
    return {
        (file.relative_to(ROOT).as_posix(), name.split(".")[1])
        for file in files
        for name in imports(file)
        if name.startswith("taskres_cache.") and name.split(".")[1] not in {package, *allowed, "errors", "system"}
    }


def test_the_table_knows_every_package() -> None:
    top = ROOT / "taskres_cache"
    known = {path.stem for path in top.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert known - {"__init__", "cli"} == set(MAY_IMPORT)  # cli is the top-level folder, see setup.py


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_every_import_goes_down(package: str) -> None:
    assert illegal_imports(package, MAY_IMPORT[package]) == set()


def test_the_import_table_can_fail() -> None:
    found = illegal_imports("runs", MAY_IMPORT["runs"] - {"heads"})
    assert ("taskres_cache/runs/classifier.py", "heads") in found
    assert {name for _, name in found} == {"heads"}


def test_no_package_has_more_files_than_a_reader_takes_in() -> None:
    folders = {file.parent for file in LIBRARY}
    assert {folder.name for folder in folders if len(list(folder.glob("*.py"))) > 14} == set()


def test_packages_are_docstrings_and_modules() -> None:
    exempt = {ROOT / "taskres_cache", ROOT / "taskres_cache" / "datasets", ROOT / "taskres_cache" / "bundled"}
    packages = [file for file in LIBRARY if file.name == "__init__.py" and file.parent not in exempt]
    assert [file for file in packages if len(ast.parse(file.read_text()).body) != 1] == []


def test_the_library_never_imports_the_command_line() -> None:
    assert importers("taskres_cache.cli", LIBRARY) == set()
    assert importers("cli", LIBRARY) == set()
    assert importers("typer", LIBRARY) == set()


def test_rich_is_imported_only_to_draw_a_progress_bar() -> None:
    assert importers("rich", LIBRARY) == {"taskres_cache/system/progress.py"}
    source = ast.parse((ROOT / "taskres_cache" / "system" / "progress.py").read_text())
    at_import = [node for node in source.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [node for node in at_import if "rich" in ast.unparse(node)] == []


def test_stage_one_and_stage_two_do_not_import_each_other() -> None:
    below_stage_one = [file for file in LIBRARY if file.parent.name in ("encoders", "runs")]
    assert importers("taskres_cache.extraction", below_stage_one) == set()
    stage_one = [file for file in LIBRARY if file.parent.name == "extraction"]
    assert importers("taskres_cache.runs", stage_one) == set()


def test_one_module_knows_each_of_the_large_libraries() -> None:
    assert importers("open_clip", LIBRARY + COMMANDS) == {
        f"taskres_cache/encoders/{name}.py" for name in ("catalogue", "file_settings", "loading")
    }
    assert importers("h5py", LIBRARY + COMMANDS) == {"taskres_cache/caches/hdf5.py"}
    assert importers("sklearn", LIBRARY + COMMANDS) == {
        "taskres_cache/estimator.py",
    }
    assert importers("onnx", LIBRARY + COMMANDS) == {
        f"taskres_cache/exporting/{name}.py" for name in ("onnx_graph", "picture_graph")
    }
    assert importers("onnxruntime", LIBRARY + COMMANDS) == {"taskres_cache/exporting/onnx_graph.py"}
    assert importers("pyarrow", LIBRARY + COMMANDS) == {"taskres_cache/datasets/packed/tables.py"}
    assert importers("datasets", LIBRARY) == {"taskres_cache/datasets/forms/hugging_face.py"}
    assert importers("matplotlib", LIBRARY + COMMANDS) == {"taskres_cache/reporting/curves_png.py"}
    assert importers("jinja2", LIBRARY + COMMANDS) == {"taskres_cache/reporting/page.py"}


@pytest.mark.parametrize(
    ("module", "unknown"),
    [
        ("taskres_cache.methods.task_residual.loop", {"h5py", "open_clip", "PIL"}),
        ("taskres_cache.heads.kinds", {"h5py", "open_clip", "PIL"}),
        ("taskres_cache.methods.task_residual.step", {"h5py", "open_clip", "PIL"}),
        ("taskres_cache.methods.search", {"h5py", "open_clip", "PIL"}),
        ("taskres_cache.caches.feature_cache", {"torch", "open_clip", "torchvision"}),
        ("taskres_cache.extraction.planning", {"torch", "open_clip", "torchvision"}),
        ("taskres_cache.encoders.views", {"torch", "open_clip", "h5py", "numpy"}),
        ("taskres_cache.extraction.blocks", {"torch", "open_clip", "h5py"}),
        ("taskres_cache.extraction.lock", {"torch", "open_clip", "h5py", "numpy"}),
        ("taskres_cache.encoders.streamlining", {"open_clip", "h5py", "PIL"}),
        ("taskres_cache.encoders.backbone", {"open_clip", "torchvision", "h5py"}),
        ("taskres_cache.encoders.encoding", {"open_clip", "torchvision", "h5py"}),
        ("taskres_cache.extraction.extract", {"open_clip", "torchvision"}),
        ("taskres_cache.system.progress", {"torch", "numpy"}),
        ("taskres_cache.caches.finding", {"torch", "open_clip", "torchvision"}),
        ("taskres_cache.datasets", {"torch", "open_clip", "h5py", "numpy"}),
        ("taskres_cache.caches.foreign.importing", {"torch", "open_clip"}),
        ("taskres_cache.datasets.word_lists", {"torch", "open_clip", "timm"}),
        ("taskres_cache.reporting.tables", {"torch", "rich", "h5py"}),
        ("taskres_cache.datasets.named_files", {"torch", "numpy", "h5py", "open_clip"}),
        ("taskres_cache.exporting.tensors", {"onnx", "onnxruntime", "open_clip", "typer", "rich"}),
        ("taskres_cache.doctor.installation", {"torch", "open_clip", "h5py", "numpy"}),
        ("taskres_cache.runs.fitting.study", {"open_clip", "torchvision"}),
        ("taskres_cache.runs.scores", {"torch", "h5py", "open_clip"}),
        ("taskres_cache.runs.calibration", {"h5py", "open_clip", "PIL"}),
        ("taskres_cache.caches.contents", {"torch", "h5py", "open_clip"}),
        ("taskres_cache.caches.header", {"torch", "h5py", "open_clip"}),
        ("taskres_cache.caches.labelled", {"torch", "h5py", "open_clip"}),
        ("taskres_cache.caches.provenance", {"torch", "h5py", "open_clip"}),
        ("taskres_cache.estimator", {"h5py", "open_clip"}),
        ("taskres_cache.reporting.page", {"open_clip", "matplotlib", "rich"}),
        ("taskres_cache.reporting.curves_svg", {"torchvision", "open_clip", "h5py", "PIL"}),
    ],
)
def test_modules_do_not_know_what_they_need_not(module: str, unknown: set[str]) -> None:
    assert reached_from(module) & unknown == set()


def test_the_rule_above_can_fail() -> None:
    assert {"torch", "h5py"} <= reached_from("taskres_cache.extraction.extract")
    assert {"torch", "open_clip"} <= reached_from("taskres_cache.encoders.loading")


def test_fitting_is_handed_training_and_val_features_only() -> None:
    assert set(signature(fit_residuals).parameters) == {"tasks", "logit_scale", "device"}
    assert {known.name for known in fields(FitTask)} == {"training", "recipe", "epochs", "seed", "validation", "base"}


def test_ci_calls_what_readme_tells() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert all(f"make {target}" in script for target in ("check", "demo", "benchmark", "docs", "test"))


def test_cache_readme_names_every_array_and_attribute() -> None:
    text = (ROOT / "cache" / "README.md").read_text()
    assert [known.name for known in fields(Provenance) if f"`{known.name}`" not in text] == []
    names = re.findall(
        r'"(class_ids|classnames|(?:images|features|text|skipped)/\w+)"',
        (ROOT / "taskres_cache" / "caches" / "hdf5.py").read_text(),
    )
    assert len(set(names)) >= 8
    assert [name for name in names if f"`{name}`" not in text] == []


def test_modules_are_of_a_size_to_be_read() -> None:
    assert [file.name for file in LIBRARY + COMMANDS if len(file.read_text().splitlines()) > 400] == []
