"""The version, in its own module so that any module can import it, and those of installed libraries."""

from functools import cache

__version__ = "0.1.0"


@cache
def library_version(package: str) -> str:
    """Return the version of an installed package; the first time, its metadata are searched for, which takes 2 ms."""
    from importlib.metadata import version  # not imported by the command line's first lines

    return version(package)
