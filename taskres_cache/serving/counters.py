"""What the service counts, in the text format of Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Counters:
    """Counters of one service; two services in one process do not share them.

    Parameters
    ----------
    queue_length : callable
        Returns the number of pictures that wait or are computed.
    """

    def __init__(self, queue_length: Callable[[], float]) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("taskres_requests", "Requests to /predict by status.", ["status"], registry=registry)
        self.pictures = Counter("taskres_pictures", "Pictures by status.", ["status"], registry=registry)
        self.seconds = Histogram("taskres_request_seconds", "Seconds of /predict.", buckets=SECONDS, registry=registry)
        queue = Gauge("taskres_queue_pictures", "Pictures that wait or are computed.", registry=registry)
        queue.set_function(queue_length)

    def text(self) -> bytes:
        """Return all values as Prometheus reads them."""
        return generate_latest(self._registry)
