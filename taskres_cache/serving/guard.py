"""The limits on bytes and time of a request's body, applied while it is read, before any handler sees it."""

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from taskres_cache.serving.limits import Limits

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

CLOSE = (b"connection", b"close")  # what is left of a refused body is not read


class BodyGuard:
    """Reads each body into memory within the limits, or answers with an error status.

    A request without a body costs nothing. The application gets the whole body as one message.

    Parameters
    ----------
    application : ASGI application
        Gets the requests that keep the limits.
    limits : Limits
        Of one request, and of all bodies in memory.
    """

    def __init__(self, application: Application, limits: Limits) -> None:
        self._application, self._limits, self._buffered = application, limits, 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._application(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if int(declared) > self._limits.request_bytes:  # the server has checked that it is a number
            await refuse(send, 413, self._too_large())
            return
        held = _Held()
        try:
            async with asyncio.timeout(self._limits.read_seconds):
                refused = await self._read(receive, held)
        except TimeoutError:
            refused = 408, f"the request did not arrive within {self._limits.read_seconds:g} s"
        try:
            if held.gone:
                return
            if refused is not None:
                await refuse(send, *refused)
            else:
                await self._application(scope, held.replay(receive), send)
        finally:
            self._buffered -= held.size

    async def _read(self, receive: Receive, held: "_Held") -> tuple[int, str] | None:
        """Read a body; return the status and reason if it is refused."""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                held.gone = True
                return None
            part = message.get("body", b"")
            held.add(part)
            self._buffered += len(part)
            if held.size > self._limits.request_bytes:
                return 413, self._too_large()
            if self._buffered > self._limits.buffered_bytes:
                return 503, "the service is busy with other uploads; try again in a second"
            if not message.get("more_body", False):
                return None

    def _too_large(self) -> str:
        return f"the request is larger than {self._limits.request_bytes:,} bytes; send fewer or smaller pictures"


class _Held:
    """The body of one request as far as it was read."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size, self.gone = 0, False

    def add(self, part: bytes) -> None:
        self.parts.append(part)
        self.size += len(part)

    def replay(self, receive: Receive) -> Receive:
        """Return a `receive` that gives the body once, then what the server says, such as that the client is gone."""
        waiting = [{"type": "http.request", "body": b"".join(self.parts), "more_body": False}]
        self.parts = []

        async def received() -> Message:
            return waiting.pop() if waiting else await receive()

        return received


async def refuse(send: Send, status: int, reason: str) -> None:
    """Answer with an error status and close the connection."""
    body = json.dumps({"error": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), CLOSE]
    if status == 503:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
