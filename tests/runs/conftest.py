"""A small cache and a study on it."""

from pathlib import Path

import pytest
import torch

from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.recipe import Recipe
from taskres_cache.runs.fitting.study import fit_each
from taskres_cache.runs.run import Run

CPU = torch.device("cpu")
RECIPE = Recipe(epochs=30, lr=0.02)
SPLITS = [(1, 1), (1, 2), (4, 1), (4, 2)]


@pytest.fixture
def cache(cache_file: Path) -> FeatureCache:
    return FeatureCache(cache_file)


@pytest.fixture
def study(cache: FeatureCache, tmp_path: Path) -> list[Run]:
    """One run per split of the cache, below `runs`."""
    return list(fit_each(cache, SPLITS, [RECIPE], CPU, tmp_path / "runs"))
