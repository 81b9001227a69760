"""`taskres ablations`: the paper's ablations on a cache."""

from pathlib import Path

from .options import DEFAULT_CACHE_DIR, Cache, CacheDir, Device, Out, Seeds, Shots, split_numbers


def ablations(
    cache: Cache,
    shots: Shots = None,
    seeds: Seeds = None,
    out: Out = Path("runs"),
    cache_dir: CacheDir = DEFAULT_CACHE_DIR,
    device: Device = "auto",
) -> None:
    """Fit the paper's ablations on a cache; print a table, write it and a figure.

    The residual on text, image and both; a learned alpha; alpha 0.1 to 1; on the regular and the enhanced base. Runs
    that exist are reused.

    Example: taskres ablations digits --shots 1,16
    """
    from taskres_cache.caches.finding import find_cache

    counts, draws = split_numbers(shots, seeds)
    path = find_cache(cache, cache_dir)

    from taskres_cache.benchmark.ablations import ablation_tables, run_ablations, write_ablations
    from taskres_cache.caches.feature_cache import FeatureCache
    from taskres_cache.system.devices import choose_device

    from .console import kept_when_interrupted, print_table, progress, say

    features, splits = FeatureCache(path), [(count, seed) for count in counts for seed in draws]
    with kept_when_interrupted(), progress() as display:
        found = run_ablations(features, splits, choose_device(device), out, display)
    for table in ablation_tables(found):
        print_table(table)
    for file in write_ablations(found, features, out):
        say(f"written: {file}")
