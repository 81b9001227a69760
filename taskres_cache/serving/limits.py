"""What one client, and all clients together, may ask of the service."""

from dataclasses import dataclass, fields

from taskres_cache.errors import OptionError


@dataclass(frozen=True)
class Limits:
    """Limits of the service; a request beyond one gets an error status.

    Parameters
    ----------
    request_bytes : int
        Bytes of a request's body; more is answered with 413.
    buffered_bytes : int
        Bytes of all bodies in memory; more is answered with 503.
    pixels : int
        Pixels of a picture, by its header; a larger one is not decoded (413).
    pictures : int
        Pictures per request; more is answered with 413.
    queue : int
        Pictures of all requests that wait or are computed; more is answered with 503.
    read_seconds : float
        Time in which a client must send its request; a slower one gets 408.
    answer_seconds : float
        Time in which a request is answered after it was read; a later one gets 504.
    connections : int
        Open connections; more are answered with 503.

    Raises
    ------
    OptionError
        A limit is not positive.
    """

    request_bytes: int = 32 * 1024**2
    buffered_bytes: int = 512 * 1024**2
    pixels: int = 50_000_000
    pictures: int = 64
    queue: int = 512
    read_seconds: float = 30.0
    answer_seconds: float = 30.0
    connections: int = 1000

    def __post_init__(self) -> None:
        for one in fields(self):
            if not getattr(self, one.name) > 0:
                raise OptionError(f"{one.name} must be positive, got {getattr(self, one.name)}")
