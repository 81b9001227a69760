"""Names that become files or folders: of data sets, backbones and checkpoints."""

import unicodedata

LONGEST_NAME = 255  # bytes, the limit of the usual file systems


def unsafe_name(name: str) -> str | None:
    """Return why a name must not become a file or folder, or None if it may.

    Names come from files that other people wrote, so a name must never lead out of its folder.

    Parameters
    ----------
    name : str
        The name.
    """
    if not name.strip():
        return "is empty"
    if name in (".", ".."):
        return "is a folder above"
    if "/" in name or "\\" in name:
        return "has a path separator"
    if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in name):
        return "has a control character"
    if any("\ud800" <= character <= "\udfff" for character in name):
        return "is not UTF-8"
    if len(name.encode()) > LONGEST_NAME:
        return f"has {len(name.encode())} bytes, more than {LONGEST_NAME}"
    return None


def shown(text: str, most: int = 60) -> str:
    """Return text in quotes, shortened and with control characters escaped, for messages."""
    return repr(text if len(text) <= most else f"{text[:most]}...")
