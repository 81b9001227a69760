"""Which labels of a data set were corrected, as plain values."""

from dataclasses import dataclass
from typing import Any, NamedTuple


class Change(NamedTuple):
    """The correction of one image.

    Parameters
    ----------
    path : str
        Path in the data set's image source.
    original : str
        Class name before the correction.
    label : str
        Class name after it; empty if the image is left out.
    original_part, part : str
        Its part before and after the correction.
    """

    path: str
    original: str
    label: str
    original_part: str
    part: str


@dataclass(frozen=True)
class Corrections:
    """What was corrected after a data set was read.

    Parameters
    ----------
    changes : tuple of Change
        The images that differ from how they were read.
    files : tuple of (str, str)
        Name and SHA-256 of each file of corrections.
    paths : frozenset of str
        Every image that the corrections mention, also those whose label stays.
    """

    changes: tuple[Change, ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    paths: frozenset[str] = frozenset()

    @property
    def counts(self) -> dict[str, int]:
        """How many images were relabelled, left out, and moved to another part."""
        kept = [change for change in self.changes if change.label]
        return {
            "relabelled": sum(change.label != change.original for change in kept),
            "left_out": len(self.changes) - len(kept),
            "moved": sum(change.part != change.original_part for change in kept),
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """A note that counts the changes."""
        if not self.changes:
            return ("the corrections change no label",)
        counts = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in self.counts.items())
        return (f"corrected labels: {counts}",)

    def as_plain(self) -> dict[str, Any]:
        """Return files and counts as plain values for JSON; empty without changes."""
        return {"files": dict(self.files), **self.counts} if self.changes else {}
