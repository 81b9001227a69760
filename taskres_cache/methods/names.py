"""The names of all methods, without importing torch."""

from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType

GROUP = "taskres_cache.methods"  # of entry points, in which other packages name their methods
ALL = "all"  # stands for every method
AUTO = "auto"  # the default for data of a user's own
TASKRES = "taskres"  # the task residual, which `runs.fitting.study` fits
MODULES = MappingProxyType(
    {
        AUTO: "auto.auto",
        "linear-probe": "linear.linear_probe",
        "tip-adapter": "memory.tip_adapter",
        "tip-adapter-f": "memory.tip_adapter_f",
        "clip-adapter": "image_side.clip_adapter",
        "lp++": "linear.lp_plus_plus",
        "zs-lp": "cosine.zs_lp",
        "clap": "cosine.clap",
        "gda": "linear.gda",
        "cross-modal": "linear.cross_modal",
        "prolip": "image_side.prolip",
        "rla": "image_side.rla",
        "ss-text": "cosine.ss_text",
        "p0": "image_side.p0",
        "proker": "memory.proker",
        "timo": "linear.timo",
        "ape-t": "memory.ape_t",
    }
)


def method_names() -> tuple[str, ...]:
    """Return the names of all methods but the task residual: those of this package, then those of other packages."""
    return (*MODULES, *(name for name in installed_methods() if name not in MODULES))


def expanded(names: Iterable[str]) -> list[str]:
    """Return names of methods, once each, with every method in place of "all", the task residual first."""
    listed = [one for name in names for one in ((TASKRES, *method_names()) if name == ALL else (name,))]
    return list(dict.fromkeys(listed))


def installed_methods() -> dict[str, EntryPoint]:
    """Return the methods of other packages by name."""
    return {point.name: point for point in entry_points(group=GROUP)}


def is_own_file(name: str) -> bool:
    """Return True for `path/to/file.py:name`, a user's own method."""
    return name.rpartition(":")[0].endswith(".py")
