"""Few-shot adaptation of CLIP models by task residual tuning, built around a feature cache.

Stage one: `load_dataset` or `dataset_of`, `load_backbone` and `extract` make a `FeatureCache`. Stage two: `fit` trains
on it and returns runs; `load_run` reads one again, `TaskResClassifier` is the same fit as a scikit-learn estimator.
Every error that a user can act on is a `TaskresError`. Names are imported when first used, so that importing the
package is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from taskres_cache.system.version import __version__

if TYPE_CHECKING:
    from taskres_cache.caches.feature_cache import FeatureCache
    from taskres_cache.caches.foreign.entry import import_arrays
    from taskres_cache.datasets.forms.lists.in_memory import dataset_of
    from taskres_cache.datasets.registry import load_dataset
    from taskres_cache.encoders.loading import load_backbone
    from taskres_cache.errors import TaskresError
    from taskres_cache.estimator import TaskResClassifier
    from taskres_cache.extraction.extract import extract
    from taskres_cache.recipe import Recipe
    from taskres_cache.runs.fitting.study import fit
    from taskres_cache.runs.run import load_run

__all__ = [
    "FeatureCache",
    "Recipe",
    "TaskResClassifier",
    "TaskresError",
    "__version__",
    "dataset_of",
    "extract",
    "fit",
    "import_arrays",
    "load_backbone",
    "load_dataset",
    "load_run",
]

_MODULES = {
    "dataset_of": "datasets.forms.lists.in_memory",
    "FeatureCache": "caches.feature_cache",
    "Recipe": "recipe",
    "TaskResClassifier": "estimator",
    "TaskresError": "errors",
    "extract": "extraction.extract",
    "fit": "runs.fitting.study",
    "import_arrays": "caches.foreign.entry",
    "load_backbone": "encoders.loading",
    "load_dataset": "datasets.registry",
    "load_run": "runs.run",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
