"""One thread that encodes what many threads ask for: pictures that come at the same time share a batch.

It never waits for more: while a batch is encoded, the next one gathers. A single picture is encoded at once, and many
callers get full batches.

Axes: B pictures of a batch, D embedding, I width of the image tower.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import NamedTuple

import numpy as np

Encoded = tuple[np.ndarray, np.ndarray | None]  # features (B, D), inputs of the last linear map (B, I)


class Features(NamedTuple):
    """Un-normalised features (D,) of a picture, and the input (I,) of the tower's last linear map, float32."""

    image_features: np.ndarray
    pre_projection: np.ndarray | None


class _Request(NamedTuple):
    pixels: np.ndarray  # (H, W, 3)
    result: "Future[Features]"


class Batcher:
    """Encodes pictures for many threads.

    Parameters
    ----------
    encode : callable
        Takes framed pictures (B, H, W, 3), uint8; returns features (B, D) and inputs (B, I) or None.
    most : int
        Pictures per batch at most.
    """

    def __init__(self, encode: Callable[[np.ndarray], Encoded], most: int) -> None:
        self._encode, self._most, self._lock = encode, most, Lock()
        self._queue: SimpleQueue[_Request | None] = SimpleQueue()
        self._process = 0  # the one that has the thread; a forked process has none

    def submit(self, pixels: np.ndarray) -> "Future[Features]":
        """Return the future features of a framed picture (H, W, 3), uint8; its error is what `encode` raises."""
        self._start()
        request = _Request(pixels, Future())
        self._queue.put(request)
        return request.result

    def close(self) -> None:
        """End the thread after what was submitted before."""
        with self._lock:
            if self._process == os.getpid():
                self._queue.put(None)
            self._process = 0

    def _start(self) -> None:
        with self._lock:
            if self._process != os.getpid():
                self._process, self._queue = os.getpid(), SimpleQueue()
                Thread(target=self._run, args=(self._queue,), name="taskres-encoder", daemon=True).start()

    def _run(self, queue: "SimpleQueue[_Request | None]") -> None:
        while True:
            request = queue.get()
            if request is None:
                return
            batch, ended = self._gathered(queue, request)
            self._answer(batch)
            if ended:
                return

    def _gathered(self, queue: "SimpleQueue[_Request | None]", first: _Request) -> tuple[list[_Request], bool]:
        """Return the first request and those that already wait, and whether the thread is to end."""
        batch = [first]
        while len(batch) < self._most:
            try:
                request = queue.get_nowait()
            except Empty:
                break
            if request is None:
                return batch, True
            batch.append(request)
        return batch, False

    def _answer(self, batch: Sequence[_Request]) -> None:
        wanted = [request for request in batch if request.result.set_running_or_notify_cancel()]
        if not wanted:
            return
        try:
            features, inputs = self._encode(np.stack([request.pixels for request in wanted]))
        except BaseException as error:  # noqa: BLE001  it belongs to the callers; this thread serves others
            for request in wanted:
                request.result.set_exception(error)
            return
        for row, request in enumerate(wanted):
            request.result.set_result(Features(features[row], None if inputs is None else inputs[row]))
