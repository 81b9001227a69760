"""The rows of a cache, by key: taken over where a cache or a killed run has them, encoded where nobody has.

Axes: N images, C classes, T templates, D embedding, W width of the text tower.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from taskres_cache.backbones import Backbone, TextFeatures
from taskres_cache.blocks import BlockFolder
from taskres_cache.contents import CacheContents, Provenance, TextBases
from taskres_cache.datasets.images import ImageSource
from taskres_cache.encoding import encode_image_blocks
from taskres_cache.errors import WeightsError
from taskres_cache.prompts import fill_templates

PROMPTS_PER_BLOCK = 64


class Progress(Protocol):
    """Hears how far stage one has come."""

    def begin(self, what: str, total: int, done: int) -> None:
        """`total` things are to be had, of which `done` were there already."""

    def advance(self, count: int) -> None:
        """So many more are done."""


class Silent:
    """A progress that nobody looks at."""

    def begin(self, what: str, total: int, done: int) -> None:
        """Take no notice."""

    def advance(self, count: int) -> None:
        """Take no notice."""


@dataclass(frozen=True)
class Already:
    """What need not be made again.

    Parameters
    ----------
    made_from : what the rows have to be made from to count.
    existing : a cache made from just that, or None.
    parts : folder of a killed run's finished blocks, there or not.
    """

    made_from: Provenance
    existing: CacheContents | None
    parts: Path

    def blocks(self, kind: str, *decisive: str) -> BlockFolder:
        """Return the finished blocks of a kind whose rows depend on the fields named."""
        return BlockFolder(self.parts, kind, {name: getattr(self.made_from, name) for name in decisive})


@dataclass(frozen=True)
class GatheredImages:
    """Feature (D,) of each readable path, why the others cannot be read, and how many were encoded just now."""

    rows: dict[str, np.ndarray]
    unreadable: dict[str, str]
    encoded: int


def gather_images(
    source: ImageSource,
    stamps: Mapping[str, str],
    backbone: Backbone,
    already: Already,
    batch_size: int | None,
    workers: int | None,
    progress: Progress,
) -> GatheredImages:
    """Return the features of the paths in `stamps`, each encoded once; a path with another stamp is another image.

    Parameters
    ----------
    source, stamps : the images, and path -> stamp.
    backbone : the frozen encoder.
    already : rows that are taken over.
    batch_size, workers : see `encoding.encode_image_blocks`.
    progress : told of every block.
    """
    blocks = already.blocks("image", "weights_sha256", "model_config", "precision", "preprocess")
    known = blocks.load() | _known_images(already.existing)
    keys = {path: _key(path, stamp) for path, stamp in stamps.items()}
    missing = [path for path, key in keys.items() if key not in known]
    unreadable: dict[str, str] = {}
    progress.begin(f"images of {already.made_from.dataset}", len(keys), len(keys) - len(missing))
    for block in encode_image_blocks(source, missing, backbone, batch_size, workers):
        features = block.image_features.astype(storage_dtype(backbone.precision))
        _refuse_unusable(block.paths, features, backbone)
        block_keys = [keys[path] for path in block.paths]
        if block_keys:
            blocks.write(block_keys, features)
        known.update(zip(block_keys, features, strict=True))
        unreadable.update(block.unreadable)
        progress.advance(len(block.paths) + len(block.unreadable))
    rows = {path: known[key] for path, key in keys.items() if path not in unreadable}
    return GatheredImages(rows, unreadable, len(missing) - len(unreadable))


def gather_text(
    templates: Sequence[str], classnames: Sequence[str], backbone: Backbone, already: Already, progress: Progress
) -> TextBases:
    """Return the text bases; blocks keep what the projection is fed, and the embeddings follow from it."""
    form = already.made_from.classnames_form
    prompts = fill_templates(templates, classnames, form)
    wanted = list(dict.fromkeys(prompt for row in prompts for prompt in row))
    blocks = already.blocks("text", "weights_sha256", "model_config")
    known = blocks.load() | _known_prompts(already.existing, form)
    missing = [prompt for prompt in wanted if prompt not in known]
    progress.begin(f"prompts of {already.made_from.dataset}", len(wanted), len(wanted) - len(missing))
    for start in range(0, len(missing), PROMPTS_PER_BLOCK):
        batch = missing[start : start + PROMPTS_PER_BLOCK]
        outputs = _tower_output(backbone.encode_texts(batch))
        blocks.write(batch, outputs)
        known.update(zip(batch, outputs, strict=True))
        progress.advance(len(batch))
    outputs = np.stack([np.stack([known[prompt] for prompt in row]) for row in prompts])  # (C, T, W), or (C, T, D)
    projection = backbone.projection
    if projection is None:
        return TextBases(tuple(templates), outputs)
    return TextBases(tuple(templates), outputs @ projection, outputs, projection)


def _refuse_unusable(paths: Sequence[str], features: np.ndarray, backbone: Backbone) -> None:
    """Raise WeightsError naming the first image whose feature is NaN or infinite, as in too low a precision."""
    finite = np.isfinite(features).all(axis=-1)
    if not finite.all():
        raise WeightsError(
            f"{backbone.name} ({backbone.pretrained}) makes NaN or infinite of {paths[int(np.argmin(finite))]} "
            f"in precision {backbone.precision}; use --precision fp32, or other weights"
        )


def storage_dtype(precision: str) -> type[np.floating]:
    """Return what features are stored as: float32 where the encoder computed in it, else float16."""
    return np.float32 if precision == "fp32" else np.float16


def _known_images(existing: CacheContents | None) -> dict[str, np.ndarray]:
    """Return key -> feature, from a cache."""
    if existing is None:
        return {}
    return dict(zip(map(_key, existing.paths, existing.stamps), existing.image_features, strict=True))


def _known_prompts(existing: CacheContents | None, form: str) -> dict[str, np.ndarray]:
    """Return prompt -> what the text tower made of it, from a cache."""
    if existing is None:
        return {}
    outputs = _tower_output(existing.text)
    prompts = fill_templates(existing.text.templates, existing.classnames, form)
    return {prompt: outputs[c, t] for c, row in enumerate(prompts) for t, prompt in enumerate(row)}


def _tower_output(text: TextFeatures | TextBases) -> np.ndarray:
    """Return what the projection is fed, or the embeddings of towers that have none."""
    return text.embeddings if text.pre_projection is None else text.pre_projection


def _key(path: str, stamp: str) -> str:
    return f"{path}|{stamp}"
