"""The list of methods."""

from pathlib import Path

import taskres_cache
from taskres_cache.methods.method import Method
from taskres_cache.methods.names import ALL, MODULES, TASKRES, expanded, method_names
from taskres_cache.methods.registry import find_method

PACKAGE = Path(taskres_cache.__file__).parent / "methods"


def test_every_method_of_the_package_is_named() -> None:
    defining = {
        ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
        for file in PACKAGE.rglob("*.py")
        if "\nMETHOD = Method(" in file.read_text() and file.parent != PACKAGE
    }
    assert defining == set(MODULES.values())


def test_methods_have_their_names() -> None:
    found = {name: find_method(name) for name in MODULES}
    assert all(isinstance(one.method, Method) and one.method.name == name for name, one in found.items())
    assert {one.source_sha256 for one in found.values()} == {""}


def test_all_stands_for_every_method() -> None:
    assert expanded(["gda", ALL]) == ["gda", TASKRES, *(name for name in method_names() if name != "gda")]
