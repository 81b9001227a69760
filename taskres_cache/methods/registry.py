"""All methods by name; a method's module is imported only when it is used."""

from importlib import import_module
from types import MappingProxyType

from taskres_cache.errors import UnknownNameError
from taskres_cache.methods.method import Method

PACKAGE = "taskres_cache.methods"
MODULES = MappingProxyType(
    {
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


def method_named(name: str) -> Method:
    """Return a method by its name.

    Raises
    ------
    UnknownNameError
        There is no method of this name.
    """
    if name not in MODULES:
        raise UnknownNameError("method", name, ("taskres", *MODULES), "run: taskres methods")
    found: Method = import_module(f"{PACKAGE}.{MODULES[name]}").METHOD
    return found
