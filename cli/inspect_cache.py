"""`taskres inspect`: the content of a cache."""

from textwrap import fill
from typing import Annotated, Any

import typer

from taskres_cache.system.text import printable

from .options import DEFAULT_CACHE_DIR, Cache, CacheDir, Json

DIGEST_WIDTH = 64  # columns of a SHA-256 digest, the longest value that is not broken
# Else the JSON key.
LABELS = {
    "classnames_form": "class names",
    "augmented_views": "views",
    "views": "view settings",
    "view_families": "view families",
    "prompt_sets": "prompt sets",
    "default_prompts": "default set",
    "shown_names": "shown names",
    "pre_projection": "pre-projection",
    "val_per_class": "val per class",
}


def inspect_cache(
    cache: Cache,
    verify: Annotated[bool, typer.Option("--verify", help="Read all arrays and check their checksums.")] = False,
    cache_dir: CacheDir = DEFAULT_CACHE_DIR,
    as_json: Json = False,
) -> None:
    """Show what a cache was made from and what it contains.

    Example: taskres inspect digits --verify
    """
    from taskres_cache.caches.feature_cache import FeatureCache
    from taskres_cache.caches.finding import describe_cache, find_cache
    from taskres_cache.reporting.tables import Table

    from .console import print_json, print_table, show

    features = FeatureCache(find_cache(cache, cache_dir))
    sizes = features.verify() if verify else {}
    unchecked = features.arrays_without_checksum() if verify else ()
    checked = {name: size for name, size in sizes.items() if name not in unchecked}
    facts = describe_cache(features)
    if as_json:
        verified = {"verified_bytes": checked, "without_checksum": unchecked} if verify else {"verified_bytes": None}
        print_json({**facts, "arrays": features.shapes, **verified})
        return
    rows = tuple((LABELS.get(name, name), _as_text(value)) for name, value in facts.items())
    print_table(Table(str(features.path), ("what", "value"), rows, left=2))
    arrays = [name for name in features.shapes if not name.startswith("splits/")]
    shapes = tuple((name, " x ".join(map(str, features.shapes[name]))) for name in arrays)
    print_table(Table("arrays", ("array", "shape"), shapes, left=2))
    if verify:
        print(f"intact: {len(checked)} arrays with {sum(checked.values()):,} bytes match their checksums")
    if unchecked:
        show(f"not checked, no checksum: {', '.join(unchecked)}")


def _flat(name: str, value: Any) -> list[tuple[str, Any]]:
    """Return the entries of a dictionary, or the value alone by its name."""
    return list(value.items()) if isinstance(value, dict) else [(name, value)]


def _as_text(value: Any) -> str:
    """Return a value as lines of text: a list one item per line, a dictionary as pairs."""
    if isinstance(value, list):
        return "\n".join(printable(str(item)) for item in value)
    if isinstance(value, dict):
        flat = {inner: item for name, part in value.items() for inner, item in _flat(name, part)}
        pairs = (f"{name} {item}" for name, item in flat.items())
        return fill(", ".join(pairs), DIGEST_WIDTH, break_long_words=False, break_on_hyphens=False) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) or "-"
