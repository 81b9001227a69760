"""The list of methods."""

from hashlib import sha256
from pathlib import Path

import pytest

import taskres_cache
from taskres_cache.errors import OptionError
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


def test_an_installed_package_offers_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = "[taskres_cache.methods]\nblend = offered_methods:BLEND\nbroken = offered_methods:NOTHING\n"
    metadata = tmp_path / "offered-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: offered\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(entries)
    source = (PACKAGE.parents[1] / "examples" / "own_method.py").read_bytes()
    (tmp_path / "offered_methods.py").write_bytes(source)
    monkeypatch.syspath_prepend(tmp_path)
    assert method_names()[-2:] == ("blend", "broken")
    found = find_method("blend")
    assert found.method.name == "blend"
    assert found.source_sha256 == sha256(source).hexdigest()
    with pytest.raises(OptionError, match="could not load method broken of offered_methods:NOTHING"):
        find_method("broken")
