"""Defaults of --method, --shots and --prompts of `taskres fit`: those of the paper, or for the user's own data."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from taskres_cache.methods.names import AUTO, TASKRES

from .fit_options import ONE_SHOTS
from .methods import used_options

if TYPE_CHECKING:
    from taskres_cache.caches.feature_cache import FeatureCache


def default_methods(cache: "FeatureCache", of_taskres: Mapping[str, object], views: int | None) -> list[str]:
    """Return the method for a cache: auto for data of one's own, unless options of the task residual are given.

    `views` belong to the task residual here: auto does not use any.
    """
    from taskres_cache.caches.provenance import OWN

    asked = views is not None or used_options(of_taskres)
    return [AUTO if cache.provenance.defaults == OWN and not asked else TASKRES]


def default_shots(cache: "FeatureCache") -> tuple[int, ...]:
    """Return the shots for a cache: of data of one's own the most that it has, which are all by default."""
    from taskres_cache.caches.provenance import OWN

    most = max((shots for shots, _ in cache.splits), default=int(ONE_SHOTS))
    return (most,) if cache.provenance.defaults == OWN else (int(ONE_SHOTS),)


def with_prompts(cache: "FeatureCache", names: str) -> "list[FeatureCache]":
    """Return the cache with each of the listed sets of prompts; with its default set if none is listed."""
    listed = dict.fromkeys(name.strip() for name in names.split(",") if name.strip())
    return [cache.using(name) for name in listed] or [cache]
