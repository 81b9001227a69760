"""README is short, names every command and target, and every link of README and the pages leads somewhere."""

import re
from pathlib import Path

import pytest
import typer.main

from taskres_cache.cli.app import app
from tests.docs.pages import PAGES, ROOT

README = (ROOT / "README.md").read_text()
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
LINKING = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
INCLUDE = re.compile(r"^```\{include\} (\S+)$", re.MULTILINE)


def links(page: Path) -> list[str]:
    """Return the targets of a page's links and images that are not addresses on the web."""
    text = re.sub(r"^```(?!\{).*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"\]\(\s*([^)\s]+)\s*\)", text) + re.findall(r"^```\{image\} (\S+)$", text, re.MULTILINE)
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them, those of included files too."""
    text = page.read_text()
    included = [anchors((page.parent / name).resolve()) for name in INCLUDE.findall(text)]
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    own = {_slug(title) for title in re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)}
    generated = {_slug(f"taskres {name}") for name in commands()} if page.name == "commands.md" else set()
    return own.union(generated, *included)


def _slug(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def commands() -> list[str]:
    """Return every command of the app, those of groups too, such as `datasets verify`."""
    found = []
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        found += [name, *(f"{name} {below}" for below in getattr(command, "commands", {}))]
    return found


@pytest.mark.parametrize("page", LINKING, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target}"


def test_links_are_found() -> None:
    assert "docs/images/report.png" in links(ROOT / "README.md")
    assert "commands.md#taskres-fit" in links(ROOT / "docs" / "fit.md")
    assert "taskres-datasets-verify" in anchors(ROOT / "docs" / "commands.md")
    assert "nothing-like-this" not in anchors(ROOT / "docs" / "fit.md")


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 175


def test_readmes_table_has_every_command() -> None:
    assert len(commands()) >= 12
    rows = re.findall(r"^\| `taskres ([a-z ]+?)(?: [A-Z-].*?)?` \|", README, flags=re.MULTILINE)
    assert sorted(rows) == sorted(commands())


@pytest.mark.parametrize("page", LINKING, ids=lambda page: page.stem)
def test_make_targets_exist(page: Path) -> None:
    named = set(re.findall(r"(?:`|^|^\$ )make ([a-z][a-z-]*)", page.read_text(), flags=re.MULTILINE))
    assert named - TARGETS == set()


def test_readme_links_every_page() -> None:
    linked = links(ROOT / "README.md")
    assert {"CONTRIBUTING.md", "CHANGELOG.md"} <= set(linked)
    others = {page.name for page in PAGES} - {"README.md", "index.md", "contributing.md", "changelog.md"}
    assert [name for name in sorted(others) if f"docs/{name}" not in linked] == []
