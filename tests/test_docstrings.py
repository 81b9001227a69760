"""Docstrings are in numpydoc's own form and agree with the code; prose avoids words that readers stumble over."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [*sorted((ROOT / "taskres_cache").rglob("*.py")), *sorted((ROOT / "cli").glob("*.py"))]
SECTIONS = ("Parameters", "Attributes", "Raises")
ENTRY = re.compile(r"[\w, ]+ : \S.*|\*+\w+( : \S.*)?")  # `name : type`, or keyword arguments
UNWANTED = re.compile(
    r"\b(lack(?! of\b)(s|ing|ed)?|beside|cannot be had|can be had|manieth|mend(s|ed|ing)?|keeps nobody|what came of|"
    r"(is|are) told|in the words in which|of (its|their|your) own accord|(an )?images? a class|a class each|whereof)\b",
    re.IGNORECASE,
)
JSON_KEY = re.compile(r"""["'](lacks)["']""")  # of `taskres datasets --json`

NODES = [node for file in SOURCES for node in ast.walk(ast.parse(file.read_text()))]
CLASSES = {node.name: node for node in NODES if isinstance(node, ast.ClassDef)}

Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def documented(file: Path) -> Iterator[tuple[str, Documented, str]]:
    """Yield where each function or class with a docstring is, the node, and its docstring."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, Documented) and (text := ast.get_docstring(node)):
            yield f"{file.relative_to(ROOT)}:{node.lineno} {node.name}", node, text


def entries(text: str, section: str) -> list[tuple[str, str]]:
    """Return each unindented line of a section with the line after it."""
    found = re.search(rf"^{section}\n-+\n(.*?)(?=^\S[^\n]*\n-{{3,}}\n|\Z)", text, flags=re.MULTILINE | re.DOTALL)
    lines = [] if found is None else found[1].rstrip().split("\n")
    pairs = zip(lines, [*lines[1:], ""], strict=False)
    return [(line, after) for line, after in pairs if line and not line.startswith(" ")]


def names_of(node: Documented) -> set[str]:
    """Return the parameters of a function, or the fields and constructor parameters of a class and its bases."""
    if not isinstance(node, ast.ClassDef):
        arguments = node.args
        plain = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        return {one.arg for one in (*plain, arguments.vararg, arguments.kwarg) if one is not None}
    fields = {one.target.id for one in node.body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)}
    functions = [one for one in node.body if isinstance(one, ast.FunctionDef)]
    bases = [CLASSES[one.id] for one in node.bases if isinstance(one, ast.Name) and one.id in CLASSES]
    constructors = [one for one in functions if one.name in ("__init__", "__new__")]
    return fields.union(*(names_of(one) for one in [*constructors, *bases]))


def malformed(text: str) -> list[str]:
    return [
        line
        for section in SECTIONS
        for line, after in entries(text, section)
        if not after.startswith("    ") or not (section == "Raises" or ENTRY.fullmatch(line))
    ]


def test_sections_are_in_numpydocs_own_form() -> None:
    found = {place: bad for file in SOURCES for place, _, text in documented(file) if (bad := malformed(text))}
    assert found == {}


def test_the_form_is_recognised() -> None:
    assert malformed("Do.\n\nParameters\n----------\nx, y : int\n    What.\n\nRaises\n------\nError\n    When.\n") == []
    assert malformed("Do.\n\nParameters\n----------\nx : what it is.\ny : int\n    What.\n") == ["x : what it is."]
    assert malformed("Do.\n\nRaises\n------\nError : when.\n") == ["Error : when."]


def test_parameters_are_those_of_the_code() -> None:
    unknown = {}
    for file in SOURCES:
        for place, node, text in documented(file):
            lines = [line.split(" : ")[0] for line, _ in entries(text, "Parameters")]
            listed = {name.strip(" *") for line in lines for name in line.split(",")}
            if listed and not listed <= names_of(node):
                unknown[place] = sorted(listed - names_of(node))
    assert unknown == {}


@pytest.mark.parametrize("suffix", ["py", "md", "html", "toml", "cff"])
def test_prose_is_plain(suffix: str) -> None:
    listed = subprocess.run(["git", "ls-files", f"*.{suffix}"], cwd=ROOT, capture_output=True, text=True, check=True)
    found = {
        f"{name}:{number}": match[0]
        for name in listed.stdout.split("\n")
        if name and name != "tests/test_docstrings.py"
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").split("\n"), start=1)
        if (match := UNWANTED.search(JSON_KEY.sub("", line)))
    }
    assert found == {}
