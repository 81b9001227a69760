"""`taskres extract` killed or interrupted as a user would do it, then the same command again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from taskres_cache.caches.feature_cache import FeatureCache
from tests.conftest import save_image

PATIENCE = 120.0
ATTEMPTS = 4
BLOCKS_MADE = "image-*.npz"


def extract(folder: Path, cache_dir: Path) -> list[str]:
    weights = ["--backbone", "glyph-clip", "--pretrained", "bundled", "--device", "cpu"]
    command = [str(Path(sys.executable).with_name("taskres")), "extract", str(folder), *weights]
    return [*command, "--batch-size", "8", "--shots", "1", "--seeds", "1", "--cache-dir", str(cache_dir)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kill") / "noise"
    for number in range(1214):
        part = "train" if number < 4 else "test"
        save_image(folder / part / ("even" if number % 2 else "odd") / f"{number}.png", number, size=(160, 160))
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    cache_dir = tmp_path_factory.mktemp("whole")
    subprocess.run(extract(folder, cache_dir), capture_output=True, check=True)
    return FeatureCache(cache_dir / "glyph-clip-bundled" / "noise.h5")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_stopped_command_resumes_where_it_was(
    folder: Path, whole: FeatureCache, tmp_path: Path, how: signal.Signals
) -> None:
    parts = tmp_path / "glyph-clip-bundled" / "noise.h5.parts"
    for _ in range(ATTEMPTS):
        status, printed = stopped(folder, tmp_path, how)
        if not parts.with_name("noise.h5").exists():
            break
        shutil.rmtree(parts.parent)  # the run was over before it could be stopped
    assert status == (130 if how is signal.SIGINT else -how)
    if how is signal.SIGINT:
        assert printed.splitlines()[-1].startswith("Interrupted. Finished blocks are kept")
    assert "Traceback" not in printed
    kept = sum(len(np.load(block)["keys"]) for block in parts.glob(BLOCKS_MADE))
    assert 0 < kept < 1212

    again = subprocess.run(extract(folder, tmp_path), capture_output=True, text=True, check=True)
    assert f"1212 images, {1212 - kept} newly encoded" in again.stderr
    assert ("ended before its work was done" in again.stderr) == (how is not signal.SIGINT)
    resumed, expected = FeatureCache(parts.with_name("noise.h5")).contents(), whole.contents()
    assert resumed.paths == expected.paths
    assert np.array_equal(resumed.image_features, expected.image_features)
    assert np.array_equal(resumed.pre_projection, expected.pre_projection)
    assert np.array_equal(resumed.text.embeddings, expected.text.embeddings)
    assert [file.name for file in parts.parent.iterdir()] == ["noise.h5"]


def stopped(folder: Path, cache_dir: Path, how: signal.Signals, *options: str) -> tuple[int, str]:
    """Stop an extraction after its first block, and return its exit status and what it printed."""
    parts = cache_dir / "glyph-clip-bundled" / "noise.h5.parts"
    command = [*extract(folder, cache_dir), *options]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_until(lambda: bool(list(parts.glob(BLOCKS_MADE))) or running.poll() is not None)
    if how is signal.SIGINT:
        os.killpg(running.pid, how)  # like the terminal: to the decoding processes as well
    else:
        running.send_signal(how)
    _, printed = running.communicate(timeout=PATIENCE)  # returns once the decoding processes have ended too
    return running.returncode, printed


def wait_until(true) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true() and time.monotonic() < deadline:
        time.sleep(0.005)


def test_a_killed_command_keeps_its_blocks_of_prompts(tmp_path: Path) -> None:
    for number in range(6):
        save_image(tmp_path / "pair" / ("even" if number % 2 else "odd") / f"{number}.png", number)
    sentences = {name: [f"{name} sentence {number}" for number in range(4000)] for name in ("even", "odd")}
    (tmp_path / "text.json").write_text(json.dumps(sentences))
    subprocess.run(extract(tmp_path / "pair", tmp_path / "killed"), capture_output=True, check=True)
    shutil.copytree(tmp_path / "killed", tmp_path / "whole")
    text = ["--prompts-name", "long", "--class-descriptions", str(tmp_path / "text.json"), "--device", "cpu"]
    taskres = str(Path(sys.executable).with_name("taskres"))

    def command(cache_dir: str) -> list[str]:
        return [taskres, "extract", "pair", *text, "--cache-dir", str(tmp_path / cache_dir)]

    subprocess.run(command("whole"), capture_output=True, check=True)
    parts = tmp_path / "killed" / "glyph-clip-bundled" / "pair.h5.parts"
    process = subprocess.Popen(command("killed"), stderr=subprocess.DEVNULL)
    until = time.monotonic() + PATIENCE
    while len(list(parts.glob("text-*.npz"))) < 5 and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    finished = {file.name: file.stat().st_mtime_ns for file in parts.glob("text-*.npz")}
    assert 5 <= len(finished) < 125
    done = subprocess.run(command("killed"), capture_output=True, check=True, text=True)
    assert f"({64 * len(finished)} already there)" in done.stderr
    whole, killed = (FeatureCache(tmp_path / one / "glyph-clip-bundled" / "pair.h5") for one in ("whole", "killed"))
    assert len(whole.text("long").texts) == 8000
    for part in ("texts", "embeddings", "pre_projection"):
        assert np.array_equal(getattr(whole.text("long"), part), getattr(killed.text("long"), part))
    assert not parts.exists()
