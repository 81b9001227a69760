"""Pixels through the frozen encoder, several batches side by side. Knows no files.

On a processor, each core is a lane that encodes batches of its own with one thread: nothing waits for anything, and a
feature is the same to the last bit however many cores there are. On a graphics card two lanes take turns, so that one's
pixels travel while the other's are encoded.

Axes: B renderings of a batch, R of a block, D embedding.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from time import perf_counter

import numpy as np
import torch

from taskres_cache.encoders.backbone import Backbone
from taskres_cache.encoders.decoding import DecodedBatch, WantedImage
from taskres_cache.errors import OptionError
from taskres_cache.system.devices import available_cores, freed_memory_kept

BLOCK_ROWS = 256  # what a killed run loses at most: seconds to a minute of encoding on a CPU
LANES_ON_GPU = 2

Block = Sequence[WantedImage]


@dataclass(frozen=True)
class Seconds:
    """Where the time went, summed over processes and threads; of processor time where images are decoded."""

    decode: float = 0.0
    transfer: float = 0.0
    encode: float = 0.0
    write: float = 0.0

    def __add__(self, other: "Seconds") -> "Seconds":
        """Return the sum of both, part by part."""
        return Seconds(*(one + another for one, another in zip(vars(self).values(), vars(other).values(), strict=True)))

    def shares(self) -> dict[str, float]:
        """Return the percentage of each part."""
        total = sum(vars(self).values())
        return {part: 100.0 * seconds / total if total else 0.0 for part, seconds in vars(self).items()}


@dataclass(frozen=True)
class EncodedBlock:
    """What came of a block of images.

    Parameters
    ----------
    images : those that could be read.
    image_features : (R, D) un-normalised, float32, of each image its renderings in their order.
    unreadable : path -> why an image could not be read.
    seconds : where the time went.
    """

    images: tuple[WantedImage, ...]
    image_features: np.ndarray
    unreadable: dict[str, str]
    seconds: Seconds


def in_blocks(images: Sequence[WantedImage], rows: int) -> list[Block]:
    """Return images in groups of up to `rows` renderings, never parting those of one image."""
    groups: list[list[WantedImage]] = []
    filled = rows
    for image in images:
        if filled + len(image.views) > rows:
            groups.append([])
            filled = 0
        groups[-1].append(image)
        filled += len(image.views)
    return list(groups)


@contextmanager
def lanes(backbone: Backbone) -> Iterator[ThreadPoolExecutor]:
    """Yield the threads that encode side by side."""
    before, on_cpu = torch.get_num_threads(), backbone.device.type == "cpu"
    with freed_memory_kept() if on_cpu else nullcontext():
        threads = ThreadPoolExecutor(lane_count(backbone), initializer=_begin_lane, initargs=(backbone.device,))
        try:
            yield threads
        finally:
            threads.shutdown(cancel_futures=True)
            torch.set_num_threads(before)  # what a thread sets for itself is what later threads start from


def lane_count(backbone: Backbone) -> int:
    """Return how many batches are encoded side by side."""
    return {"cpu": available_cores(), "cuda": LANES_ON_GPU}.get(backbone.device.type, 1)


def encoded_blocks(
    blocks: Sequence[Sequence[Block]],
    decoded: Iterator[DecodedBatch],
    threads: ThreadPoolExecutor,
    backbone: Backbone,
    batch_size: int,
) -> Iterator[EncodedBlock]:
    """Yield the features of each block, in their order.

    Batches never straddle blocks, so that a resumed run stacks the same images and gets the same bits.

    Parameters
    ----------
    blocks : the batches of each block.
    decoded : what came of those batches, one after the other.
    threads : of `lanes`.
    backbone : the frozen encoder.
    batch_size : renderings that are encoded together at most.
    """
    encoded = _in_order(decoded, threads, backbone, batch_size)
    for batches in blocks:
        yield _joined(list(islice(encoded, len(batches))))


def _in_order(
    decoded: Iterator[DecodedBatch], threads: ThreadPoolExecutor, backbone: Backbone, batch_size: int
) -> Iterator[EncodedBlock]:
    """Yield batches encoded, in their order, with enough of them under way that no lane waits for another."""
    under_way: deque[Future[EncodedBlock]] = deque()
    for batch in decoded:
        under_way.append(threads.submit(_encode, batch, backbone, batch_size))
        if len(under_way) > lane_count(backbone) + 1:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()


def _encode(batch: DecodedBatch, backbone: Backbone, batch_size: int) -> EncodedBlock:
    """Return the features of one batch, of which an image with many views may be larger than asked; runs in a lane."""
    if len(batch.pixels) == 0:
        return EncodedBlock((), np.empty((0, 0), np.float32), batch.unreadable, Seconds(decode=batch.seconds))
    started = perf_counter()
    pixels = backbone.on_device(batch.pixels)
    moved = perf_counter()
    features = np.concatenate([_encode_what_fits(piece, backbone) for piece in pixels.split(batch_size)])
    seconds = Seconds(batch.seconds, moved - started, perf_counter() - moved)
    return EncodedBlock(batch.images, features, batch.unreadable, seconds)


def _encode_what_fits(pixels: torch.Tensor, backbone: Backbone) -> np.ndarray:
    """Return the features of a batch, in halves where the device has too little memory for the whole."""
    try:
        return backbone.encode_images(pixels)
    except torch.OutOfMemoryError as error:
        if len(pixels) == 1:
            raise OptionError(
                f"device {backbone.device} has too little memory to encode one image with {backbone.name}; free some, "
                "or use --device cpu"
            ) from error
    torch.cuda.empty_cache()
    return np.concatenate([_encode_what_fits(half, backbone) for half in pixels.tensor_split(2)])


def _joined(parts: Sequence[EncodedBlock]) -> EncodedBlock:
    """Return the batches of a block as one."""
    features = [part.image_features for part in parts if part.images]
    return EncodedBlock(
        images=tuple(image for part in parts for image in part.images),
        image_features=np.concatenate(features) if features else np.empty((0, 0), np.float32),
        unreadable={path: reason for part in parts for path, reason in part.unreadable.items()},
        seconds=sum((part.seconds for part in parts), Seconds()),
    )


def _begin_lane(device: torch.device) -> None:
    """Set up a thread: one core on a processor, a stream of its own on a graphics card."""
    if device.type == "cpu":
        torch.set_num_threads(1)
    elif device.type == "cuda":
        torch.cuda.set_device(device)
        torch.cuda.set_stream(torch.cuda.Stream(device))
