"""Read access to a cache file: partitions, few-shot splits, features and provenance; knows neither h5py nor torch.

Axes: N images, M train images, V augmented views, C classes, T templates, D embedding, W width of the text tower.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from html import escape
from pathlib import Path

import numpy as np

from taskres_cache.caches.contents import CacheContents, TextBases, listed_splits, regular_base
from taskres_cache.caches.hdf5 import (
    arrays_without_checksum,
    iterate_rows,
    read_arrays,
    read_everything,
    read_files,
    read_header,
    read_rows,
)
from taskres_cache.caches.labelled import LabelledImages
from taskres_cache.caches.schema import REMEDY
from taskres_cache.caches.soundness import all_equal, unusable_row
from taskres_cache.datasets import PARTITIONS
from taskres_cache.errors import CacheError, CacheMismatchError


class FeatureCache(LabelledImages):
    """Read a cache file: small arrays are loaded at once, features on demand.

    The file is open only while it is read. N images, C classes, T templates, D embedding size.

    Parameters
    ----------
    path : str or Path
        The cache file.

    Attributes
    ----------
    classnames : tuple of str
        Class names (C,) in label order.
    labels : ndarray of shape (N,), int32
        Positions in `classnames`.
    partitions : ndarray of shape (N,), uint8
        0 for train, 1 for val, 2 for test.
    templates : tuple of str
        Templates (T,) of the text features.
    splits : dict of (int, int) to Split
        Rows of the few-shot splits, by shots and seed.
    views : int
        V, the number of augmented views per train image; 0 without views.
    provenance : Provenance
        What the cache was made from: data set, backbone, checkpoint, preprocessing, versions.

    Raises
    ------
    CacheError
        The file does not exist, is not a cache or has a newer format; an array is missing or does not match the others.
    CacheDamagedError
        The file is truncated, or a checksum does not match.

    Examples
    --------
    >>> from taskres_cache import FeatureCache
    >>> cache = FeatureCache("cache/glyph-clip-bundled/digits.h5")
    >>> len(cache.classnames), cache.dim
    (10, 64)
    >>> image_features, labels = cache.train(shots=16, seed=1)
    >>> image_features.shape, image_features.dtype, labels.shape
    ((160, 64), dtype('float32'), (160,))

    Zero-shot classification of the test images, by cosine similarity to the text features:

    >>> import numpy as np
    >>> image_features, labels = cache.test()
    >>> text_features = cache.text_features / np.linalg.norm(cache.text_features, axis=1, keepdims=True)
    >>> predictions = (image_features @ text_features.T).argmax(axis=1)
    >>> bool((predictions == labels).mean() > 0.9)
    True
    """

    half = "all"  # which classes, see `class_halves.CacheHalf`

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        header = read_header(self.path)
        self.provenance = header.provenance
        self.created_at, self.created_by = header.created_at, header.created_by
        self.classnames, self.class_ids = header.classnames, header.class_ids
        self.labels, self.partitions = header.labels, header.partitions
        self.templates = header.templates
        self.splits = header.splits
        self.skipped = header.skipped
        self.augmented_rows = header.augmented_rows
        self.views = header.views
        self.shapes = header.shapes

    def __repr__(self) -> str:
        return f"FeatureCache({str(self.path)!r}: {len(self.labels)} images, {len(self.classnames)} classes)"

    def _repr_html_(self) -> str:
        """Return the main facts as an HTML table for notebooks."""
        cells = "".join(
            f'<tr><th scope="row" style="text-align: left">{escape(name)}</th>'
            f'<td style="text-align: left">{escape(str(value))}</td></tr>'
            for name, value in self._facts().items()
        )
        return f"<table><caption>FeatureCache</caption><tbody>{cells}</tbody></table>"

    @property
    def dim(self) -> int:
        """D, the embedding size."""
        return int(self.shapes["features/center"][1])

    def image_features(self, rows: np.ndarray) -> np.ndarray:
        """Return the image features of some rows.

        Parameters
        ----------
        rows : ndarray of shape (N,), int64
            Row numbers, in any order.

        Returns
        -------
        ndarray of shape (N, D), float32
            Un-normalised, in the order of `rows`.
        """
        features = np.empty((len(rows), self.dim), dtype=np.float32)
        for positions, piece in self.pieces(rows):
            features[positions] = piece
        return features

    def pieces(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the image features of some rows, one chunk of the file at a time.

        Each chunk is read once, and memory never holds more than one.

        Parameters
        ----------
        rows : ndarray of shape (N,), int64
            Row numbers, in any order.

        Yields
        ------
        positions : ndarray of shape (n,), int64
            Positions in `rows`.
        image_features : ndarray of shape (n, D), float32
            Un-normalised features of these rows.

        Raises
        ------
        CacheError
            A row is not finite or only zeros, or the features of several images are all equal.
        """
        first, alike = None, True
        for positions, piece in self._usable_pieces("features/center", rows):
            first = piece[:1].copy() if first is None else first  # a view would keep the first chunk in memory
            alike = alike and bool((piece == first).all())
            yield positions, piece
        if alike and len(np.unique(rows)) > 1:
            raise CacheError(f"{self.path}: the features of all {len(rows)} images are equal; {REMEDY}")

    def augmented_pieces(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the features of the augmented views of some rows, one chunk of the file at a time.

        Parameters
        ----------
        rows : ndarray of shape (N,), int64
            Row numbers of train images, in any order.

        Yields
        ------
        positions : ndarray of shape (n,), int64
            Positions in `rows`.
        image_features : ndarray of shape (n, V, D), float32
            Un-normalised features of the views.

        Raises
        ------
        CacheError
            The cache has no augmented views for one of the rows, or the features of a view are unusable.
        """
        place_of = {row: place for place, row in enumerate(self.augmented_rows.tolist())}
        places = [place_of.get(row) for row in rows.tolist()]
        if None in places:
            row = int(rows[places.index(None)])
            raise CacheError(f"{self.path} has no augmented views for row {row}; add them: taskres extract --views")
        yield from self._usable_pieces("features/augmented", np.array(places, np.int64))

    def _usable_pieces(self, name: str, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield rows of an array a chunk at a time; raises CacheError at the first row without a direction."""
        for positions, piece in iterate_rows(self.path, name, rows):
            fault = unusable_row(piece.reshape(-1, self.dim))
            if fault is not None:
                row = int(rows[positions[fault[0] * len(piece) // piece[..., 0].size]])
                raise CacheError(f"{self.path}: {name}, row {row} {fault[1]}; {REMEDY}")
            yield positions, piece

    def stored(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Return some rows of the array `name`, in the order of `rows` and in the stored type."""
        return read_rows(self.path, name, rows)

    def files(self) -> list[tuple[str, str]]:
        """Return path and stamp of each image (N,); stamps are "unknown" if another program left them out.

        Raises
        ------
        CacheError
            A path occurs twice, so that an image may be in two partitions.
        """
        files = read_files(self.path)
        paths = [path for path, _ in files]
        if len(set(paths)) < len(paths):
            twice, count = Counter(paths).most_common(1)[0]
            raise CacheError(f"{self.path}: images/path has {twice!r} {count} times, expected once; {REMEDY}")
        return files

    @property
    def text_features(self) -> np.ndarray:
        """The regular base (C, D), float32: the mean of the text features over templates, un-normalised."""
        return regular_base(self.text_bases().embeddings)

    def text_bases(self) -> TextBases:
        """Return the text features per template, and the text tower's projection.

        Raises
        ------
        CacheError
            A row is not finite or only zeros, or the text features of all classes are equal.
        """
        arrays = read_arrays(self.path, "text/embeddings", "text/pre_projection", "text/projection")
        embeddings = arrays["text/embeddings"].astype(np.float32, copy=False)  # (C, T, D)
        _refuse_unusable_text(self.path, embeddings)
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise CacheError(f"{self.path}: {name} has NaN or infinite values; {REMEDY}")
        return TextBases(self.templates, embeddings, arrays.get("text/pre_projection"), arrays.get("text/projection"))

    def contents(self) -> CacheContents:
        """Return everything that the file stores."""
        files = self.files()
        augmented = ("features/augmented",) if self.views else ()
        arrays = read_arrays(self.path, "features/center", *augmented)
        return CacheContents(
            provenance=self.provenance,
            classnames=self.classnames,
            paths=tuple(path for path, _ in files),
            stamps=tuple(stamp for _, stamp in files),
            labels=self.labels,
            partitions=self.partitions,
            image_features=arrays["features/center"],
            text=self.text_bases(),
            splits=self.splits,
            skipped=self.skipped,
            class_ids=self.class_ids,
            augmented=arrays.get("features/augmented"),
            augmented_rows=self.augmented_rows if self.views else None,
        )

    def expect(self, remedy: str, **expected: object) -> None:
        """Check fields of the provenance, or `templates`.

        Parameters
        ----------
        remedy : str
            End of the error message.
        **expected
            Expected value by field.

        Raises
        ------
        CacheMismatchError
            Some fields differ; the message lists them.
        """
        has = {**asdict(self.provenance), "templates": self.templates}
        differing = {name: (has[name], value) for name, value in expected.items() if has[name] != value}
        if differing:
            raise CacheMismatchError(self.path, differing, remedy)

    def verify(self) -> dict[str, int]:
        """Read every array of the file, and so check the checksums of those that have one.

        `arrays_without_checksum` names the others.

        Returns
        -------
        dict of str to int
            Bytes read, by array name.

        Raises
        ------
        CacheDamagedError
            A checksum does not match.
        """
        return read_everything(self.path)

    def arrays_without_checksum(self) -> tuple[str, ...]:
        """Return the names of the arrays in which a flipped byte cannot be found; none if this program wrote them."""
        return arrays_without_checksum(self.path)

    def _facts(self) -> dict[str, object]:
        """Return what a reader of a notebook wants to know."""
        return {
            "data set": self.provenance.dataset,
            "backbone": self.provenance.backbone,
            "checkpoint": self.provenance.pretrained,
            "images": ", ".join(f"{len(self.rows(partition)):,} {partition}" for partition in PARTITIONS),
            "classes": f"{len(self.classnames):,}" + (f" ({self.half} half)" if self.half != "all" else ""),
            "few-shot splits": listed_splits(self.splits),
            "augmented views": self.views or "none",
            "embedding size": self.dim,
            "precision": self.provenance.precision,
            "path": self.path,
            "created": f"{self.created_at} by {self.created_by}",
        }


def _refuse_unusable_text(path: Path, embeddings: np.ndarray) -> None:
    """Raise CacheError if text features have no direction, or are equal for all classes."""
    classes, templates, dim = embeddings.shape
    for what, features in (("prompt", embeddings), ("mean over templates", embeddings.mean(axis=1, keepdims=True))):
        fault = unusable_row(features.reshape(-1, dim))
        if fault is not None:
            label = fault[0] // features.shape[1]
            raise CacheError(f"{path}: text/embeddings of class {label} ({what}) {fault[1]}; {REMEDY}")
    if all_equal(embeddings.reshape(classes, templates * dim)):
        raise CacheError(f"{path}: text/embeddings are equal for all {classes} classes; {REMEDY}")
