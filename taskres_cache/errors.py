"""What can go wrong: every message names the thing, what was expected, what came, and the remedy."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches


class TaskresError(Exception):
    """The work failed for a reason that a person can act on; the message is one clear line."""


class OptionError(TaskresError):
    """An option or argument has a value that cannot be used."""


class UnknownNameError(OptionError):
    """A name (data set, backbone, tag) that is not known; the message offers near matches.

    Parameters
    ----------
    kind : what the name should name, as in "unknown data set 'digit'".
    name : the name that was given.
    known : the names that would have been understood.
    remedy : what to do when none of the near matches is meant.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], remedy: str) -> None:
        near = near_matches(name, known)
        hint = f"; did you mean {' or '.join(repr(match) for match in near)}?" if near else ";"
        super().__init__(f"unknown {kind} {name!r}{hint} {remedy}")
        self.near = near


class DatasetError(TaskresError):
    """A data set on disk is not in the layout it should be in."""


class UnreadableImagesError(TaskresError):
    """Some images could not be decoded; all others have been encoded and kept.

    Parameters
    ----------
    reasons : path of each unreadable image -> why it could not be read.
    """

    def __init__(self, reasons: Mapping[str, str]) -> None:
        listed = "".join(f"\n  {path}: {reason}" for path, reason in reasons.items())
        plural = "image cannot" if len(reasons) == 1 else "images cannot"
        super().__init__(
            f"{len(reasons)} {plural} be read; the features of all others are kept: mend or remove these and run "
            f"the same command again, or pass --skip-unreadable to go on without them{listed}"
        )
        self.reasons = dict(reasons)


class WeightsError(TaskresError):
    """A checkpoint cannot be had, or does not fit the model."""


class ArraysError(TaskresError):
    """Arrays brought by the user disagree with each other or hold values that cannot be used."""


class EstimatorError(OptionError, ValueError):
    """A parameter or an array that an estimator cannot use; a ValueError too, as scikit-learn's users expect."""


class CacheError(TaskresError):
    """A cache file cannot be used as it is."""


class CacheDamagedError(CacheError):
    """A cache file is truncated, or a checksum says that bytes have changed since it was written."""


class CacheMismatchError(CacheError):
    """A cache was made from something else than the caller expects.

    Parameters
    ----------
    path : the cache file.
    differing : field -> (what the cache has, what was expected).
    remedy : what to do about it.
    """

    def __init__(self, path: object, differing: Mapping[str, tuple[object, object]], remedy: str) -> None:
        fields = "; ".join(
            f"{name}: cache has {has!r}, expected {expected!r}" for name, (has, expected) in differing.items()
        )
        super().__init__(f"{path} was made from something else: {fields}; {remedy}")
        self.differing = dict(differing)


class FitError(TaskresError):
    """A fit came to numbers that mean nothing."""


class RunError(TaskresError):
    """A run folder is missing, incomplete, or does not go with the cache it is used on."""


class ExportError(TaskresError):
    """A run could not be exported, or what was exported does not say what the run says."""


class MissingExtraError(TaskresError):
    """Something needs packages that are no part of a plain installation.

    Parameters
    ----------
    what : what needs which package, as in "`taskres export` to ONNX needs onnxruntime".
    extra : the extra of taskres-cache that brings it.
    """

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what}, missing here: pip install 'taskres-cache[{extra}]'")
        self.extra = extra


class StorageError(TaskresError):
    """A file or folder cannot be written."""


class BusyError(TaskresError):
    """Another process is making the same cache."""


class DecodingError(TaskresError):
    """A process that decodes images died."""


class RankError(TaskresError):
    """Several processes work together, and one of them cannot go on."""


def near_matches(name: str, known: Iterable[str]) -> list[str]:
    """Return up to three known names that look like `name`, whatever the case."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    return [by_lower[match] for match in get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)]
