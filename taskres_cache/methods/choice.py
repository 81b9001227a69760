"""A method with the options, views and validation images that a user chose, and the name of its run folder."""

import re
from dataclasses import dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from hashlib import sha256
from typing import Any, Literal, get_args, get_origin, get_type_hints

from taskres_cache.errors import OptionError
from taskres_cache.methods.method import Method

ValUse = Literal["few", "full"]
LONGEST_NAME = 150  # characters; longer names end in a digest
UNSAFE = re.compile(r"[^A-Za-z0-9.,+_-]")  # in the name of a folder


@dataclass(frozen=True)
class MethodRecord:
    """A method as it was used: plain values, stored with the result.

    Parameters
    ----------
    name : str
        Name of the method.
    options : dict of str to object
        All its options; tuples are lists.
    views : int
        Augmented views per training image; 0 for the images themselves.
    val : {"few", "full"}
        Validation images that it may choose by: those of the split, or the whole val partition.
    source_sha256 : str
        Digest of the file of a user's own method; empty for others.
    """

    name: str
    options: dict[str, Any]
    views: int = 0
    val: ValUse = "few"
    source_sha256: str = ""


@dataclass(frozen=True)
class MethodChoice:
    """A method and how to use it.

    Parameters
    ----------
    method : Method
        The method.
    options : object
        Its options, of the type of `method.options`.
    views, val, source_sha256 : int, {"few", "full"}, str
        As in `MethodRecord`.
    """

    method: Method
    options: Any
    views: int = 0
    val: ValUse = "few"
    source_sha256: str = ""

    def record(self) -> MethodRecord:
        """Return the choice as plain values."""
        options = {name: list(value) if isinstance(value, tuple) else value for name, value in _values(self.options)}
        return MethodRecord(self.method.name, options, self.views, self.val, self.source_sha256)

    def method_name(self) -> str:
        """Return the method's folder name: its name, every option that differs from its default, views and val."""
        defaults = dict(_values(self.method.options))
        marks = [_mark(name, value) for name, value in _values(self.options) if value != defaults[name]]
        marks += [f"views{self.views}"] if self.views else []  # of the method's own family
        marks += ["val-full"] if self.val == "full" else []
        marks += [f"source-{self.source_sha256[:8]}"] if self.source_sha256 else []
        return _as_folder("-".join([self.method.name, *marks]))


def with_settings(method: Method, settings: dict[str, str]) -> Any:
    """Return the options of a method with some fields set from text, as `--set NAME=VALUE` gives them.

    Parameters
    ----------
    method : Method
        The method.
    settings : dict of str to str
        Text of the new value by name; several values of a tuple are separated by commas.

    Raises
    ------
    OptionError
        The method has no option of a name, or a value is not of its type.
    """
    if not settings:
        return method.options
    types = get_type_hints(type(method.options)) if is_dataclass(method.options) else {}
    changes = {}
    for name, text in settings.items():
        field = name.replace("-", "_")
        if field not in types:
            near = get_close_matches(field, types, 1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(types) or 'none'}"
            raise OptionError(f"method {method.name} has no option {name!r}; {hint}")
        changes[field] = _parsed(f"option {name} of {method.name}", text, types[field])
    return replace(method.options, **changes)


def _values(options: Any) -> list[tuple[str, Any]]:
    """Return the fields of options and their values."""
    return [(one.name, getattr(options, one.name)) for one in fields(options)] if is_dataclass(options) else []


def _mark(name: str, value: Any) -> str:
    """Return the part of a folder name for one option."""
    shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"{name.replace('_', '-')}{shown.removesuffix('.0')}"


def _as_folder(name: str) -> str:
    """Return a name that is safe as a folder; a digest replaces what is not."""
    safe = UNSAFE.sub("_", name)
    if safe == name and len(name) <= LONGEST_NAME:
        return name
    return f"{safe[:LONGEST_NAME]}-{sha256(name.encode()).hexdigest()[:8]}"


def _parsed(what: str, text: str, kind: Any) -> Any:
    """Return text as a value of a type: float, int, bool, str, a Literal, a tuple of one of these, or optional."""
    arguments = get_args(kind)
    if get_origin(kind) is tuple:
        return tuple(_parsed(what, part.strip(), arguments[0]) for part in text.split(",") if part.strip())
    if get_origin(kind) is Literal:
        if text not in arguments:
            raise OptionError(f"{what} is {text!r}, expected one of {', '.join(map(str, arguments))}")
        return text
    if type(None) in arguments:
        if text.lower() == "none":
            return None
        return _parsed(what, text, next(one for one in arguments if one is not type(None)))
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise OptionError(f"{what} is {text!r}, expected true or false")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError as error:
        raise OptionError(f"{what} is {text!r}, expected {kind.__name__}") from error
