"""Decoding image files into pixels, in processes next to the encoder; each file is decoded once for all its renderings.

Axes: B renderings of a batch, H and W height and width that the encoder takes.
"""

import os
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.sharedctypes import RawArray
from threading import Thread
from time import sleep, thread_time
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader, get_worker_info

from taskres_cache.datasets.images import ImageSource
from taskres_cache.encoders.backbone import Framing
from taskres_cache.encoders.views import CENTER, View, augmented_view
from taskres_cache.errors import DecodingError

SECONDS_BETWEEN_CHECKS = 0.5
LOWEST_PRIORITY = 19  # decoding uses the time that the encoder leaves, and all cores while the encoder waits


class WantedImage(NamedTuple):
    """An image and the renderings to make of it: CENTER, or augmented views."""

    path: str
    views: tuple[View, ...]


@dataclass(frozen=True)
class DecodedBatch:
    """The pixels of a batch of images.

    Parameters
    ----------
    images : tuple of WantedImage
        The images that could be read.
    pixels : ndarray of shape (B, H, W, 3), uint8
        For each image its renderings in order.
    unreadable : dict of str to str
        Path -> reason, of the images that could not be read.
    seconds : float
        Processor time of decoding.
    """

    images: tuple[WantedImage, ...]
    pixels: np.ndarray
    unreadable: dict[str, str]
    seconds: float


@dataclass(frozen=True)
class Decoding:
    """How images are decoded.

    Parameters
    ----------
    source : ImageSource
        Reads the images.
    framing : Framing
        The encoder's own resize and crop.
    workers : int
        Decoding processes; 0 decodes in the calling process.
    low_priority : bool
        Whether the processes yield the CPU to the encoder.
    """

    source: ImageSource
    framing: Framing
    workers: int
    low_priority: bool


@contextmanager
def decoded_batches(batches: Sequence[Sequence[WantedImage]], how: Decoding) -> Iterator[Iterator[DecodedBatch]]:
    """Yield an iterator over decoded batches, in order; later batches are decoded in the meantime.

    The processes start on entering, before the caller starts threads. They send arrays through pipes instead of shared
    memory, of which containers often have very little.

    Parameters
    ----------
    batches : sequence of sequence of WantedImage
        The images of each batch.
    how : Decoding
        Source, framing and processes.

    Raises
    ------
    DecodingError
        A process died, for example because it ran out of memory. The message names the images that it was decoding.
    """
    workers = min(how.workers, len(batches))
    positions = RawArray("q", 2 * max(1, workers))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of more workers than cores, which the user asked for
            loader: DataLoader[DecodedBatch] = DataLoader(
                _Batches(batches, how, positions),  # type: ignore[arg-type]
                batch_size=None,
                num_workers=workers,
                collate_fn=_unchanged,  # type: ignore[arg-type]
                worker_init_fn=partial(_begin_worker, how.low_priority, os.getpid()) if workers else None,
            )
            decoded = iter(loader)
        yield decoded
    except RuntimeError as error:  # raised by a signal handler, wherever the caller is when a process dies
        if "DataLoader worker" not in str(error):
            raise
        pairs = zip(positions[::2], positions[1::2], strict=True)
        suspects = dict.fromkeys(batches[batch][position].path for batch, position in pairs)
        raise DecodingError(
            f"a decoding process died, probably out of memory, while it read one of: {', '.join(suspects)}; "
            "run the same command again with fewer --workers, or without these images"
        ) from error


class _Batches:
    """Batches by number; each worker records in `positions` which batch and which image it is decoding."""

    def __init__(self, batches: Sequence[Sequence[WantedImage]], how: Decoding, positions: Any) -> None:
        self._batches, self._how, self._positions = batches, how, positions

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> DecodedBatch:
        started, worker = thread_time(), get_worker_info()
        slot = 2 * (worker.id if worker else 0)
        images, pixels, unreadable = [], [], {}
        for position, image in enumerate(self._batches[number]):
            self._positions[slot : slot + 2] = [number, position]
            try:
                pixels.append(rendered(image, self._how))
                images.append(image)
            except Exception as error:  # noqa: BLE001  Pillow's decoders raise nearly any exception on broken files
                unreadable[image.path] = " ".join(str(error).split()) or type(error).__name__
        stacked = np.concatenate(pixels) if pixels else np.empty((0, *self._how.framing.size, 3), np.uint8)
        return DecodedBatch(tuple(images), stacked, unreadable, thread_time() - started)


def rendered(wanted: WantedImage, how: Decoding) -> np.ndarray:
    """Return an image's renderings, (len(views), H, W, 3) uint8; its file is decoded once."""
    image = how.source.read(wanted.path)
    renderings = [
        how.framing(image)
        if view == CENTER
        else augmented_view(image, how.framing.size, view.seed, wanted.path, view.number, view.family)
        for view in wanted.views
    ]
    return np.stack([np.asarray(rendering) for rendering in renderings])


def _unchanged(batch: DecodedBatch) -> DecodedBatch:
    """Return the batch itself: arrays go through a pipe, tensors would go through shared memory."""
    return batch


def _begin_worker(low_priority: bool, caller: int, _: int) -> None:
    """Set up a decoding process: it ignores Ctrl-C, which the caller handles, and ends with the caller."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with, args=(caller,), daemon=True).start()
    if low_priority and hasattr(os, "nice"):
        os.nice(LOWEST_PRIORITY)


def _end_with(caller: int) -> None:
    """End this process soon after the caller ends: a caller that leaves workers behind was killed.

    torch's own check comes too late here: it waits until the pipe is read, and nobody reads it any more.
    """
    parent = os.getppid()  # the caller, or the fork server
    while os.getppid() == parent and _is_alive(caller):
        sleep(SECONDS_BETWEEN_CHECKS)
    os._exit(1)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)  # signal 0 only checks that the process exists
    except ProcessLookupError:
        return False
    return True
