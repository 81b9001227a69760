"""The service over real sockets: right answers, and a proper status for everything else."""

import base64
import json
import socket
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from taskres_cache.encoders.backbone import Backbone
from taskres_cache.errors import OptionError
from taskres_cache.runs.live.predictor import Predictor
from taskres_cache.runs.run import Run
from taskres_cache.serving.limits import Limits
from tests.serving.conftest import Served, png


def files(*contents: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", (f"{row}.png", content)) for row, content in enumerate(contents)]


def agrees(image: dict, run: Run, content: bytes) -> None:
    """Check an answer against `predict`; batches of another size may differ in the last bits."""
    expected = run.predict(content)
    names, shares = zip(*expected.top(3)[0], strict=True)
    assert [one["class"] for one in image["predictions"]] == list(names)
    np.testing.assert_allclose([one["probability"] for one in image["predictions"]], shares, atol=1e-5)
    assert (image["label"], image["probability"]) == (names[0], image["predictions"][0]["probability"])


def test_every_form_of_request(served: Served, run: Run, tmp_path: Path) -> None:
    contents = [png(tmp_path, number) for number in range(3)]
    text = [base64.b64encode(content).decode() for content in contents]
    with served() as url:
        several = httpx.post(f"{url}/predict", files=files(*contents))
        coded = httpx.post(f"{url}/predict", json={"images": [text[0], f"data:image/png;base64,{text[1]}"]})
        raw = httpx.post(f"{url}/predict", content=contents[2], headers={"content-type": "image/png"})
        single = httpx.post(f"{url}/predict", json={"image": text[2]})
    assert {one.status_code for one in (several, coded, raw, single)} == {200}
    document = several.json()
    assert [image["name"] for image in document["images"]] == ["0.png", "1.png", "2.png"]
    assert document["model"]["classifier_sha256"] == [run.metrics.classifier_sha256]
    assert document["milliseconds"] > 0
    for answered in (document["images"], [*coded.json()["images"], *raw.json()["images"]]):
        for image, content in zip(answered, contents, strict=True):
            agrees(image, run, content)
    agrees(single.json()["images"][0], run, contents[2])


def test_fifty_clients_at_once_each_get_their_own_answer(served: Served, run: Run, tmp_path: Path) -> None:
    contents = [png(tmp_path, number) for number in range(50)]
    with served() as url, ThreadPoolExecutor(50) as pool:

        def ask(row: int) -> list[httpx.Response]:
            with httpx.Client(timeout=60) as client:
                return [client.post(f"{url}/predict", files=files(contents[(row + turn) % 50])) for turn in range(4)]

        answers = list(pool.map(ask, range(50)))
        text = httpx.get(f"{url}/metrics").text
    for row, answered in enumerate(answers):
        for turn, response in enumerate(answered):
            assert response.status_code == 200
            agrees(response.json()["images"][0], run, contents[(row + turn) % 50])
    assert 'taskres_requests_total{status="200"} 200.0' in text
    assert "taskres_queue_pictures 0.0" in text


def bomb(side: int) -> bytes:
    """Return a PNG whose header promises side x side pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "status", "reason"),
    [
        (b"hello", 415, "not an image"),
        (b"", 422, "empty"),
        (bomb(60_000), 413, "pixels"),
        (bomb(8_000), 413, "8000 x 8000 pixels"),
        (bomb(200), 422, ""),
    ],
)
def test_a_bad_picture_has_a_status_and_spoils_no_other(
    served: Served, run: Run, tmp_path: Path, content: bytes, status: int, reason: str
) -> None:
    good = png(tmp_path, 1)
    with served() as url:
        alone = httpx.post(f"{url}/predict", files=files(content))
        together = httpx.post(f"{url}/predict", files=files(content, good))
        text = httpx.get(f"{url}/metrics").text
    assert alone.status_code == status
    assert together.status_code == 200
    refused, fine = together.json()["images"]
    assert (refused["status"], "label" in refused) == (status, False)
    assert reason in refused["error"]
    agrees(fine, run, good)
    assert "taskres_queue_pictures 0.0" in text


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400),
        ({"content": b"[" * 100_000, "headers": {"content-type": "application/json"}}, 400),
        ({"json": ["a"]}, 422),
        ({"json": {"images": []}}, 422),
        ({"json": {"images": "abc"}}, 422),
        ({"json": {"images": [3]}}, 422),
        ({"json": {"image": "%%%"}}, 422),
        ({"json": {"image": "https://example.org/cat.png"}}, 422),
        ({"json": {"image": None}}, 422),
        ({"content": b"x", "headers": {"content-type": "text/plain"}}, 415),
        ({"content": b"x"}, 415),
        ({"content": b"--x\r\n", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400),
        ({"content": b"--x--", "headers": {"content-type": "multipart/form-data"}}, 400),
        ({"content": b"garbage--x--", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400),
        ({"data": {"note": "no file"}, "files": {}}, 415),
        ({"files": files(*[b"x"] * 9)}, 413),
        ({"json": {"images": ["eA=="] * 9}}, 413),
        ({"files": files(b"x" * 200_000)}, 413),
    ],
)
def test_a_bad_request_has_a_status_and_a_reason(served: Served, arguments: dict, status: int) -> None:
    with served(Limits(pictures=8, request_bytes=150_000)) as url:
        response = httpx.post(f"{url}/predict", **arguments)
        assert (response.status_code, list(response.json())) == (status, ["error"])
        assert httpx.get(f"{url}/healthz").json()["queue"] == 0


def test_other_paths_and_methods(served: Served) -> None:
    with served() as url:
        assert httpx.get(f"{url}/predict").status_code == 405
        assert httpx.put(f"{url}/predict").status_code == 405
        assert httpx.get(f"{url}/nothing").status_code == 404
        assert httpx.get(f"{url}/docs").status_code == 404  # it would load scripts from a CDN
        assert httpx.head(url).status_code == 200
        health = httpx.get(f"{url}/healthz").json()
        schema = httpx.get(f"{url}/openapi.json").json()
        page = httpx.get(url)
    assert (health["status"], health["model"]["classes"]) == ("ok", 4)
    assert set(schema["paths"]) == {"/predict", "/healthz", "/metrics"}
    assert "multipart/form-data" in schema["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert "http" not in page.text.replace("http-equiv", "")  # nothing from elsewhere
    assert health["model"]["classifier_sha256"][0][:12] in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]


def sent(url: str, *parts: bytes, pause: float = 0.0) -> bytes:
    """Send bytes as they are, and return the answer."""
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port), timeout=20) as client:
        for part in parts:
            client.sendall(part)
            time.sleep(pause)
        return client.recv(65536)


HEAD = b"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"


def test_a_chunked_body_is_cut_off_at_the_limit(served: Served) -> None:
    with served(Limits(request_bytes=1000)) as url:
        chunk = b"200\r\n" + b"x" * 512 + b"\r\n"
        answer = sent(url, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 2, pause=0.05)
    assert answer.startswith(b"HTTP/1.1 413")


def test_an_announced_body_over_the_limit_is_not_read(served: Served) -> None:
    with served(Limits(request_bytes=1000)) as url:
        assert sent(url, HEAD + b"Content-Length: 2000\r\n\r\n").startswith(b"HTTP/1.1 413")


def test_a_slow_client_is_cut_off_and_others_are_served(served: Served, tmp_path: Path) -> None:
    with served(Limits(read_seconds=0.5)) as url, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(sent, url, HEAD + b"Content-Length: 500\r\n\r\n", b"{", pause=0.3)
        assert httpx.post(f"{url}/predict", files=files(png(tmp_path, 1))).status_code == 200
        assert slow.result().startswith(b"HTTP/1.1 408")


def test_a_client_that_leaves_harms_nobody(served: Served, tmp_path: Path) -> None:
    with served() as url:
        where = urlsplit(url)
        for _ in range(20):
            with socket.create_connection((where.hostname, where.port)) as client:
                client.sendall(HEAD + b"Content-Length: 500\r\n\r\n{")
        assert httpx.post(f"{url}/predict", files=files(png(tmp_path, 1))).status_code == 200
        assert httpx.get(f"{url}/healthz").json()["queue"] == 0


class Blocked(Predictor):
    """A predictor whose encoder waits for a sign."""

    def __init__(self, run: Run, backbone: Backbone) -> None:
        super().__init__(run.classifier, backbone)
        self.open = Event()

    def _encoded(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        self.open.wait(20)
        return super()._encoded(pixels)


def test_a_full_queue_and_a_late_answer(served: Served, run: Run, glyph_clip: Backbone, tmp_path: Path) -> None:
    content = png(tmp_path, 1)
    predictor = Blocked(run, glyph_clip)
    with served(Limits(queue=3, answer_seconds=1.0), predictor) as url, ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(httpx.post, f"{url}/predict", files=files(content), timeout=20) for _ in range(3)]
        while httpx.get(f"{url}/healthz").json()["queue"] < 3:
            time.sleep(0.01)
        full = httpx.post(f"{url}/predict", files=files(content))
        assert (full.status_code, full.headers["retry-after"]) == (503, "1")
        assert [one.result().status_code for one in waiting] == [504] * 3
        predictor.open.set()
        for _ in range(200):
            if httpx.get(f"{url}/healthz").json()["queue"] == 0:
                break
            time.sleep(0.02)
        agrees(httpx.post(f"{url}/predict", files=files(content)).json()["images"][0], run, content)


def test_features_that_are_not_finite(served: Served, run: Run, glyph_clip: Backbone, tmp_path: Path) -> None:
    class Overflowing(Predictor):
        def _encoded(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
            features, inputs = super()._encoded(pixels)
            return features * np.float32(np.nan), inputs

    with served(predictor=Overflowing(run.classifier, glyph_clip)) as url:
        response = httpx.post(f"{url}/predict", files=files(png(tmp_path, 1)))
    assert response.status_code == 422
    assert "NaN" in json.loads(response.text)["images"][0]["error"]


def test_a_limit_must_be_positive() -> None:
    with pytest.raises(OptionError, match="queue must be positive, got 0"):
        Limits(queue=0)
