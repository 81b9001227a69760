"""A real server on a free port, in a thread."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from threading import Thread

import pytest
import uvicorn

from taskres_cache.encoders.backbone import Backbone
from taskres_cache.runs.live.predictor import Predictor
from taskres_cache.runs.run import Run, load_run, write_run
from taskres_cache.runs.several.ensemble import Ensemble
from taskres_cache.serving.app import service
from taskres_cache.serving.limits import Limits
from taskres_cache.serving.model import card_of
from taskres_cache.serving.server import _ImpatientProtocol, address_of, listening
from tests.conftest import metrics_of
from tests.runs.test_prediction import run_of

Served = Callable[..., AbstractContextManager[str]]


@pytest.fixture(scope="session")
def run(glyph_clip: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("served") / "taskres" / "shots_1" / "seed_1"
    folder.mkdir(parents=True)
    write_run(folder, run_of(glyph_clip), metrics_of())
    return load_run(folder)


@pytest.fixture
def served(run: Run, glyph_clip: Backbone) -> Served:
    """Serve the run with some limits; gives the address."""

    @contextmanager
    def serving(limits: Limits | None = None, predictor: Predictor | None = None) -> Iterator[str]:
        known = limits or Limits()
        ensemble = Ensemble((run.classifier,))
        predictor = predictor or Predictor(ensemble, glyph_clip)
        app = service(predictor, card_of([run.folder], ensemble), known, top_k=3, threads=2)
        config = uvicorn.Config(app, http=_ImpatientProtocol, ws="none", log_level="error")
        server = uvicorn.Server(config)
        with listening("127.0.0.1", 0) as listener:
            thread = Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            while not server.started:
                time.sleep(0.01)
            try:
                yield address_of(listener)
            finally:
                server.should_exit = True
                thread.join(30)

    return serving


def png(folder: Path, number: int) -> bytes:
    from tests.conftest import save_image

    path = folder / f"{number}.png"
    save_image(path, number, (20 + number % 7, 30))
    return path.read_bytes()
