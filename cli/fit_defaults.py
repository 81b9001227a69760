"""Defaults of --method and --shots of `taskres fit`: those of the paper, or all labels of the user's own data."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from taskres_cache.methods.names import AUTO, TASKRES

from .fit_options import ONE_SHOTS
from .methods import used_options

if TYPE_CHECKING:
    from taskres_cache.caches.feature_cache import FeatureCache


def default_methods(cache: "FeatureCache", of_taskres: Mapping[str, object]) -> list[str]:
    """Return the method for a cache: auto for data of one's own, unless options of the task residual are given."""
    from taskres_cache.caches.provenance import OWN

    return [AUTO if cache.provenance.defaults == OWN and not used_options(of_taskres) else TASKRES]


def default_shots(cache: "FeatureCache") -> tuple[int, ...]:
    """Return the shots for a cache: all training images of data of one's own, if the cache has that split."""
    from taskres_cache.caches.provenance import OWN
    from taskres_cache.datasets.sampling import ALL_SHOTS

    has_all = any(shots == ALL_SHOTS for shots, _ in cache.splits)
    return (ALL_SHOTS,) if cache.provenance.defaults == OWN and has_all else (int(ONE_SHOTS),)
