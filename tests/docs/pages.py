"""The tested blocks of a Markdown page, and how they are run.

A page marks a block with `<!-- test -->` on the line before it. Three kinds of block can be marked:

- `shell`: every line is a command; each must succeed.
- `console`: lines that start with `$ ` are commands, the lines below a command are what it prints.
- `python`: run in one namespace per page; a `text` block that follows directly is what it prints.

In expected output, `...` stands for anything. Times and rates are not compared. Accuracies are compared only on a
machine that computes features as the one on which the pages were written; elsewhere single predictions may differ.
"""

import re
import runpy
import shlex
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from doctest import ELLIPSIS, OutputChecker
from functools import partial
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest
import torch

from taskres_cache.cli import main
from taskres_cache.system.devices import choose_device

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARKER = "<!-- test -->"
BLOCK = re.compile(
    rf"^{re.escape(MARKER)}\n```(?P<kind>\w+)\n(?P<body>.*?)^```$(?:\n+```text\n(?P<output>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Step:
    """A command or a piece of Python, and what the page says it prints; None where it says nothing."""

    kind: str
    line: int
    code: str
    output: str | None


def steps(page: Path) -> list[Step]:
    """Return what a page marks as tested, in order."""
    text = page.read_text()
    found: list[Step] = []
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start()) + 2
        found += _steps_of(match["kind"], line, match["body"], match["output"])
    assert len(found) >= text.count(MARKER), f"{page.name}: a marker is not followed by a block that can be tested"
    return found


def _steps_of(kind: str, line: int, body: str, output: str | None) -> list[Step]:
    body = body.replace("\\\n", "")
    if kind == "python":
        return [Step("python", line, "\n" * line + body, output)]
    if kind == "shell":
        commands = [text for text in body.splitlines() if text and not text.startswith("#")]
        return [Step("command", line, command, None) for command in commands]
    assert kind == "console", f"line {line}: {kind} blocks cannot be tested"
    return [
        Step("command", line, command, shown or None)
        for command, _, shown in (part.partition("\n") for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:])
    ]


def run_page(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the tested blocks of a page in the current folder and compare what they print."""
    namespace: dict[str, Any] = {"__name__": page.stem}
    for step in steps(page):
        where = f"{page.relative_to(ROOT)}, line {step.line}"
        if step.kind == "python":
            printed = _printed(partial(exec, compile(step.code, where, "exec"), namespace), where)
        else:
            printed = _printed(partial(run_command, step.code, monkeypatch), where)
        if step.output is not None:
            assert _alike(step.output, printed), f"{where}: {step.code.strip()}\nprinted\n{printed}\nnot\n{step.output}"


def _printed(action: Callable[[], object], where: str) -> str:
    """Return what an action prints to both streams; it must end without an error."""
    stream = TextIOWrapper(BytesIO(), encoding="utf-8", write_through=True)
    with redirect_stdout(stream), redirect_stderr(stream):
        try:
            action()
        except SystemExit as end:
            pytest.fail(f"{where}: exit status {end.code}\n{stream.buffer.getvalue().decode()}")
    return stream.buffer.getvalue().decode()


def run_command(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command in this process: taskres, a Python script of the repository, or a make target."""
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        for recipe in _recipe(words[1]):
            run_command(recipe, monkeypatch)
    elif words[0] == "python":
        monkeypatch.setattr(sys, "argv", words[1:])
        runpy.run_path(str(ROOT / words[1]), run_name="__main__")
    else:
        assert words[0] == "taskres", f"only taskres, python and make can be tested, not {words[0]}"
        monkeypatch.setattr(sys, "argv", words)
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise


def _recipe(target: str) -> list[str]:
    """Return the taskres commands of a make target."""
    makefile = (ROOT / "Makefile").read_text()
    (body,) = re.findall(rf"^{target}:.*\n((?:\t.*\n)+)", makefile, flags=re.MULTILINE)
    return [
        line.removeprefix("$(BIN)/") for line in body.replace("\\\n", "").split("\t")[1:] if "$(BIN)/taskres" in line
    ]


def _alike(expected: str, printed: str) -> bool:
    return OutputChecker().check_output(_settled(expected), _settled(printed), ELLIPSIS)


def _settled(text: str) -> str:
    """Return output without what differs between machines."""
    text = re.sub(r"\d+\.\d+ s\b", "# s", text)
    text = re.sub(r"\d+\.\d/s, \d:\d\d:\d\d left", "#", text)
    if not _computes_as_on_the_pages():
        text = re.sub(r"[+-]?\d+\.\d+", "#", text)
        text = re.sub(r"[█▏▎▍▌▋▊▉]+", "█", re.sub(r"([ ━─])\1+", r"\1", text))
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def _computes_as_on_the_pages() -> bool:
    """Return True on a CPU that computes in bfloat16 by AVX512 instructions."""
    known = torch.cpu.get_capabilities()
    on_cpu = choose_device("auto").type == "cpu"
    return on_cpu and bool(known.get("avx512_bf16")) and not known.get("amx_bf16")
