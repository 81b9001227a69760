"""Few-shot adaptation of CLIP models by task residual tuning, built around a feature cache.

One way through: `datasets` -> `extraction` -> `store` -> `fitting` -> `study`. From Python, two names do for most:
`FeatureCache` hands out what a cache holds, `TaskResClassifier` fits a residual as scikit-learn fits anything. They are
imported once somebody asks for them, so that `taskres --help` is instant; everything else is in the modules.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from taskres_cache.system.version import __version__

if TYPE_CHECKING:
    from taskres_cache.caches.feature_cache import FeatureCache
    from taskres_cache.estimator import TaskResClassifier

__all__ = ["FeatureCache", "TaskResClassifier", "__version__"]

_MODULES = {"FeatureCache": "taskres_cache.caches.feature_cache", "TaskResClassifier": "taskres_cache.estimator"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
