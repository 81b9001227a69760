"""Names and prompts of classes as a file lists them: YAML, JSON, CSV or TSV; knows no torch.

Every reader refuses at the first fault, so that memory stays within a few times the size of the file.
"""

import csv
import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import yaml

from taskres_cache.errors import OptionError
from taskres_cache.system.names import shown

MOST_BYTES = 32 << 20  # 1,000 classes with 50 sentences take about 5 MB
LONGEST_TEXT = 2000  # characters; text towers read 77 to 248 tokens
COLUMNS = ("class", "name", "prompt")
FIELDS = ("name", "prompts")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
YAML_NULL = ("", "~", "null", "Null", "NULL")
YAML_LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # every scalar is text: `no` and `1` are class names
FORMS = "expected class: [prompts], class: name, or class: {name: ..., prompts: [...]}"

Value = Any  # str, list or dict, of the one class


@dataclass(frozen=True)
class Description:
    """What a file says about one class.

    Parameters
    ----------
    key : str
        The class, as the file names it.
    name : str or None
        The name to show to the text encoder; None if the file has none.
    prompts : tuple of str
        Complete sentences; empty if the file has none.
    where : str
        Line or key, for messages.
    repeated : tuple of str
        Prompts that the class has several times; `prompts` has them once.
    """

    key: str
    name: str | None
    prompts: tuple[str, ...]
    where: str
    repeated: tuple[str, ...] = ()


def read_descriptions(file: Path) -> list[Description]:
    """Return what a file says about each class, in the order of the file.

    Parameters
    ----------
    file : Path
        By its suffix YAML (`.yaml`, `.yml`), a table (`.csv`, `.tsv`), or else JSON. YAML and JSON have one object:
        class -> list of prompts, name, or object with `name` and `prompts`. Tables have the columns `class`, `name`
        and `prompt`, the last two optional, and one row per prompt.

    Raises
    ------
    OptionError
        The file could not be read, is too large, or has another form; the message names the line or key.
    """
    text, suffix = _text_of(file), file.suffix.lower()
    if suffix in DELIMITERS:
        return _of_table(file, text, DELIMITERS[suffix])
    listed = _of_yaml(file, text) if suffix in (".yaml", ".yml") else _of_json(file, text)
    found: dict[str, Description] = {}
    for key, value, where in listed:
        if key in found:
            raise OptionError(f"{file}, {where}: class {shown(key)} is listed twice, expected once; merge the entries")
        found[key] = _description(file, key, value, where)
    if not found:
        raise OptionError(f"{file} has no class; {FORMS}")
    return list(found.values())


def _text_of(file: Path) -> str:
    try:
        if not file.is_file():
            raise OptionError(f"could not read {file}: there is no such file; pass a YAML, JSON, CSV or TSV file")
        size = file.stat().st_size
        if size > MOST_BYTES:
            raise OptionError(f"{file} has {size:,} bytes, expected at most {MOST_BYTES:,}; split it into several sets")
        return file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise OptionError(f"could not read {file} ({_reason(error)}); save it as UTF-8 text") from error


def _of_json(file: Path, text: str) -> Iterator[tuple[str, Value, str]]:
    """Yield class, value and place; objects arrive as lists of pairs, because dictionaries would hide repeated keys."""
    try:
        pairs = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        raise OptionError(f"could not read {file} ({_reason(error)}); pass a valid JSON file") from error
    if not isinstance(pairs, _Pairs):
        raise OptionError(f'{file}: expected a JSON object of class names, such as {{"cat": ["a cat.", "a tabby."]}}')
    for key, value in pairs:
        yield key, value, f"key {shown(key)}"


class _Pairs(list[tuple[str, Any]]):
    """A JSON or YAML object with its keys in order."""


def _of_yaml(file: Path, text: str) -> Iterator[tuple[str, Value, str]]:
    """Yield class, value and place; aliases are refused, because few bytes of them can stand for gigabytes."""
    try:
        events = yaml.parse(text, Loader=YAML_LOADER)
        yield from _yaml_classes(file, iter(events))
    except (yaml.YAMLError, RecursionError) as error:
        raise OptionError(f"could not read {file} ({_reason(error)}); pass a valid YAML file") from error


def _yaml_classes(file: Path, events: Iterator[Any]) -> Iterator[tuple[str, Value, str]]:
    next(events)  # the start of the stream, then of the document
    if isinstance(next(events), yaml.StreamEndEvent) or not isinstance(next(events), yaml.MappingStartEvent):
        raise OptionError(f"{file}: expected a YAML mapping of class names; {FORMS}")
    for event in events:
        if isinstance(event, yaml.MappingEndEvent):
            break
        where = f"line {event.start_mark.line + 1}"
        yield _yaml_text(file, event), _yaml_value(file, next(events), events, 0), where
    next(events)  # the end of the document
    if not isinstance(event := next(events), yaml.StreamEndEvent):
        raise OptionError(f"{file}, line {event.start_mark.line + 1}: a second YAML document, expected one; merge them")


def _yaml_value(file: Path, event: Any, events: Iterator[Any], depth: int) -> Value:
    """Return a text, a list or an object of at most the depth that a class can have."""
    if isinstance(event, yaml.SequenceStartEvent) and depth < 2:
        items = []
        while not isinstance(item := next(events), yaml.SequenceEndEvent):
            items.append(_yaml_text(file, item))
        return items
    if isinstance(event, yaml.MappingStartEvent) and depth < 1:
        pairs = _Pairs()
        while not isinstance(key := next(events), yaml.MappingEndEvent):
            pairs.append((_yaml_text(file, key), _yaml_value(file, next(events), events, depth + 1)))
        return pairs
    return _yaml_text(file, event)


def _yaml_text(file: Path, event: Any) -> str:
    where = f"{file}, line {event.start_mark.line + 1}"
    if isinstance(event, yaml.AliasEvent):
        raise OptionError(f"{where}: YAML aliases (*{event.anchor[:20]}) are not supported; write the text out")
    if not isinstance(event, yaml.ScalarEvent):
        raise OptionError(f"{where}: a nested list or mapping, expected text; {FORMS}")
    empty = event.style in (None, "") and event.value in YAML_NULL
    return "" if empty else str(event.value)


def _of_table(file: Path, text: str, delimiter: str) -> list[Description]:
    """Return the classes of a table; a name may be repeated in every row of its class."""
    names: dict[str, str | None] = {}
    prompts: dict[str, list[str]] = {}
    first: dict[str, str] = {}
    for where, row in _rows(file, text, delimiter):
        key = row["class"].strip()
        if not key:
            raise OptionError(f"{file}, {where}: the class is empty; give its name")
        name, prompt = row.get("name", "").strip(), row.get("prompt", "").strip()
        if not name and not prompt:
            raise OptionError(f"{file}, {where}: class {shown(key)} has neither a name nor a prompt; give one of them")
        clean = _cleaned(file, where, key, "name", name) if name else None
        if clean is not None and names.get(key, clean) not in (clean, None):
            raise OptionError(
                f"{file}, {where}: class {shown(key)} has the name {shown(clean)}, but {shown(str(names[key]))} in an "
                "earlier line; give it one name"
            )
        names[key] = clean or names.get(key)
        prompts.setdefault(key, [])
        prompts[key] += [_cleaned(file, where, key, "prompt", prompt)] if prompt else []
        first.setdefault(key, where)
    if not names:
        raise OptionError(f"{file} has no class; add rows with class, name and prompt")
    return [_with_prompts(key, name, prompts[key], first[key]) for key, name in names.items()]


def _rows(file: Path, text: str, delimiter: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield place and cells by column of each row that is not empty."""
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = [cell.strip().lower() for cell in next(reader, [])]
        if "class" not in header or not set(header) <= set(COLUMNS) or len(set(header)) < len(header):
            found = shown(delimiter.join(header))
            raise OptionError(
                f"{file}, line 1: columns {found}, expected class, name, prompt (one of the last two may be missing), "
                f"separated by {'tabs' if delimiter != ',' else 'commas'}"
            )
        for cells in reader:
            where = f"line {reader.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise OptionError(
                    f"{file}, {where}: {len(cells)} cells, expected {len(header)}; put text that has the separator in "
                    "double quotes"
                )
            yield where, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise OptionError(f"{file}, line {reader.line_num}: {_reason(error)}; fix the quotes of this line") from error


def _description(file: Path, key: str, value: Value, where: str) -> Description:
    """Return the description that an entry of YAML or JSON holds."""
    if isinstance(value, _Pairs):
        names = [name for name, _ in value]
        unknown = next((name for name in names if name not in FIELDS or names.count(name) > 1), None)
        if unknown is not None or not names:
            raise OptionError(f"{file}, {where}: unexpected {shown(unknown or '{}')}; {FORMS}")
        fields = dict(value)
    else:
        fields = {"prompts": value} if isinstance(value, list) else {"name": value}
    name, prompts = fields.get("name"), fields.get("prompts", [])
    listed = [prompts] if isinstance(prompts, str) else prompts
    if not isinstance(listed, list) or isinstance(listed, _Pairs) or ("prompts" in fields and not listed):
        raise OptionError(f"{file}, {where}: class {shown(key)} has no list of prompts; {FORMS}")
    clean = None if "name" not in fields else _cleaned(file, where, key, "name", name)
    texts = [_cleaned(file, where, key, f"prompt {number}", text) for number, text in enumerate(listed, start=1)]
    return _with_prompts(key, clean, texts, where)


def _with_prompts(key: str, name: str | None, prompts: list[str], where: str) -> Description:
    seen: dict[str, int] = {}
    for text in prompts:
        seen[text] = seen.get(text, 0) + 1
    return Description(key, name, tuple(seen), where, tuple(text for text, count in seen.items() if count > 1))


def _cleaned(file: Path, where: str, key: str, what: str, text: object) -> str:
    """Return a text with single spaces for white space; raises OptionError for one that no cache can store."""
    place = f"{file}, {where}: {what} of class {shown(key)}"
    if not isinstance(text, str):
        raise OptionError(f"{place} is {type(text).__name__}, expected text; {FORMS}")
    clean = " ".join(text.split())
    if not clean:
        raise OptionError(f"{place} is empty; write it, or remove the entry")
    if len(clean) > LONGEST_TEXT:
        raise OptionError(f"{place} has {len(clean):,} characters, expected at most {LONGEST_TEXT:,}; shorten it")
    if not clean.isprintable() and any(unicodedata.category(one) in ("Cc", "Cs") for one in clean):
        raise OptionError(f"{place} has a control character or half a character; remove it")
    return clean


def _reason(error: BaseException) -> str:
    """Return an error as one short line."""
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split())[:200]
