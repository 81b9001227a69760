"""Few-shot adaptation of CLIP models by task residual tuning, built around a feature cache.

One way through: `datasets` -> `extraction` -> `store` -> `fitting` -> `study`. Nothing is imported here, so that
`taskres --help` is instant; import what you need from the modules.
"""

from taskres_cache.version import __version__

__all__ = ["__version__"]
