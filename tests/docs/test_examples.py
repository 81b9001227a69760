"""The examples in the docstrings of the public names run in a folder that `make demo` has filled."""

import doctest
import importlib
from pathlib import Path

import pytest

import taskres_cache


def examples(name: str) -> list[doctest.DocTest]:
    """Return the doctests of a public name and of its methods."""
    found = getattr(taskres_cache, name)
    module = importlib.import_module(found.__module__)
    return [test for test in doctest.DocTestFinder().find(found, name, module) if test.examples]


@pytest.mark.parametrize("name", [name for name in taskres_cache.__all__ if not name.startswith("_")])
def test_examples_print_what_they_say(name: str, in_demo: Path) -> None:
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in examples(name):
        report: list[str] = []
        failed = runner.run(test, out=report.append).failed
        assert failed == 0, "".join(report)


def test_examples_are_found() -> None:
    assert examples("FeatureCache")
