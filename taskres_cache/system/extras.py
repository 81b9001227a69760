"""What goes beyond a plain installation is asked for before the work starts, and named when it is missing."""

from collections.abc import Sequence
from importlib import import_module

from taskres_cache.errors import MissingExtraError


def require(who: str, extra: str, packages: Sequence[str]) -> None:
    """Return when all packages of an extra can be imported.

    Parameters
    ----------
    who : what needs them, such as "`taskres export` to ONNX".
    extra : the extra of taskres-cache that brings them.
    packages : names as they are imported.

    Raises
    ------
    MissingExtraError : some cannot, because they are not installed or do not work here.
    """
    missing = [package for package in packages if not _can_be_imported(package)]
    if missing:
        raise MissingExtraError(f"{who} needs {', '.join(missing)}", extra)


def _can_be_imported(package: str) -> bool:
    try:
        import_module(package)
    except ImportError:
        return False
    return True
