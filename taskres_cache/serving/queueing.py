"""Pictures of all requests on their way through decoding threads and the encoder, with a limit on their number.

Axes: D embedding, I width of the image tower.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from threading import Lock

from taskres_cache.datasets.images import size_of
from taskres_cache.errors import PictureError
from taskres_cache.runs.live.batching import Features
from taskres_cache.runs.live.predictor import Predictor

TOO_LARGE, NOT_AN_IMAGE, UNREADABLE = 413, 415, 422


class QueueFullError(Exception):
    """More pictures wait than the limit allows."""


class RefusedPictureError(PictureError):
    """A picture is not decoded, or could not be.

    Parameters
    ----------
    status : int
        HTTP status of a request with this picture alone.
    reason : str
        What is wrong with it.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class PictureQueue:
    """Decodes pictures in threads and encodes those of all requests in common batches.

    Parameters
    ----------
    predictor : Predictor
        Has the encoder.
    most : int
        Pictures that wait or are computed, at most.
    pixels : int
        Pixels of a picture, at most.
    threads : int
        Decoding threads.
    """

    def __init__(self, predictor: Predictor, most: int, pixels: int, threads: int) -> None:
        self._predictor, self._most, self._pixels = predictor, most, pixels
        self._pool = ThreadPoolExecutor(threads, "taskres-serve")
        self._lock = Lock()
        self.length = 0

    async def features(self, contents: Sequence[bytes]) -> list[Features | RefusedPictureError]:
        """Return the features of image files, or why one has none.

        Raises
        ------
        QueueFullError
            They are more than there is room for; none is started.
        """
        self._reserve(len(contents))
        decoding = [self._submit(content) for content in contents]
        return list(await asyncio.gather(*(_outcome(one) for one in decoding)))

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _reserve(self, count: int) -> None:
        with self._lock:
            if self.length + count > self._most:
                raise QueueFullError
            self.length += count

    def _release(self, _: object) -> None:
        with self._lock:
            self.length -= 1

    def _submit(self, content: bytes) -> "Future[Future[Features]]":
        """Start to decode a picture; its place in the queue is free once its features exist."""
        decoding = self._pool.submit(self._decoded, content)
        decoding.add_done_callback(self._release_after)
        return decoding

    def _release_after(self, decoding: "Future[Future[Features]]") -> None:
        if decoding.cancelled() or decoding.exception() is not None:
            self._release(decoding)
        else:
            decoding.result().add_done_callback(self._release)

    def _decoded(self, content: bytes) -> "Future[Features]":
        """Check the size of a picture, decode it, and return its future features."""
        try:
            width, height = size_of(BytesIO(content))
        except Exception as error:  # Pillow's readers raise nearly any exception on broken files
            status, reason = _refusal(content, " ".join(str(error).split()) or type(error).__name__)
            raise RefusedPictureError(status, reason) from error
        if width * height > self._pixels:
            raise RefusedPictureError(TOO_LARGE, f"has {width} x {height} pixels; the limit is {self._pixels:,}")
        return self._predictor.submit(content)


async def _outcome(decoding: "Future[Future[Features]]") -> Features | RefusedPictureError:
    try:
        encoding: Future[Features] = await asyncio.wrap_future(decoding)
        return await asyncio.wrap_future(encoding)
    except RefusedPictureError as error:
        return error
    except PictureError as error:
        return RefusedPictureError(UNREADABLE, str(error))


def _refusal(content: bytes, reason: str) -> tuple[int, str]:
    """Return status and reason for a file whose header could not be read."""
    if not content:
        return UNREADABLE, "is empty"
    if "decompression bomb" in reason:
        return TOO_LARGE, "has too many pixels"
    return (NOT_AN_IMAGE if reason.startswith("not an image") else UNREADABLE), reason
