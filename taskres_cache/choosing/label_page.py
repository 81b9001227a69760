"""Images to label as one HTML page with thumbnails, without scripts and network access."""

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import NamedTuple

from taskres_cache.datasets.images import ImageSource
from taskres_cache.reporting.thumbnails import thumbnail

GRID = """
.label { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 16px; padding: 0; }
.label li { list-style: none; font-size: 0.85rem; overflow-wrap: anywhere; }
.label img { width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--faint); border-radius: 8px; }
"""


class Shown(NamedTuple):
    """An image on the page: its path, and the lines below it."""

    path: str
    lines: tuple[str, ...]


def label_page(title: str, lead: str, images: Sequence[Shown], source: ImageSource) -> str:
    """Return a page with a thumbnail of each image, in their order; an image that cannot be read has none."""
    items = "\n".join(_item(rank, image, source) for rank, image in enumerate(images, start=1))
    style = (files("taskres_cache.reporting") / "page.css").read_text(encoding="utf-8") + GRID
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>\n{style}</style>\n</head>\n<body>\n<header>\n<h1>{escape(title)}</h1>\n"
        f'<p class="lead">{escape(lead)}</p>\n</header>\n<main>\n<ol class="label">\n{items}\n</ol>\n</main>\n'
        f"</body>\n</html>\n"
    )


def _item(rank: int, image: Shown, source: ImageSource) -> str:
    found = thumbnail(source, image.path, source.stamp(image.path))
    enlarged = ' style="image-rendering: pixelated"' if found is not None and found.pixelated else ""
    picture = "" if found is None else f'<img src="{found.address}" alt=""{enlarged}>'
    lines = "".join(f"<br>{escape(line)}" for line in image.lines)
    return f"<li>{picture}<b>{rank}</b> {escape(image.path)}{lines}</li>"
