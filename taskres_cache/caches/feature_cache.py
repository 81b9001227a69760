"""Read access to a cache file: partitions, few-shot splits, features and provenance; knows neither h5py nor torch.

Axes: N images, M train images, V augmented views, C classes, T templates, D embedding, W width of the text tower.
"""

from collections import Counter
from collections.abc import Callable
from copy import copy
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Self

import numpy as np

from taskres_cache.caches.contents import (
    DEFAULT_PROMPTS,
    WIDE,
    CacheContents,
    PromptSet,
    Rows,
    TextBases,
    ViewFamily,
    listed_splits,
)
from taskres_cache.caches.hdf5 import (
    StoredRows,
    arrays_without_checksum,
    read_arrays,
    read_everything,
    read_files,
    read_header,
    read_strings,
)
from taskres_cache.caches.layout import family_array
from taskres_cache.caches.schema import REMEDY
from taskres_cache.caches.soundness import (
    NO_TEXT,
    mismatched_row,
    refuse_unusable_base,
    refuse_unusable_text,
    unusable_row,
)
from taskres_cache.caches.stored_features import StoredFeatures
from taskres_cache.datasets import PARTITIONS
from taskres_cache.datasets.prompts import PROMPT_FORMS, fill_templates
from taskres_cache.errors import CacheError, CacheMismatchError, UnknownNameError
from taskres_cache.system.text import command


class FeatureCache(StoredFeatures):
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
        Templates (T,) of the text features; empty for a cache without text.
    splits : dict of (int, int) to Split
        Rows of the few-shot splits, by shots and seed.
    views : int
        V, the number of augmented views per train image; 0 without views.
    provenance : Provenance
        What the cache was made from: data set, backbone, checkpoint, preprocessing, versions.
    shown_names : tuple of str or None
        Names (C,) that the templates were filled with; None if these are the class names.
    prompts : str
        The set of prompts whose text features are used, one of `prompt_sets`; see `using`.

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
        self.family_rows, self.family_settings = header.family_rows, header.family_settings
        self._prompt_labels = header.prompt_labels
        self.views = header.views
        self.shapes = header.shapes
        self.shown_names = header.shown_names
        self.default_prompts = self.prompts = header.default_prompts

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
    def has_text(self) -> bool:
        """Whether there are text features; imported image features may come without."""
        return "text/embeddings" in self.shapes

    @property
    def text_features(self) -> np.ndarray:
        """The regular base (C, D), float32: the mean text feature of each class over the prompts, un-normalised."""
        return self.text().base

    def using(self, prompts: str) -> Self:
        """Return the cache with the text features of another set of prompts.

        Parameters
        ----------
        prompts : str
            One of `prompt_sets`.

        Raises
        ------
        UnknownNameError
            The cache has no set of that name.
        """
        self._refuse_unknown_set(prompts)
        other = copy(self)
        other.prompts = prompts
        return other

    @property
    def used_templates(self) -> tuple[str, ...]:
        """The templates (T,) of the set of prompts that is used; empty for sentences."""
        return self.templates if self.prompts == DEFAULT_PROMPTS else ()

    def text_bases(self) -> TextBases:
        """Return the text features per template, of the set `default`, and the text tower's projection.

        Raises
        ------
        CacheError
            There is no text, a row is not finite or only zeros, or the text features of all classes are equal.
        """
        self._refuse_unknown_set(DEFAULT_PROMPTS)
        arrays = read_arrays(self.path, "text/embeddings", "text/pre_projection", "text/projection")
        embeddings = arrays["text/embeddings"].astype(np.float32, copy=False)  # (C, T, D)
        refuse_unusable_text(self.path, embeddings)
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise CacheError(f"{self.path}: {name} has NaN or infinite values; {REMEDY}")
        return TextBases(self.templates, embeddings, arrays.get("text/pre_projection"), arrays.get("text/projection"))

    @property
    def prompt_sets(self) -> tuple[str, ...]:
        """Names of the sets of prompts: `default`, the filled templates, and the named ones; none without text."""
        return (*((DEFAULT_PROMPTS,) if self.has_text else ()), *self._prompt_labels)

    @property
    def named_sets(self) -> tuple[str, ...]:
        """Names of the sets of prompts other than `default`."""
        return tuple(self._prompt_labels)

    def text(self, name: str | None = None) -> PromptSet:
        """Return a set of prompts with its text features: any number per class, in label order.

        Parameters
        ----------
        name : str, optional
            One of `prompt_sets`. Defaults to the one that is used, `prompts`.

        Raises
        ------
        UnknownNameError
            The cache has no set of that name.
        CacheError
            A text feature is not finite or only zeros, or the means of all classes are equal.
        """
        name = self.prompts if name is None else name
        self._refuse_unknown_set(name)
        if name == DEFAULT_PROMPTS:
            return self._default_prompts()
        folder, labels = f"prompts/{name}", self._prompt_labels[name]
        arrays = read_arrays(self.path, f"{folder}/embeddings", f"{folder}/pre_projection")
        floats = {path.rsplit("/", 1)[1]: array.astype(np.float32, copy=False) for path, array in arrays.items()}
        for part, array in floats.items():
            if not np.isfinite(array).all():
                raise CacheError(f"{self.path}: {folder}/{part} has NaN or infinite values; {REMEDY}")
        fault = unusable_row(floats["embeddings"])
        if fault is not None:
            raise CacheError(f"{self.path}: {folder}/embeddings, row {fault[0]} {fault[1]}; {REMEDY}")
        texts = read_strings(self.path, f"{folder}/texts")
        found = PromptSet(texts, labels, floats["embeddings"], floats.get("pre_projection"))
        refuse_unusable_base(self.path, f"{folder}/embeddings", found.base)
        return found

    def _refuse_unknown_set(self, name: str) -> None:
        if name == DEFAULT_PROMPTS and not self.has_text:
            raise CacheError(f"{self.path} {NO_TEXT}")
        if name not in self.prompt_sets:
            known = ", ".join(self.prompt_sets)
            add = command("taskres", "extract", self.provenance.dataset, "--prompts-name", name, "--prompts", "FILE")
            raise UnknownNameError("set of prompts", name, self.prompt_sets, f"the cache has {known}; add it: {add}")

    def _default_prompts(self) -> PromptSet:
        """Return the set that format 1 has as a matrix of classes and templates; templates of imports stay as given."""
        bases, form = self.text_bases(), self.provenance.classnames_form
        fillable = form in PROMPT_FORMS and all(template.count("{}") == 1 for template in bases.templates)
        if fillable:
            rows = fill_templates(bases.templates, self.shown_names or self.classnames, form)
        else:
            rows = [list(bases.templates)] * len(self.classnames)
        classes, templates, dim = bases.embeddings.shape
        inputs = bases.pre_projection
        return PromptSet(
            texts=tuple(text for row in rows for text in row),
            labels=np.repeat(np.arange(classes), templates),
            embeddings=bases.embeddings.reshape(-1, dim),
            pre_projection=None if inputs is None else inputs.reshape(classes * templates, -1),
        )

    def contents(self) -> CacheContents:
        """Return everything that the file stores."""
        return self._contents(lambda name: read_arrays(self.path, name)[name])

    def stored_contents(self) -> CacheContents:
        """Return everything that the file stores; image features are read when they are sliced."""
        return self._contents(lambda name: StoredRows(self.path, name))

    def _contents(self, read: Callable[[str], Rows]) -> CacheContents:
        def optional(name: str) -> Rows | None:
            return read(name) if name in self.shapes else None

        files = self.files()
        families = {
            name: ViewFamily(
                settings=self.family_settings[name],
                rows=rows,
                image_features=read(family_array(name, "features")),
                pre_projection=optional(family_array(name, "pre_projection")),
            )
            for name, rows in self.family_rows.items()
        }
        return CacheContents(
            provenance=self.provenance,
            classnames=self.classnames,
            paths=tuple(path for path, _ in files),
            stamps=tuple(stamp for _, stamp in files),
            labels=self.labels,
            partitions=self.partitions,
            image_features=read("features/center"),
            text=self.text_bases() if self.has_text else None,
            splits=self.splits,
            skipped=self.skipped,
            class_ids=self.class_ids,
            augmented=optional("features/augmented"),
            augmented_rows=self.augmented_rows if self.views else None,
            image_projection=self.image_projection(),
            pre_projection=optional("features/pre_projection"),
            augmented_pre_projection=optional("features/augmented_pre_projection"),
            families=families,
            prompts={name: self.text(name) for name in self._prompt_labels},
            corrections=self.corrections.changes,
            shown_names=self.shown_names,
            default_prompts=self.default_prompts,
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

        `arrays_without_checksum` names the others. Also checks that pre-projections times their projection are the
        features, within the rounding of the precision.

        Returns
        -------
        dict of str to int
            Bytes read, by array name.

        Raises
        ------
        CacheDamagedError
            A checksum does not match.
        CacheError
            Pre-projections do not belong to the features.
        """
        sizes = read_everything(self.path)
        self.refuse_mismatched_projection()
        projection = self.text_bases().projection if self.has_text else None
        for name in self._prompt_labels:
            prompts = self.text(name)
            if prompts.pre_projection is not None and projection is not None:
                fault = mismatched_row(prompts.pre_projection @ projection, prompts.embeddings, "fp32")
                self._refuse_mismatch(fault, f"prompts/{name}/embeddings", "text/projection")
        return sizes

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
            "augmented views": self._counted_views() or "none",
            "embedding size": self.dim,
            "precision": self.provenance.precision,
            **({} if self.has_text else {"text": "none"}),
            "path": self.path,
            "created": f"{self.created_at} by {self.created_by}",
            **({"prompts": ", ".join(self.prompt_sets)} if self._prompt_labels else {}),
            **({"pre-projections": f"{self.shapes['image/projection'][0]} wide"} if self.has_pre_projection else {}),
        }

    def _counted_views(self) -> str:
        counts = {name: facts.views for name, facts in self.view_families.items()}
        return (
            str(self.views)
            if counts.keys() == {WIDE}
            else ", ".join(f"{count} {name}" for name, count in counts.items())
        )
