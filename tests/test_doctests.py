"""The examples in the docstrings of public names run, in a folder with a digits cache and one run."""

import doctest
import inspect
from importlib import import_module
from pathlib import Path
from shutil import copy

import pytest

import taskres_cache
from taskres_cache.caches.contents import cache_path
from taskres_cache.recipe import Recipe
from taskres_cache.runs.fitting.study import fit

PUBLIC = sorted(set(taskres_cache.__all__) - {"__version__"})
LIBRARY = Path(taskres_cache.__file__).parent


def modules_with_examples() -> list[str]:
    files = sorted(file for file in LIBRARY.rglob("*.py") if ">>> " in file.read_text() and "cli" not in file.parts)
    return [".".join(("taskres_cache", *file.relative_to(LIBRARY).with_suffix("").parts)) for file in files]


@pytest.fixture(scope="module")
def workplace(digits_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the cache of the digits and one run, where a user who ran the demo would have them."""
    folder = tmp_path_factory.mktemp("doctest")
    path = folder / cache_path(Path("cache"), "glyph-clip", "bundled", "digits")
    path.parent.mkdir(parents=True)
    copy(digits_cache, path)
    fit(path, [(16, 1)], [Recipe(alpha=2.0)], "cpu", folder / "runs")
    return folder


@pytest.mark.parametrize("module", modules_with_examples())
def test_examples_run(module: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    found = doctest.testmod(import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert found.attempted > 0
    assert found.failed == 0


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_have_an_example(name: str) -> None:
    documented = inspect.getdoc(getattr(taskres_cache, name)) or ""
    assert ">>> " in documented
