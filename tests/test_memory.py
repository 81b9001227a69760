"""How much memory a study takes beyond the interpreter and its libraries, measured in a process of its own."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from taskres_cache.arrays import ImportOptions, import_contents

CLASSES, DIM, SHOTS, TESTS = 400, 1024, 16, 24_000

PROGRAM = """
import sys
from pathlib import Path
import torch
from taskres_cache.recipe import Recipe
from taskres_cache.store import FeatureCache
from taskres_cache.study import run_study

def mebibytes(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024

def study(shots):
    cache, out = map(Path, sys.argv[1:])
    list(run_study(FeatureCache(cache), [(shots, 1)], [Recipe(epochs=1)], torch.device("cpu"), out))

study(1)  # so that what libraries set up once is there
before = mebibytes("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
study(16)
print(mebibytes("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measured as Linux measures it")
def test_a_study_takes_twice_its_training_features_and_eight_classifiers_at_most(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = {"train": np.repeat(np.arange(CLASSES), SHOTS), "test": np.arange(TESTS) % CLASSES}
    parts = {f"{part}_features": rng.random((len(some), DIM), np.float32) for part, some in labels.items()}
    named = {f"{part}_labels": some for part, some in labels.items()}
    names = np.array([f"class {number}" for number in range(CLASSES)])
    arrays = {**parts, **named, "text_features": rng.random((CLASSES, DIM), np.float32), "classnames": names}
    done = import_contents(arrays, ImportOptions("large", shots=(1, SHOTS), seeds=(1,)), tmp_path)
    command = [sys.executable, "-c", PROGRAM, str(done.path), str(tmp_path / "runs")]
    peak = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    training, classifier, test = (rows * DIM * 4 / 2**20 for rows in (CLASSES * SHOTS, CLASSES, TESTS))
    assert peak < 2 * training + 8 * classifier
    assert peak < test  # which is therefore never held as a whole
