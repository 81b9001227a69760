"""The pipeline from image files to features: processes decode batches while threads encode them.

On a CPU each core is a lane that encodes its own batches with one thread. No lane waits for another, and a feature has
the same bits on any number of cores. On a GPU there are two lanes: one transfers pixels while the other encodes.

Axes: B renderings of a batch, R rows of a block, D embedding, I width of the image tower.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from time import perf_counter
from typing import TypeVar

import numpy as np
import torch

from taskres_cache.datasets.images import ImageSource
from taskres_cache.encoders.backbone import Backbone
from taskres_cache.encoders.decoding import DecodedBatch, Decoding, WantedImage, decoded_batches
from taskres_cache.encoders.views import CENTER
from taskres_cache.errors import OptionError
from taskres_cache.system.accelerator import (
    FIRST_LANE_STREAM,
    is_out_of_memory,
    own_stream,
    return_unused_memory,
)
from taskres_cache.system.devices import available_cores, freed_memory_kept
from taskres_cache.system.progress import Progress, default_progress

BLOCK_ROWS = 256  # the most that a killed run loses: seconds to a minute of encoding on a CPU
LANES_ON_GPU = 2

Block = Sequence[WantedImage]
Encoded = tuple[np.ndarray, np.ndarray | None]  # features (B, D), inputs of the last linear map (B, I)


@dataclass(frozen=True, kw_only=True)
class EncodingOptions:
    """How images are decoded and encoded. Provenance does not record these options.

    Parameters
    ----------
    batch_size : int, optional
        Renderings per batch. Defaults to 16 per core on a CPU, and to what fits into memory on a GPU.
    workers : int, optional
        Decoding processes; 0 decodes in the calling process. Defaults to one per core. On a CPU they run at low
        priority, so that encoding comes first.

    Raises
    ------
    OptionError
        `batch_size` is not positive, or `workers` is negative.
    """

    batch_size: int | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise OptionError(f"batch-size must be positive, got {self.batch_size}")
        if self.workers is not None and self.workers < 0:
            raise OptionError(f"workers must not be negative, got {self.workers}")


@dataclass(frozen=True)
class Seconds:
    """Seconds per stage, summed over processes and threads; `decode` counts processor time, the others wall time."""

    decode: float = 0.0
    transfer: float = 0.0
    encode: float = 0.0
    write: float = 0.0

    def __add__(self, other: "Seconds") -> "Seconds":
        """Return the sum per stage."""
        return Seconds(*(one + another for one, another in zip(vars(self).values(), vars(other).values(), strict=True)))

    def shares(self) -> dict[str, float]:
        """Return the percentage of each stage."""
        total = sum(vars(self).values())
        return {stage: 100.0 * seconds / total if total else 0.0 for stage, seconds in vars(self).items()}


@dataclass(frozen=True)
class EncodedBlock:
    """The features of a block of images.

    Parameters
    ----------
    images : tuple of WantedImage
        The images that could be read.
    image_features : ndarray of shape (R, D), float32
        Un-normalised features: for each image its renderings in order.
    unreadable : dict of str to str
        Path -> reason, of the images that could not be read.
    seconds : Seconds
        Where the time went.
    pre_projection : ndarray of shape (R, I), float32, or None
        Inputs of the image tower's last linear map; None for towers without one.
    """

    images: tuple[WantedImage, ...]
    image_features: np.ndarray
    unreadable: dict[str, str]
    seconds: Seconds
    pre_projection: np.ndarray | None = None


def in_blocks(images: Sequence[WantedImage], rows: int) -> list[Block]:
    """Return images in groups of up to `rows` renderings; the renderings of one image stay in one group."""
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
def encoded(
    blocks: Sequence[Block], source: ImageSource, backbone: Backbone, options: EncodingOptions
) -> Iterator[Iterator[EncodedBlock]]:
    """Yield an iterator over the features of each block, in order.

    Batches never span two blocks, so that a resumed run stacks the same images and gets the same bits.

    Parameters
    ----------
    blocks : sequence of Block
        Images, each with the renderings to encode.
    source : ImageSource
        Reads the images.
    backbone : Backbone
        The frozen encoder.
    options : EncodingOptions
        Batch size and decoding processes.

    Raises
    ------
    DecodingError
        A decoding process died, for example because it ran out of memory.
    OptionError
        The device has too little memory for a single image.
    """
    if not blocks:
        yield iter(())
        return
    size = options.batch_size or default_batch_size(backbone)
    workers = available_cores() if options.workers is None else options.workers
    how = Decoding(source, backbone.framing, workers, low_priority=backbone.device.type == "cpu")
    batches = [in_blocks(block, size) for block in blocks]
    encode = partial(_encode, backbone=backbone, batch_size=size)
    with decoded_batches([batch for block in batches for batch in block], how) as decoded, lanes(backbone) as threads:
        done = _encoded_in_order(decoded, threads, encode, lane_count(backbone) + 1)
        yield (_joined(list(islice(done, len(block)))) for block in batches)


def encoded_images(
    what: str,
    paths: Sequence[str],
    source: ImageSource,
    backbone: Backbone,
    options: EncodingOptions,
    progress: Progress | None = None,
) -> EncodedBlock:
    """Return the features of images, all in memory, without augmented views.

    Parameters
    ----------
    what : str
        Name of the work in the progress.
    paths : sequence of str
        The images.
    source : ImageSource
        Reads the images.
    backbone : Backbone
        The frozen encoder.
    options : EncodingOptions
        Batch size and decoding processes; by default no process for a single batch.
    progress : Progress, optional
        Called after each block of images. Defaults to a progress bar on a terminal or in a notebook.

    Raises
    ------
    DecodingError
        A decoding process died, for example because it ran out of memory.
    """
    images, parts = [WantedImage(path, (CENTER,)) for path in paths], []
    options = without_needless_workers(options, len(images), backbone)
    with default_progress() if progress is None else nullcontext(progress) as shown:
        shown.begin(what, len(images), 0)
        with encoded(in_blocks(images, BLOCK_ROWS), source, backbone, options) as blocks:
            for block in blocks:
                parts.append(block)
                shown.advance(len(block.images) + len(block.unreadable))
    return _joined(parts)


Options = TypeVar("Options", bound=EncodingOptions)


def without_needless_workers(options: Options, images: int, backbone: Backbone) -> Options:
    """Return options that start no process for a single batch: decoding a batch is faster than starting a process."""
    size = options.batch_size or default_batch_size(backbone)
    is_one_batch = images <= min(size, BLOCK_ROWS)
    return replace(options, batch_size=size, workers=0 if is_one_batch and options.workers is None else options.workers)


def default_batch_size(backbone: Backbone) -> int:
    """Return how many renderings are encoded together unless the user says otherwise."""
    return backbone.batch_that_fits(BLOCK_ROWS, lane_count(backbone))


@contextmanager
def lanes(backbone: Backbone) -> Iterator[ThreadPoolExecutor]:
    """Yield the threads that encode in parallel."""
    before, on_cpu = torch.get_num_threads(), backbone.device.type == "cpu"
    with freed_memory_kept() if on_cpu else nullcontext():
        given = (backbone.device, count(FIRST_LANE_STREAM))
        threads = ThreadPoolExecutor(lane_count(backbone), initializer=_begin_lane, initargs=given)
        try:
            yield threads
        finally:
            threads.shutdown(cancel_futures=True)
            torch.set_num_threads(before)  # later threads inherit what a lane has set


def lane_count(backbone: Backbone) -> int:
    """Return how many batches are encoded in parallel."""
    return {"cpu": available_cores(), "cuda": LANES_ON_GPU}.get(backbone.device.type, 1)


def _encoded_in_order(
    decoded: Iterator[DecodedBatch],
    threads: ThreadPoolExecutor,
    encode: Callable[[DecodedBatch], EncodedBlock],
    queued: int,
) -> Iterator[EncodedBlock]:
    """Yield encoded batches in order, with up to `queued` more submitted so that no lane runs idle."""
    under_way: deque[Future[EncodedBlock]] = deque()
    for batch in decoded:
        under_way.append(threads.submit(encode, batch))
        if len(under_way) > queued:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()


def _encode(batch: DecodedBatch, backbone: Backbone, batch_size: int) -> EncodedBlock:
    """Return the features of one batch; one image with many views may exceed `batch_size`. Runs in a lane."""
    if len(batch.pixels) == 0:
        return EncodedBlock((), np.empty((0, 0), np.float32), batch.unreadable, Seconds(decode=batch.seconds))
    started = perf_counter()
    starts = range(0, len(batch.pixels), batch_size)
    pieces = [_encode_what_fits(batch.pixels[first : first + batch_size], backbone) for first in starts]
    features, inputs = _concatenated([piece for piece, _ in pieces])
    transfer = sum(seconds for _, seconds in pieces)
    seconds = Seconds(batch.seconds, transfer, perf_counter() - started - transfer)
    return EncodedBlock(batch.images, features, batch.unreadable, seconds, inputs)


def _encode_what_fits(pixels: np.ndarray, backbone: Backbone) -> tuple[Encoded, float]:
    """Return the features of a batch, and the seconds of its transfer to the device.

    The batch is halved as long as the device runs out of memory.
    """
    try:
        started = perf_counter()
        placed = backbone.on_device(pixels)
        moved = perf_counter()
        return backbone.encode_images_with_inputs(placed), moved - started
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        if len(pixels) == 1:
            raise OptionError(
                f"device {backbone.device} has too little memory to encode one image with {backbone.name}; free some "
                "of its memory, or use --device cpu"
            ) from error
    return_unused_memory(backbone.device)  # here, as the error above keeps the batch's tensors
    halves = [_encode_what_fits(half, backbone) for half in np.array_split(pixels, 2)]
    return _concatenated([half for half, _ in halves]), sum(seconds for _, seconds in halves)


def _concatenated(pieces: Sequence[Encoded]) -> Encoded:
    """Return features and inputs of several batches; inputs are None if any piece has none."""
    inputs = [inputs for _, inputs in pieces if inputs is not None]
    features = np.concatenate([features for features, _ in pieces])
    return features, np.concatenate(inputs) if len(inputs) == len(pieces) else None


def _joined(parts: Sequence[EncodedBlock]) -> EncodedBlock:
    """Return the batches of a block as one block."""
    encoded = [(part.image_features, part.pre_projection) for part in parts if part.images]
    features, inputs = _concatenated(encoded) if encoded else (np.empty((0, 0), np.float32), None)
    return EncodedBlock(
        images=tuple(image for part in parts for image in part.images),
        image_features=features,
        unreadable={path: reason for part in parts for path, reason in part.unreadable.items()},
        seconds=sum((part.seconds for part in parts), Seconds()),
        pre_projection=inputs,
    )


def _begin_lane(device: torch.device, streams: Iterator[int]) -> None:
    """Set up a lane's thread: one core on a CPU, its own stream on a GPU, the same one for every data set."""
    if device.type == "cpu":
        torch.set_num_threads(1)
    elif device.type == "cuda":
        torch.cuda.set_device(device)
        torch.cuda.set_stream(own_stream(device, next(streams)))
