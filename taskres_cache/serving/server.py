"""Listen, answer, and end after the requests under way when asked to."""

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from taskres_cache.errors import OptionError
from taskres_cache.serving.guard import Application
from taskres_cache.serving.limits import Limits

ENDING = (signal.SIGINT, signal.SIGTERM)
HEADER_SECONDS = 10.0


class _ImpatientProtocol(H11Protocol):
    """Closes a connection that sends no complete request header in time; uvicorn itself waits without end."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(HEADER_SECONDS, self._close_if_silent)

    def _close_if_silent(self) -> None:
        started: object = self.cycle  # uvicorn declares it as always set; it is None until a header is complete
        if started is None and not self.transport.is_closing():
            self.transport.close()


class _DrainingServer(uvicorn.Server):
    """Ends with status 0 after SIGTERM or Ctrl-C; uvicorn's own raises the signal again when it has ended."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        earlier = {number: signal.signal(number, self.handle_exit) for number in ENDING}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 takes a free one.

    Raises
    ------
    OptionError
        The address is unknown, or the port is in use.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise OptionError(f"could not listen on {host}:{port} ({error}); pass another --host or --port") from error


def address_of(listener: socket.socket) -> str:
    """Return the address of a socket as a browser takes it."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(application: Application, listener: socket.socket, limits: Limits, ready: Callable[[], None]) -> None:
    """Answer requests until SIGTERM or Ctrl-C, then end those under way; a second Ctrl-C drops them.

    Parameters
    ----------
    application : ASGI application
        From `app.service`.
    listener : socket
        From `listening`.
    limits : Limits
        Gives the number of connections and the time to end.
    ready : callable
        Called before the first request is accepted.
    """
    config = uvicorn.Config(
        application,
        http=_ImpatientProtocol,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=int(limits.answer_seconds) + 1,
    )
    ready()
    _DrainingServer(config).run(sockets=[listener])
