"""Image files into pixels, in processes of their own beside the encoder: each image once, for all that is wanted of it.

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
from taskres_cache.encoders.views import CENTER, augmented_view
from taskres_cache.errors import DecodingError

SECONDS_BETWEEN_LOOKS = 0.5
POLITE = 19  # the least of priorities: decoding takes what the encoder leaves, and all of it while the encoder waits


class WantedImage(NamedTuple):
    """An image, and the renderings of it that are wanted: CENTER, and numbers of augmented views."""

    path: str
    views: tuple[int, ...]


@dataclass(frozen=True)
class DecodedBatch:
    """What came of some images.

    Parameters
    ----------
    images : those that could be read.
    pixels : (B, H, W, 3) uint8, of each image its renderings in their order.
    unreadable : path -> why an image could not be read.
    seconds : of processor time.
    """

    images: tuple[WantedImage, ...]
    pixels: np.ndarray
    unreadable: dict[str, str]
    seconds: float


@dataclass(frozen=True)
class Decoding:
    """How images become pixels.

    Parameters
    ----------
    source : where they come from.
    framing : the encoder's own resize and crop.
    views_seed : of the augmented views.
    workers : processes that decode; with 0 the caller's does.
    polite : whether they leave the processor to the encoder.
    """

    source: ImageSource
    framing: Framing
    views_seed: int
    workers: int
    polite: bool


@contextmanager
def decoded_batches(batches: Sequence[Sequence[WantedImage]], how: Decoding) -> Iterator[Iterator[DecodedBatch]]:
    """Yield an iterator over what comes of each batch, in their order; the next ones are decoded meanwhile.

    Processes start on entering: before the caller starts threads. They hand over arrays through pipes rather than
    shared memory, of which containers have next to nothing.

    Raises
    ------
    DecodingError : a process died, as of too little memory; names the images that were being decoded.
    """
    workers = min(how.workers, len(batches))
    at_work = RawArray("q", 2 * max(1, workers))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of more processes than cores, which somebody asked for
            loader: DataLoader[DecodedBatch] = DataLoader(
                _Batches(batches, how, at_work),  # type: ignore[arg-type]
                batch_size=None,
                num_workers=workers,
                collate_fn=_as_it_is,  # type: ignore[arg-type]
                worker_init_fn=partial(_begin_work, how.polite, os.getpid()) if workers else None,
            )
            decoded = iter(loader)
        yield decoded
    except RuntimeError as error:  # raised by a signal, wherever the caller is when a process dies
        if "DataLoader worker" not in str(error):
            raise
        places = zip(at_work[::2], at_work[1::2], strict=True)
        suspects = dict.fromkeys(batches[number][position].path for number, position in places)
        raise DecodingError(
            f"a decoding process died, probably of too little memory, while these were read: {', '.join(suspects)}; "
            "run the same command again with fewer --workers, or without these images"
        ) from error


class _Batches:
    """Batches by their numbers; which image of which batch a worker is at stands in `at_work`."""

    def __init__(self, batches: Sequence[Sequence[WantedImage]], how: Decoding, at_work: Any) -> None:
        self._batches, self._how, self._at_work = batches, how, at_work

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> DecodedBatch:
        started, worker = thread_time(), get_worker_info()
        place = 2 * (worker.id if worker else 0)
        images, pixels, unreadable = [], [], {}
        for position, image in enumerate(self._batches[number]):
            self._at_work[place : place + 2] = [number, position]
            try:
                pixels.append(rendered(image, self._how))
                images.append(image)
            except Exception as error:  # noqa: BLE001  broken files make Pillow's many decoders raise nearly anything
                unreadable[image.path] = " ".join(str(error).split()) or type(error).__name__
        stacked = np.concatenate(pixels) if pixels else np.empty((0, *self._how.framing.size, 3), np.uint8)
        return DecodedBatch(tuple(images), stacked, unreadable, thread_time() - started)


def rendered(wanted: WantedImage, how: Decoding) -> np.ndarray:
    """Return an image's renderings, (len(views), H, W, 3) uint8, from one decoding of its file."""
    image = how.source.read(wanted.path)
    renderings = [
        how.framing(image)
        if view == CENTER
        else augmented_view(image, how.framing.size, how.views_seed, wanted.path, view)
        for view in wanted.views
    ]
    return np.stack([np.asarray(rendering) for rendering in renderings])


def _as_it_is(batch: DecodedBatch) -> DecodedBatch:
    """Return a batch as arrays: what is not made a tensor goes through a pipe."""
    return batch


def _begin_work(polite: bool, caller: int, _: int) -> None:
    """Set up a decoding process: Ctrl-C is the caller's to answer, and its end is the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with, args=(caller,), daemon=True).start()
    if polite and hasattr(os, "nice"):
        os.nice(POLITE)


def _end_with(caller: int) -> None:
    """End this process soon after its caller's, which was killed if it left this one behind.

    torch's own watch over that comes too late here: it waits for the pipe to be read, and nobody reads it any more.
    """
    parent = os.getppid()  # the caller, or who starts processes for it
    while os.getppid() == parent and _is_alive(caller):
        sleep(SECONDS_BETWEEN_LOOKS)
    os._exit(1)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)  # sends nothing
    except ProcessLookupError:
        return False
    return True
