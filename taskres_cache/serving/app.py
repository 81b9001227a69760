"""The web application: a page, predictions, health and metrics.

Axes: N pictures of a request, C classes.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from html import escape
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

from taskres_cache.runs.live.batching import Features
from taskres_cache.runs.live.predictor import Predictor
from taskres_cache.runs.prediction import OVERFLOW
from taskres_cache.serving.counters import TYPE, Counters
from taskres_cache.serving.guard import Application, BodyGuard
from taskres_cache.serving.limits import Limits
from taskres_cache.serving.model import ModelCard
from taskres_cache.serving.queueing import UNREADABLE, PictureQueue, QueueFullError, RefusedPictureError
from taskres_cache.serving.uploads import RequestError, Upload, uploads_of
from taskres_cache.system.devices import available_cores
from taskres_cache.system.version import __version__

PAGE = Path(__file__).with_name("page.html")
HEADERS = {  # the page loads nothing from elsewhere, and no other page may embed it
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src blob: data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
TEXT = {"type": "string", "format": "base64"}
PICTURE = {"type": "string", "format": "binary"}
BODY = {  # the body is read by `uploads`, so that FastAPI cannot derive this
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"files": {"type": "array", "items": PICTURE}}}
            },
            "application/json": {
                "schema": {"type": "object", "properties": {"images": {"type": "array", "items": TEXT}, "image": TEXT}}
            },
            "image/*": {"schema": PICTURE},
        },
    }
}
STATUSES: dict[int | str, dict[str, Any]] = {
    400: {"description": "The request is malformed or incomplete."},
    408: {"description": "The request did not arrive in time."},
    413: {"description": "Too many bytes, pixels or pictures."},
    415: {"description": "Not a picture, or an unknown content type."},
    422: {"description": "No picture could be read."},
    503: {"description": "Too many pictures wait; see Retry-After."},
    504: {"description": "The answer took too long."},
}


def service(
    predictor: Predictor, model: ModelCard, limits: Limits, top_k: int = 5, threads: int | None = None
) -> Application:
    """Return the ASGI application that serves a run.

    Parameters
    ----------
    predictor : Predictor
        The classifier and its encoder.
    model : ModelCard
        What the page and the answers say about it.
    limits : Limits
        What clients may ask for.
    top_k : int, default 5
        Classes per picture.
    threads : int, optional
        Decoding threads. Defaults to one per core.
    """
    return BodyGuard(_application(_Answers(predictor, model, limits, top_k, threads or available_cores())), limits)


class _Answers:
    """Answers requests for predictions."""

    def __init__(self, predictor: Predictor, model: ModelCard, limits: Limits, top_k: int, threads: int) -> None:
        self.queue = PictureQueue(predictor, limits.queue, limits.pixels, threads)
        self.counters = Counters(lambda: float(self.queue.length))
        self.model, self._predictor, self._limits, self._top_k = model, predictor, limits, top_k

    async def answer(self, request: Request) -> Response:
        """Return predictions, or an error status with its reason."""
        started = perf_counter()
        try:
            response = await self._predicted(request, started)
        except RequestError as error:
            response = _refused(error.status, str(error))
        except QueueFullError:
            response = _refused(503, "too many pictures wait; try again in a second", {"Retry-After": "1"})
        except TimeoutError:
            response = _refused(504, f"no answer within {self._limits.answer_seconds:g} s; try again later")
        self.counters.requests.labels(str(response.status_code)).inc()
        self.counters.seconds.observe(perf_counter() - started)
        return response

    async def _predicted(self, request: Request, started: float) -> Response:
        uploads = await uploads_of(request, self._limits.pictures)
        async with asyncio.timeout(self._limits.answer_seconds):
            found = await self.queue.features([upload.content for upload in uploads])
        images = self._images(uploads, found)
        statuses = [image.get("status", 200) for image in images]
        for status in statuses:
            self.counters.pictures.labels(str(status)).inc()
        document = {
            "model": {"classifier_sha256": self.model.classifier_sha256, "weights_sha256": self.model.weights_sha256},
            "milliseconds": round(1000 * (perf_counter() - started), 2),
            "images": images,
        }
        return JSONResponse(document, 200 if 200 in statuses else statuses[0])

    def _images(self, uploads: list[Upload], found: list[Features | RefusedPictureError]) -> list[dict[str, Any]]:
        """Return what the answer says about each picture."""
        encoded = [one for one in found if isinstance(one, Features)]
        shares = iter(self._predictor.probabilities(encoded) if encoded else ())
        return [
            _unreadable(upload.name, one.status, str(one))
            if isinstance(one, RefusedPictureError)
            else self._image(upload.name, next(shares))
            for upload, one in zip(uploads, found, strict=True)
        ]

    def _image(self, name: str, shares: np.ndarray) -> dict[str, Any]:
        """Return the top classes of a picture, given its probabilities (C,)."""
        if not np.isfinite(shares).all():
            return _unreadable(name, UNREADABLE, OVERFLOW)
        classnames = self._predictor.classifier.classnames
        ranked = np.argsort(-shares, kind="stable")[: self._top_k].tolist()
        top = [{"class": classnames[row], "probability": float(str(shares[row]))} for row in ranked]
        return {"name": name, "label": top[0]["class"], "probability": top[0]["probability"], "predictions": top}


def _application(answers: _Answers) -> FastAPI:
    """Return the routes. FastAPI's pages on the interface load scripts from a CDN, so only /openapi.json is served."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        answers.queue.close()

    app = FastAPI(title="taskres serve", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    page = _page(answers.model)

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers=HEADERS)

    @app.post("/predict", openapi_extra=BODY, responses=STATUSES, summary="Predict the classes of pictures.")
    async def predict(request: Request) -> Response:
        return await answers.answer(request)

    @app.get("/healthz", summary="Return the model and the length of the queue.")
    async def healthz() -> JSONResponse:
        return JSONResponse({"status": "ok", "queue": answers.queue.length, "model": asdict(answers.model)})

    @app.get("/metrics", summary="Return counters in the text format of Prometheus.")
    async def metrics() -> Response:
        return Response(answers.counters.text(), media_type=TYPE)

    return app


def _page(model: ModelCard) -> str:
    """Return the page with the name of the model."""
    several = f", mean of {len(model.runs)} runs" if len(model.runs) > 1 else f": {model.methods[0]}"
    name = f"{model.dataset} with {model.backbone} ({model.pretrained}){several}; {model.classes} classes"
    digest = ", ".join(one[:12] for one in model.classifier_sha256[:3] if one)
    return PAGE.read_text("utf-8").replace("{{model}}", escape(name)).replace("{{digest}}", escape(digest))


def _unreadable(name: str, status: int, reason: str) -> dict[str, Any]:
    return {"name": name, "error": reason, "status": status}


def _refused(status: int, reason: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": reason}, status, headers)
