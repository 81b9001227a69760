"""`taskres inspect`: what a cache holds."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Cache, CacheDir, Json


def inspect_cache(
    cache: Cache,
    verify: Annotated[bool, typer.Option("--verify", help="Read every array again and check its checksums.")] = False,
    cache_dir: CacheDir = Path("cache"),
    as_json: Json = False,
) -> None:
    """Show what a cache was made from, what it holds, and whether it is intact.

    Example: taskres inspect digits --verify
    """
    from taskres_cache.caches.feature_cache import FeatureCache
    from taskres_cache.caches.finding import describe_cache, find_cache
    from taskres_cache.reporting.tables import Table

    from .console import print_json, print_table

    features = FeatureCache(find_cache(cache, cache_dir))
    checked = features.verify() if verify else None
    facts = describe_cache(features)
    if as_json:
        print_json({**facts, "arrays": features.shapes, "verified_bytes": checked})
        return
    rows = tuple((name, str(value)) for name, value in facts.items())
    print_table(Table(str(features.path), ("what", "value"), rows, left=2))
    arrays = [name for name in features.shapes if not name.startswith("splits/")]
    shapes = tuple((name, " x ".join(map(str, features.shapes[name]))) for name in arrays)
    print_table(Table("arrays", ("array", "shape"), shapes, left=2))
    if checked:
        print(f"intact: {len(checked)} arrays, {sum(checked.values()):,} bytes match their checksums")
