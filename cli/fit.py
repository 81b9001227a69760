"""`taskres fit`: stage two."""

from itertools import chain
from pathlib import Path

from taskres_cache.methods.names import TASKRES

from .fit_conclusions import concluded
from .fit_defaults import default_methods, default_shots, with_prompts
from .fit_options import (
    ONE_SEED,
    Alpha,
    Base,
    BatchSize,
    Epochs,
    LearningRate,
    Methods,
    Patience,
    Precision,
    Prompts,
    Residual,
    Search,
    Seeds,
    Settings,
    Shots,
    TrainedViews,
    Val,
    ViewsAverage,
    WeightDecay,
)  # fmt: skip
from .fit_output import announced, print_results, print_results_json, say_notes
from .fit_residuals import Residuals
from .methods import asked_methods, asked_settings, method_runs, refuse_taskres_options
from .options import DEFAULT_CACHE_DIR, Cache, CacheDir, Classes, Device, Json, Out, joined, seed_numbers, shot_counts


def fit(
    cache: Cache,
    method: Methods = None,
    shots: Shots = None,
    seeds: Seeds = None,
    alpha: Alpha = None,
    lr: LearningRate = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    weight_decay: WeightDecay = None,
    base: Base = None,
    residual: Residual = None,
    search: Search = False,
    patience: Patience = None,
    views: TrainedViews = None,
    views_average: ViewsAverage = False,
    precision: Precision = "fp32",
    settings: Settings = None,
    val: Val = "few",
    prompts: Prompts = None,
    classes: Classes = "all",
    device: Device = "auto",
    out: Out = Path("runs"),
    cache_dir: CacheDir = DEFAULT_CACHE_DIR,
    as_json: Json = False,
) -> None:
    """Train a classifier on a cache: task residuals, or any other method.

    One run for each combination of shots, seed, method, prompts, base, alpha, learning rate and weight decay; each
    writes classifier.safetensors and metrics.json. Defaults for a known data set are the paper's recipe or its own, 16
    shots; for your own data, --method auto and all training images. Nothing is chosen by test accuracy.

    Example: taskres fit digits --shots 1,4,16 --method taskres,gda
    """
    from taskres_cache.caches.class_halves import open_cache
    from taskres_cache.caches.finding import find_cache

    methods, given = asked_methods(method) if method else None, asked_settings(settings)
    training = {"epochs": epochs, "batch_size": batch_size, "residual": residual, "patience": patience}
    use = {"views": views, "view_use": "average" if views_average else None, "precision": precision}
    asked = Residuals(base, alpha, lr, weight_decay, search, training | use)
    own = {
        "base": base,
        "alpha": alpha,
        "lr": lr,
        "weight_decay": weight_decay,
        "search": search,
        "precision": precision,
    }
    of_taskres = own | training | {"views_average": views_average}
    if methods:
        refuse_taskres_options(methods, of_taskres)
    counts, draws = shot_counts(joined(shots)) if shots else None, seed_numbers(joined(seeds, ONE_SEED))
    features = open_cache(find_cache(cache, cache_dir), classes)
    caches = with_prompts(features, joined(prompts))
    methods = methods or default_methods(features, of_taskres, views)
    splits = [(count, seed) for count in counts or default_shots(features) for seed in draws]
    asked.check(features)
    say_notes(features, splits)
    from taskres_cache.system.devices import choose_device

    where = choose_device(device), out
    runs = [asked.runs(one, splits, *where) for one in caches] if TASKRES in methods else []
    others = method_runs(caches, splits, methods, given, views, val, *where)
    results = announced(chain(*runs, others))
    found = concluded(features, results, val, where[0])
    if as_json:
        print_results_json(features, results, found)
    else:
        print_results(features, results, found, out)
