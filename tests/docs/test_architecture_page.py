"""The import table of the architecture page is what the code does."""

import ast
import re
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

LIBRARY = ROOT / "taskres_cache"
PAGE = (ROOT / "docs" / "architecture.md").read_text()
ROW = re.compile(r"^\| `(\w+)(?:/|\.py)` \| [^|]+ \|([^|]*)\|$", re.MULTILINE)
TABLE = {package: [name.strip() for name in names.split(",") if name.strip()] for package, names in ROW.findall(PAGE)}
EVERYBODY_MAY = {"errors", "system"}


def packages() -> list[str]:
    """Return the packages and modules of the library; `cli` is one of them, wherever its files are."""
    folders = {path.parent.name for path in LIBRARY.glob("*/__init__.py")}
    return sorted(folders | {path.stem for path in LIBRARY.glob("[!_]*.py")} | {"cli"})


def files(package: str) -> list[Path]:
    single = LIBRARY / f"{package}.py"
    folder = LIBRARY / package if (LIBRARY / package).is_dir() else ROOT / package
    return [single] if single.exists() else sorted(folder.rglob("*.py"))


def imported(package: str) -> set[str]:
    """Return the other packages of the library that a package imports."""
    found: set[str] = set()
    for file in files(package):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name.split(".")[1] for name in found if name.startswith("taskres_cache.")} & set(packages()) - {package}


def test_the_table_has_every_package() -> None:
    assert sorted(TABLE) == packages()


@pytest.mark.parametrize("package", [name for name in TABLE if name != "cli"])
def test_a_package_imports_what_its_row_says(package: str) -> None:
    assert imported(package) - EVERYBODY_MAY - set(TABLE[package]) == set()


@pytest.mark.parametrize("package", [name for name in TABLE if name != "cli"])
def test_imports_go_down(package: str) -> None:
    rows = list(TABLE)
    assert [name for name in TABLE[package] if rows.index(name) <= rows.index(package)] == []


def test_imports_are_found() -> None:
    assert {"caches", "encoders"} <= imported("extraction")
    assert "runs" in imported("cli")
