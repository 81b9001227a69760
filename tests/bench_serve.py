"""`make bench-serve`: requests per second of 50 clients next to the bare encoder's images per second, and the latency.

The encoder alone runs first in this process, on framed pictures in memory. Then the service runs in a thread of the
same process, with clients in another process.
"""

import argparse
import json
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path
from threading import Thread

import numpy as np

CLIENTS = """
import asyncio, json, sys, time, httpx
url, clients, each = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
content = sys.stdin.buffer.read()
async def one(http, taken):
    for _ in range(each):
        started = time.perf_counter()
        answer = await http.post(url + "/predict", content=content, headers={"content-type": "image/png"})
        answer.raise_for_status()
        taken.append(time.perf_counter() - started)
async def main():
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(timeout=120, limits=limits) as http:
        taken = []
        started = time.perf_counter()
        await asyncio.gather(*(one(http, taken) for _ in range(clients)))
        print(json.dumps([time.perf_counter() - started, taken]))
asyncio.run(main())
"""


def main() -> None:
    """Print the rates and the latency for one run."""
    import uvicorn
    from PIL import Image

    from taskres_cache.encoders.encoding import default_batch_size
    from taskres_cache.runs.run import load_run
    from taskres_cache.runs.several.ensemble import Ensemble
    from taskres_cache.serving.app import service
    from taskres_cache.serving.limits import Limits
    from taskres_cache.serving.model import card_of
    from taskres_cache.serving.server import address_of, listening

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--pretrained")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--each", type=int, default=20)
    asked = parser.parse_args()
    run = load_run(asked.run, asked.pretrained)
    predictor = run.predictor
    size = default_batch_size(predictor.backbone)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8))
    framed = np.stack([np.asarray(predictor.backbone.framing(picture))] * size)
    predictor.backbone.encode_images_with_inputs(predictor.backbone.on_device(framed))
    started, batches = time.perf_counter(), 0
    while time.perf_counter() - started < 3:
        predictor.backbone.encode_images_with_inputs(predictor.backbone.on_device(framed))
        batches += 1
    bare = batches * size / (time.perf_counter() - started)
    stream = BytesIO()
    picture.save(stream, "png")
    app = service(predictor, card_of([run.folder], Ensemble((run.classifier,))), Limits())
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    with listening("127.0.0.1", 0) as listener:
        thread = Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        command = [sys.executable, "-c", CLIENTS, address_of(listener), str(asked.clients), str(asked.each)]
        done = subprocess.run(command, input=stream.getvalue(), capture_output=True, check=True)
        server.should_exit = True
        thread.join()
    seconds, taken = json.loads(done.stdout)
    rate, (median, slow) = len(taken) / seconds, 1000 * np.percentile(taken, (50, 99))
    print(f"{predictor.backbone.name}, batches of {size}: encoder alone {bare:.0f} images per second")
    print(f"{asked.clients} clients, {len(taken)} requests: {rate:.0f} per second ({rate / bare:.2f} of the encoder)")
    print(f"latency: p50 {median:.0f} ms, p99 {slow:.0f} ms")


if __name__ == "__main__":
    main()
