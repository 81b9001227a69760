"""Where an export goes, and in which format. Does not need torch, so that typos are found at once."""

from pathlib import Path

from taskres_cache.errors import OptionError, UnknownNameError
from taskres_cache.runs.finding import CLASSIFIER_FILE, METRICS_FILE

FORMATS = {"safetensors": ".safetensors", "onnx": ".onnx", "open_clip": ".pt"}  # name -> suffix


def format_of(file: Path, requested: str | None) -> str:
    """Return the export format of a file.

    Parameters
    ----------
    file : Path
        The file to write; its suffix decides if no format is requested.
    requested : str or None
        Name of a format, or None.

    Raises
    ------
    UnknownNameError
        The requested format is unknown.
    OptionError
        No format is requested and the suffix is unknown.
    """
    if requested is not None:
        if requested not in FORMATS:
            raise UnknownNameError("format", requested, FORMATS, f"known formats: {', '.join(FORMATS)}")
        return requested
    for name, suffix in FORMATS.items():
        if file.suffix.lower() == suffix:
            return name
    known = ", ".join(f"{suffix} ({name})" for name, suffix in FORMATS.items())
    raise OptionError(f"{file}: unknown suffix, expected one of {known}; rename the file or pass --format")


def refuse_reserved(file: Path) -> None:
    """Raise OptionError for a folder, and for the names of a run's own files."""
    if file.is_dir():
        raise OptionError(f"cannot export to {file}: it is a folder; choose another name")
    if file.name in (CLASSIFIER_FILE, METRICS_FILE):
        raise OptionError(f"cannot export to {file}: run folders use that name; choose another name")
