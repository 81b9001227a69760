"""Images through the frozen encoder, block after block: decode, stack, encode. Knows no file format.

Axes: B images of a batch, R of a block, D embedding.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import ceil

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from taskres_cache.backbones import Backbone, Transform
from taskres_cache.datasets.images import ImageSource

BLOCK_ROWS = 256  # what a killed run loses at most: seconds to a minute of encoding on a CPU
MANY_WORKERS = 8


@dataclass(frozen=True)
class EncodedBlock:
    """Un-normalised features (R, D), float32, of the readable images of one block, and why the others are not there."""

    paths: tuple[str, ...]
    image_features: np.ndarray
    unreadable: dict[str, str]


def encode_image_blocks(
    source: ImageSource, paths: Sequence[str], backbone: Backbone, batch_size: int | None, workers: int | None
) -> Iterator[EncodedBlock]:
    """Yield the features of `paths` in their order, `BLOCK_ROWS` images a block.

    Parameters
    ----------
    source, paths : the images.
    backbone : the frozen encoder.
    batch_size : images a batch; None is 32 on a CPU and 256 elsewhere.
    workers : decoding processes; None is none on a CPU, which the encoder fills by itself, and up to 8 elsewhere.
    """
    on_cpu = backbone.device.type == "cpu"
    batch_size = batch_size or (32 if on_cpu else BLOCK_ROWS)
    workers = workers if workers is not None else 0 if on_cpu else min(MANY_WORKERS, os.cpu_count() or 1)
    blocks = [paths[start : start + BLOCK_ROWS] for start in range(0, len(paths), BLOCK_ROWS)]
    # Batches never straddle a block, so that a resumed run stacks the same images and gets the same bits.
    batches = [
        list(range(number * BLOCK_ROWS + start, number * BLOCK_ROWS + min(start + batch_size, len(block))))
        for number, block in enumerate(blocks)
        for start in range(0, len(block), batch_size)
    ]
    loader = DataLoader(
        _Decoder(source, paths, backbone.transform),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=backbone.device.type == "cuda",
    )
    decoded = iter(loader)
    for block in blocks:
        yield _encode_block(block, islice(decoded, ceil(len(block) / batch_size)), backbone)


@dataclass(frozen=True)
class _Batch:
    """Pixels of the readable images (B, 3, H, W), or None when there are none, and path -> reason for the others."""

    pixels: Tensor | None
    unreadable: dict[str, str]


class _Decoder(TorchDataset[tuple[str, Tensor | str]]):
    """Decodes and preprocesses one image; one that cannot be read comes back as the reason why."""

    def __init__(self, source: ImageSource, paths: Sequence[str], transform: Transform) -> None:
        self._source, self._paths, self._transform = source, paths, transform

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, position: int) -> tuple[str, Tensor | str]:
        path = self._paths[position]
        try:
            return path, self._transform(self._source.read(path))
        except Exception as error:  # noqa: BLE001  broken files make Pillow's many decoders raise nearly anything
            return path, " ".join(str(error).split()) or type(error).__name__


def _collate(samples: list[tuple[str, Tensor | str]]) -> _Batch:
    pixels = [outcome for _, outcome in samples if isinstance(outcome, Tensor)]
    unreadable = {path: outcome for path, outcome in samples if isinstance(outcome, str)}
    return _Batch(torch.stack(pixels) if pixels else None, unreadable)


def _encode_block(block: Sequence[str], batches: Iterable[_Batch], backbone: Backbone) -> EncodedBlock:
    features: list[np.ndarray] = []
    unreadable: dict[str, str] = {}
    for batch in batches:
        unreadable.update(batch.unreadable)
        if batch.pixels is not None:
            features.append(backbone.encode_images(batch.pixels))
    readable = tuple(path for path in block if path not in unreadable)
    return EncodedBlock(readable, np.concatenate(features) if features else np.empty((0, 0), np.float32), unreadable)
