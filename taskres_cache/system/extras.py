"""Optional packages: checked before the work starts, and named in the error if they are missing."""

from collections.abc import Sequence
from importlib import import_module

from taskres_cache.errors import MissingExtraError


def require(who: str, extra: str, packages: Sequence[str]) -> None:
    """Raise MissingExtraError unless all packages of an extra can be imported.

    Parameters
    ----------
    who : str
        What needs them, such as "`taskres export` to ONNX".
    extra : str
        The extra of taskres-cache that installs them.
    packages : sequence of str
        Their import names.

    Raises
    ------
    MissingExtraError
        Some packages are not installed or cannot be imported.
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
