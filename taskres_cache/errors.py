"""All errors of the library; a message names the thing, what was expected, what was found, and the remedy."""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches


class TaskresError(Exception):
    """The work failed for a reason that the user can fix; the message is one clear line.

    Examples
    --------
    >>> from taskres_cache import FeatureCache, TaskresError
    >>> try:
    ...     FeatureCache("nowhere.h5")
    ... except TaskresError as error:
    ...     print(type(error).__name__)
    CacheError
    """

    @property
    def lines(self) -> tuple[str, ...]:
        """The message as lines: one, for all errors but those that list files."""
        return (str(self),)


class OptionError(TaskresError):
    """An option or argument has an invalid value."""


class UnknownNameError(OptionError):
    """A name (of a data set, backbone, tag) is unknown; the message suggests similar names.

    Parameters
    ----------
    kind : str
        What the name stands for, as in "unknown data set 'digit'".
    name : str
        The unknown name.
    known : iterable of str
        The known names.
    remedy : str
        What to do if none of the similar names is meant.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], remedy: str) -> None:
        near = near_matches(name, known)
        hint = f"; did you mean {' or '.join(repr(match) for match in near)}?" if near else ";"
        super().__init__(f"unknown {kind} {name!r}{hint} {remedy}")
        self.near = near


class DatasetError(TaskresError):
    """A data set on disk does not have the expected layout."""


class UnreadableImagesError(TaskresError):
    """Some images could not be decoded; all others are encoded and kept.

    Parameters
    ----------
    reasons : mapping of str to str
        Path of each unreadable image to the reason.
    """

    def __init__(self, reasons: Mapping[str, str]) -> None:
        listed = tuple(f"  {path}: {reason}" for path, reason in reasons.items())
        images = "1 image" if len(reasons) == 1 else f"{len(reasons)} images"
        summary = (
            f"could not read {images}; all others are encoded and kept. Fix or remove the unreadable ones and run the "
            "same command again, or pass --skip-unreadable to leave them out:"
        )
        self._lines = (summary, *listed)
        super().__init__("\n".join(self._lines))
        self.reasons = dict(reasons)

    @property
    def lines(self) -> tuple[str, ...]:
        """The summary, and a line per image."""
        return self._lines


class PictureError(TaskresError):
    """A picture could not be read, or is not in a form that can be predicted."""


class WeightsError(TaskresError):
    """A checkpoint could not be loaded, or does not fit the model."""


class ArraysError(TaskresError):
    """Arrays of the user are inconsistent or have invalid values."""


class EstimatorError(OptionError, ValueError):
    """A parameter or array of an estimator is invalid; also a ValueError, as users of scikit-learn expect."""


class CacheError(TaskresError):
    """A cache file is missing or invalid."""


class CacheDamagedError(CacheError):
    """A cache file is truncated, or its content does not match its checksums."""


class CacheMismatchError(CacheError):
    """A cache was made from other inputs than expected.

    Parameters
    ----------
    path : path-like
        The cache file.
    differing : mapping of str to tuple
        Field to (value in the cache, expected value).
    remedy : str
        What to do.
    """

    def __init__(self, path: object, differing: Mapping[str, tuple[object, object]], remedy: str) -> None:
        fields = "; ".join(
            f"{name}: cache has {has!r}, expected {expected!r}" for name, (has, expected) in differing.items()
        )
        super().__init__(f"{path} was made from other inputs: {fields}; {remedy}")
        self.differing = dict(differing)


class FitError(TaskresError):
    """A fit produced values that are not finite."""


class RunError(TaskresError):
    """A run folder is missing or incomplete, or does not match the cache it is used with."""


class ExportError(TaskresError):
    """A run could not be exported, or the exported file does not give the run's predictions."""


class MissingExtraError(TaskresError):
    """Optional packages are not installed.

    Parameters
    ----------
    what : str
        What needs which packages, as in "`taskres export` to ONNX needs onnxruntime".
    extra : str
        The extra of taskres-cache that installs them.
    """

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} (not installed): pip install 'taskres-cache[{extra}]'")
        self.extra = extra


class StorageError(TaskresError):
    """A file or folder could not be written."""


class BusyError(TaskresError):
    """Another process is writing the same cache."""


class DecodingError(TaskresError):
    """A process that decodes images died."""


class RankError(TaskresError):
    """One of several processes that share a job cannot continue."""


def near_matches(name: str, known: Iterable[str]) -> list[str]:
    """Return up to three known names that are similar to `name`, ignoring case, spaces and punctuation.

    A name that is then the same is the only match. Names that contain `name` come last: difflib does not find
    `ViT-B-16-SigLIP` for `siglip`.
    """
    by_plain: dict[str, str] = {}
    for candidate in known:
        by_plain.setdefault(_plain(candidate), candidate)
    wish = _plain(name)
    if wish in by_plain:
        return [by_plain[wish]]
    near = get_close_matches(wish, by_plain, n=3, cutoff=0.6)
    containing = [plain for plain in by_plain if len(wish) > 2 and wish in plain]
    return [by_plain[plain] for plain in list(dict.fromkeys([*near, *containing]))[:3]]


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()
