"""The cache that `make bench-fit` times is one that `taskres fit` accepts."""

from pathlib import Path

from taskres_cache import FeatureCache
from tests.bench_fit import write_random_cache


def test_the_cache_of_the_benchmark_has_every_split_that_is_timed(tmp_path: Path) -> None:
    cache = FeatureCache(write_random_cache(tmp_path))
    assert set(cache.splits) == {(shots, seed) for shots in (1, 2, 4, 8, 16) for seed in (1, 2, 3)}
    assert [len(cache.rows(part)) for part in ("val", "test")] == [2000, 2000]
    image_features, labels = cache.train(shots=16, seed=3)
    assert (image_features.shape, labels.shape) == ((1600, 1024), (1600,))
