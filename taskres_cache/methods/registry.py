"""All methods by name; a method's module is imported only when it is used.

Besides the methods of this package there are a user's own: an attribute of a file, `path/to/file.py:name`, or of an
installed package, in the entry point group `taskres_cache.methods`.
"""

from dataclasses import dataclass
from hashlib import sha256
from importlib import import_module
from importlib.metadata import EntryPoint
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from taskres_cache.errors import OptionError, UnknownNameError
from taskres_cache.methods.method import Method
from taskres_cache.methods.names import MODULES, TASKRES, installed_methods, is_own_file

PACKAGE = "taskres_cache.methods"


@dataclass(frozen=True)
class FoundMethod:
    """A method, and the digest of its source if it is a user's own.

    Parameters
    ----------
    method : Method
        The method.
    source_sha256 : str
        SHA-256 of the file; empty for methods of this package.
    """

    method: Method
    source_sha256: str = ""


def find_method(name: str) -> FoundMethod:
    """Return a method by its name, or by a file and the name in it.

    Parameters
    ----------
    name : str
        A name that `method_names` returns, or `path/to/file.py:attribute`.

    Raises
    ------
    UnknownNameError
        There is no method of this name.
    OptionError
        A file or package does not hold such a method, or could not be loaded.
    """
    if name in MODULES:
        return FoundMethod(import_module(f"{PACKAGE}.{MODULES[name]}").METHOD)
    if is_own_file(name):
        path, _, attribute = name.rpartition(":")
        return _from_file(Path(path), attribute)
    installed = installed_methods()
    if name not in installed:
        raise UnknownNameError("method", name, (TASKRES, *MODULES, *installed), "run: taskres methods")
    return _from_package(name, installed[name])


def _from_package(name: str, point: EntryPoint) -> FoundMethod:
    try:
        found, file = point.load(), getattr(import_module(point.module), "__file__", None)
    except Exception as error:  # other people's code raises anything
        raise OptionError(
            f"could not load method {name} of {point.value} ({_reason(error)}); fix that package"
        ) from error
    return FoundMethod(_checked(found, f"{point.value} (method {name})"), _digest(Path(file)) if file else "")


def _from_file(path: Path, attribute: str) -> FoundMethod:
    """Return a method that a Python file defines; the file is executed."""
    if not path.is_file():
        raise OptionError(f"there is no file {path}; pass --method path/to/file.py:name")
    spec = spec_from_file_location(f"taskres_own_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise OptionError(f"{path} is not a Python file")
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise OptionError(f"could not load {path} ({_reason(error)}); fix the file") from error
    if not hasattr(module, attribute):
        methods = [name for name, value in vars(module).items() if isinstance(value, Method)]
        raise OptionError(f"{path} has no {attribute!r}; it defines {', '.join(methods) or 'no Method'}")
    return FoundMethod(_checked(getattr(module, attribute), f"{path}:{attribute}"), _digest(path))


def _checked(found: object, where: str) -> Method:
    """Return an object if it is a method; raises OptionError otherwise."""
    if not isinstance(found, Method):
        kind = type(found).__name__
        raise OptionError(f"{where} is a {kind}, expected a Method: see taskres_cache/methods/method.py")
    if found.name == TASKRES or found.name in MODULES:
        raise OptionError(f"{where} has the name {found.name!r} of a method of this package; give it another name")
    return found


def _digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def _reason(error: Exception) -> str:
    """Return an error of a user's file as one short line."""
    line = getattr(error, "lineno", None)
    if line is None and error.__traceback__ is not None:
        last = error.__traceback__
        while last.tb_next is not None:
            last = last.tb_next
        line = last.tb_lineno
    return f"{type(error).__name__} in line {line}: {' '.join(str(error).split())[:200]}"
