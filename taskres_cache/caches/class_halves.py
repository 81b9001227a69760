"""Base-to-new: a cache restricted to the first or the second half of its classes (CoOp's rule).

Few-shot splits are drawn from all classes and then cut down, as CoOp does, so that the base half trains on the same
images as in a fit of all classes.

Axes: C classes, N images.
"""

from math import ceil
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from taskres_cache.caches.contents import DEFAULT_PROMPTS, PromptSet, Split, TextBases
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.errors import CacheError, OptionError

Half = Literal["all", "base", "new"]
HALVES: tuple[str, ...] = get_args(Half)


def labels_of_half(classes: int, half: str) -> range:
    """Return the labels of a half: the first ceil(C/2) are base, the others new.

    Parameters
    ----------
    classes : int
        C, the number of classes.
    half : {"all", "base", "new"}
        Which labels to return.

    Raises
    ------
    OptionError
        `half` has another value.
    """
    if half not in HALVES:
        raise OptionError(f"classes must be one of {', '.join(HALVES)}, got {half!r}")
    middle = ceil(classes / 2)
    return {"all": range(classes), "base": range(middle), "new": range(middle, classes)}[half]


def open_cache(path: str | Path, half: str = "all") -> FeatureCache:
    """Open a cache, or the half of it with the base or the new classes.

    Parameters
    ----------
    path : str or Path
        The cache file.
    half : {"all", "base", "new"}
        Classes to keep.

    Raises
    ------
    OptionError
        `half` has another value.
    CacheError
        The file could not be used, see `FeatureCache`, or the half has fewer than two classes.
    """
    return FeatureCache(path) if half == "all" else CacheHalf(path, half)


class CacheHalf(FeatureCache):
    """A cache with half of its classes.

    Labels are renumbered from 0, and rows of other classes are in no partition and no split. Row numbers are those of
    the file.

    Parameters
    ----------
    path : str or Path
        The cache file.
    half : {"all", "base", "new"}
        Classes to keep.

    Raises
    ------
    OptionError
        `half` has another value.
    CacheError
        The file could not be used, see `FeatureCache`, or the half has fewer than two classes.
    """

    def __init__(self, path: str | Path, half: str) -> None:
        super().__init__(path)
        self.half = half
        self.kept = labels_of_half(len(self.classnames), half)
        if len(self.kept) < 2:
            raise CacheError(
                f"{path} has {len(self.classnames)} classes, and its {half} half has {len(self.kept)}; expected at "
                "least 2"
            )
        self._row_kept = (self.labels >= self.kept.start) & (self.labels < self.kept.stop)  # (N,)
        self.labels = self.labels - self.kept.start
        self.classnames = self.classnames[self.kept.start : self.kept.stop]
        if self.class_ids is not None:
            self.class_ids = self.class_ids[self.kept.start : self.kept.stop]
        if self.shown_names is not None:
            self.shown_names = self.shown_names[self.kept.start : self.kept.stop]
        self.splits = {name: Split(self._cut(s.train), self._cut(s.val)) for name, s in self.splits.items()}

    def rows(self, partition: str) -> np.ndarray:
        """Return the rows of a partition whose class is kept, int64."""
        return self._cut(super().rows(partition))

    def text_bases(self) -> TextBases:
        """Return the text features of the kept classes."""
        text = super().text_bases()
        kept = slice(self.kept.start, self.kept.stop)
        pre_projection = None if text.pre_projection is None else text.pre_projection[kept]
        return TextBases(text.templates, text.embeddings[kept], pre_projection, text.projection)

    def text(self, name: str | None = None) -> PromptSet:
        """Return the prompts of the kept classes, see `FeatureCache.text`."""
        name = self.prompts if name is None else name
        if name == DEFAULT_PROMPTS:
            return super().text(name)  # of `text_bases`, which is cut already
        prompts = super().text(name)
        kept = (prompts.labels >= self.kept.start) & (prompts.labels < self.kept.stop)  # (P,)
        return PromptSet(
            texts=tuple(text for text, is_kept in zip(prompts.texts, kept, strict=True) if is_kept),
            labels=prompts.labels[kept] - self.kept.start,
            embeddings=prompts.embeddings[kept],
            pre_projection=None if prompts.pre_projection is None else prompts.pre_projection[kept],
        )

    def _cut(self, rows: np.ndarray) -> np.ndarray:
        kept: np.ndarray = rows[self._row_kept[rows]]
        return kept
