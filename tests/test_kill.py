"""`kill -9` in the middle of `taskres extract`, then the same command again."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from taskres_cache.store import FeatureCache
from tests.conftest import save_image

PATIENCE = 120.0


def extract(folder: Path, cache_dir: Path) -> list[str]:
    weights = ["--backbone", "glyph-clip", "--pretrained", "bundled", "--device", "cpu"]
    command = [str(Path(sys.executable).with_name("taskres")), "extract", str(folder), *weights]
    return [*command, "--batch-size", "8", "--shots", "1", "--seeds", "1", "--cache-dir", str(cache_dir)]


def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    folder = tmp_path / "noise"
    for number in range(702):
        part = "train" if number < 4 else "test"
        save_image(folder / part / ("even" if number % 2 else "odd") / f"{number}.png", number, size=(160, 160))
    cache_dir = tmp_path / "cache"
    parts = cache_dir / "glyph-clip-bundled" / "noise.h5.parts"

    running = subprocess.Popen(extract(folder, cache_dir), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE
    while not list(parts.glob("image-*.npz")) and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not parts.with_name("noise.h5").exists(), "the run was over before it could be killed"
    finished = {block: block.stat().st_mtime_ns for block in parts.glob("image-*.npz")}
    kept = sum(len(np.load(block)["keys"]) for block in finished)
    assert 0 < kept < 700

    again = subprocess.run(extract(folder, cache_dir), capture_output=True, text=True, check=True)
    assert f"700 images, {700 - kept} of them encoded now" in again.stderr
    subprocess.run(extract(folder, tmp_path / "whole"), capture_output=True, check=True)
    bases = (cache_dir, tmp_path / "whole")
    resumed, whole = (FeatureCache(base / "glyph-clip-bundled" / "noise.h5").contents() for base in bases)
    assert resumed.paths == whole.paths
    assert np.array_equal(resumed.image_features, whole.image_features)
    assert np.array_equal(resumed.text.embeddings, whole.text.embeddings)
    assert not parts.exists()
