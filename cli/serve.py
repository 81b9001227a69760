"""`taskres serve`: a fitted classifier as a web service."""

from typing import Annotated

import typer

from . import checks
from .options import Best, Device, Ensemble, RunCheckpoint, RunPrecision, Runs

MEGA = 1_000_000


def serve(
    run: Runs,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; 0.0.0.0 is reachable from other machines.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", callback=checks.at_least(0), help="Port to listen on; 0 takes a free one.")
    ] = 8000,
    top_k: Annotated[
        int, typer.Option("--top-k", callback=checks.at_least(1), help="Number of top classes per picture.")
    ] = 5,
    best: Best = False,
    ensemble: Ensemble = False,
    pretrained: RunCheckpoint = None,
    device: Device = "auto",
    precision: RunPrecision = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", callback=checks.at_least(1), help="Pictures per batch at most.", show_default="by device"
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", callback=checks.at_least(1), help="Threads that decode pictures.", show_default="one per core"
        ),
    ] = None,
    max_megabytes: Annotated[
        int, typer.Option("--max-megabytes", callback=checks.at_least(1), help="Size of a request at most.")
    ] = 32,
    max_megapixels: Annotated[
        int, typer.Option("--max-megapixels", callback=checks.at_least(1), help="Size of a picture at most.")
    ] = 50,
    max_pictures: Annotated[
        int, typer.Option("--max-pictures", callback=checks.at_least(1), help="Pictures per request at most.")
    ] = 64,
    max_queue: Annotated[
        int, typer.Option("--max-queue", callback=checks.at_least(1), help="Pictures of all clients that may wait.")
    ] = 512,
    timeout: Annotated[
        int, typer.Option("--timeout", callback=checks.at_least(1), help="Seconds to send a request, and to answer it.")
    ] = 30,
) -> None:
    """Serve a run over HTTP: a page to drop pictures on, POST /predict, /healthz, /metrics and /openapi.json.

    Pictures of all clients share batches. Ctrl-C and SIGTERM let requests under way finish. There is no password: on
    an address that others can reach, put a proxy in front.

    Example: taskres serve runs/RN50-openai/photos --best --port 8080
    """
    from taskres_cache.runs.finding import find_run
    from taskres_cache.system.extras import require

    require("`taskres serve`", "serve", ("fastapi", "uvicorn", "multipart", "prometheus_client"))
    if not (best or ensemble):
        find_run(run)

    import numpy as np

    from taskres_cache.runs.encoder import load_encoder  # seconds, for torch
    from taskres_cache.runs.live.predictor import Predictor
    from taskres_cache.runs.several.choosing import chosen_runs, read_ensemble
    from taskres_cache.serving.app import service
    from taskres_cache.serving.limits import Limits
    from taskres_cache.serving.model import card_of
    from taskres_cache.serving.server import address_of, listening
    from taskres_cache.serving.server import serve as answer_requests

    from .console import say

    folders = chosen_runs(run, best, ensemble)
    classifiers = read_ensemble(folders)
    limits = Limits(
        request_bytes=max_megabytes * MEGA,
        buffered_bytes=max(Limits.buffered_bytes, 2 * max_megabytes * MEGA),
        pixels=max_megapixels * MEGA,
        pictures=max_pictures,
        queue=max(max_queue, max_pictures),
        read_seconds=timeout,
        answer_seconds=timeout,
    )
    backbone = load_encoder(classifiers.members[0], pretrained, device, precision)
    predictor = Predictor(classifiers, backbone, batch_size)
    predictor.predict(np.zeros((8, 8, 3), np.uint8))  # the first batch is slow, and an error of the device shows now
    with listening(host, port) as listener:
        application = service(predictor, card_of(folders, classifiers), limits, top_k, threads)
        ready = f"{folders[0] if len(folders) == 1 else f'mean of {len(folders)} runs'}: {address_of(listener)}"
        answer_requests(application, listener, limits, lambda: say(ready))
    say("ended")
