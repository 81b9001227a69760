"""Pages that are files of the repository's root: their text, with links as seen from `docs/`."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGES = {"contributing": "CONTRIBUTING.md", "changelog": "CHANGELOG.md"}
LINK = re.compile(r"\[([^\]]+)\]\((?![a-z]+:|#)([^)]+)\)")


def text_of(page: str) -> str:
    """Return the text of a page; links to files that are no pages lose their target."""
    targets = {file: f"{name}.md" for name, file in PAGES.items()}

    def seen_from_docs(link: re.Match[str]) -> str:
        text, target = link.groups()
        inside = target.removeprefix("docs/") if target.startswith("docs/") else targets.get(target)
        return f"[{text}]({inside})" if inside else f"`{text.strip('`')}`"

    return LINK.sub(seen_from_docs, (ROOT / PAGES[page]).read_text())


def _fill(app: Any, page: str, source: list[str]) -> None:
    if page in PAGES:
        app.env.note_dependency(str(ROOT / PAGES[page]))
        source[0] = text_of(page)


def setup(app: Any) -> dict[str, Any]:
    """Register the extension with Sphinx."""
    app.connect("source-read", _fill)
    return {"parallel_read_safe": True}
