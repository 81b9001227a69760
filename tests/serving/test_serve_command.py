"""`taskres serve` as a process, and its page in Chromium if that is installed."""

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from taskres_cache.runs.run import Run
from tests.conftest import Taskres, one_line
from tests.serving.conftest import Served, png

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def serving(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start the command; gives the process and the address that it prints."""
    command = [sys.executable, "-c", "from taskres_cache.cli import main; main()", "serve", *map(str, arguments)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "http://" in line)
        yield process, re.findall(r"http://\S+", line)[0]
    finally:
        process.kill()
        process.wait(10)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_requests_under_way_finish(run: Run, tmp_path: Path, number: signal.Signals) -> None:
    contents = [("files", (f"{row}.png", png(tmp_path, row))) for row in range(40)]
    with serving(run.folder, "--port", 0, "--device", "cpu") as (process, url), ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(httpx.post, f"{url}/predict", files=contents, timeout=30) for _ in range(4)]
        while httpx.get(f"{url}/healthz").json()["queue"] == 0 and not any(one.done() for one in asked):
            time.sleep(0.001)
        process.send_signal(number)
        assert [one.result().status_code for one in asked] == [200] * 4
        assert process.wait(20) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/healthz")


def test_a_port_in_use(run: Run, served: Served, taskres: Taskres) -> None:
    with served() as url:
        outcome = taskres("serve", run.folder, "--port", url.rpartition(":")[2], "--device", "cpu")
    assert outcome.status == 2
    assert "could not listen on 127.0.0.1" in one_line(outcome)


def test_best_and_ensemble_together(run: Run, taskres: Taskres) -> None:
    assert "pass one of the two" in one_line(taskres("serve", run.folder, "--best", "--ensemble"))


CHECKS = """
<script>
addEventListener("load", async () => {
  const content = Uint8Array.from(atob("PICTURE"), one => one.charCodeAt(0));
  const chosen = new DataTransfer();
  chosen.items.add(new File([content], "one.png", {type: "image/png"}));
  chosen.items.add(new File(["hello"], "two.txt", {type: "text/plain"}));
  files.files = chosen.files;
  files.dispatchEvent(new Event("change"));
  while (!status.textContent.startsWith("2 of 2")) await new Promise(done => setTimeout(done, 20));
  files.focus();
  document.title = [document.activeElement.id, innerWidth, document.documentElement.scrollWidth].join(" ");
});
</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize(("width", "scheme", "colour"), [(1200, 1, (255, 255, 255)), (500, 0, (0x14, 0x16, 0x1B))])
def test_the_page_in_chromium(
    served: Served,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    width: int,
    scheme: int,
    colour: tuple[int, int, int],
) -> None:
    from base64 import b64encode

    from PIL import Image

    from taskres_cache.serving import app

    checked = tmp_path / "page.html"
    script = CHECKS.replace("PICTURE", b64encode(png(tmp_path, 1)).decode())
    checked.write_text(app.PAGE.read_text().replace("</body>", script))
    monkeypatch.setattr(app, "PAGE", checked)
    quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
    own = (f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},1200", "--virtual-time-budget=15000")
    settings = (f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={tmp_path / 'shot.png'}")
    with served() as url:
        dom = subprocess.run(
            [str(CHROMIUM), *quiet, *own, "--dump-dom", url], capture_output=True, text=True, timeout=120
        )
        subprocess.run([str(CHROMIUM), *quiet, *own, *settings, url], capture_output=True, timeout=120, check=True)
    focused, inner, needed = re.findall(r"<title>(.*?)</title>", dom.stdout)[0].split()
    assert focused == "files"  # the keyboard reaches it
    assert int(needed) <= int(inner)  # no horizontal overflow
    items = re.findall(r"<li.*?</li>", dom.stdout, re.DOTALL)
    assert len(items) == 2
    assert sum(item.count('class="bar"') for item in items) == 3
    assert sum("not an image" in item for item in items) == 1
    assert all(re.search(r"\d ms", item) for item in items)
    with Image.open(tmp_path / "shot.png") as picture:
        assert picture.convert("RGB").getpixel((2, 2)) == colour
