"""Peak memory of both stages beyond the interpreter and its libraries, measured in separate processes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from taskres_cache.caches.foreign.importing import ImportOptions, import_contents
from tests.datasets.forms.packing import tar_of

CLASSES, DIM, SHOTS, TESTS = 400, 1024, 16, 24_000

MEBIBYTES = """
import sys
from pathlib import Path
import torch

def mebibytes(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024
"""

PROGRAM = f"""
{MEBIBYTES}
from taskres_cache.recipe import Recipe
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.runs.fitting.study import fit_each

def study(shots):
    cache, out = map(Path, sys.argv[1:])
    list(fit_each(FeatureCache(cache), [(shots, 1)], [Recipe(epochs=1)], torch.device("cpu"), out))

study(1)  # warm up: libraries allocate some memory once
before = mebibytes("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # reset the peak
study(16)
print(mebibytes("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs the memory counters of Linux")
def test_a_study_takes_at_most_twice_its_training_features_and_eight_classifiers(tmp_path: Path) -> None:
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
    assert peak < test  # so the test features are never in memory as a whole


IMAGES, WIDTH = 6000, 4096

EXTRACTING = f"""
{MEBIBYTES}
from dataclasses import replace
import open_clip
from taskres_cache.encoders.loading import load_backbone, untrained_model
from taskres_cache.datasets import load_dataset
from taskres_cache.extraction.extract import ExtractOptions, extract

place = Path(sys.argv[1])
open_clip.add_model_config(place / "wide.json")
torch.save(untrained_model("wide", seed=0)[0].state_dict(), place / "wide.pt")
backbone = load_backbone("wide", str(place / "wide.pt"), device="cpu", precision="fp32")
dataset = load_dataset(str(place / "images"), Path())

def take(images):
    part = replace(dataset, test=dataset.test[:images])
    options = ExtractOptions(shots=(1,), seeds=(1,), workers=2)
    assert extract(part, backbone, options, place / f"{{images}}.h5").encoded == images + 2

take(600)  # warm up: libraries allocate some memory once
before = mebibytes("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # reset the peak
take({IMAGES})
print(mebibytes("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs the memory counters of Linux")
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "shards"])
def test_extraction_keeps_a_fraction_of_the_features_in_memory(tmp_path: Path, packed: bool) -> None:
    towers = {
        "embed_dim": WIDTH,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    (tmp_path / "wide.json").write_text(json.dumps(towers))
    (tmp_path / "images").mkdir()
    shards: dict[str, dict[str, bytes]] = {}
    for number in range(IMAGES + 2):
        part, kind = ("train" if number < 2 else "test"), ("even" if number % 2 else "odd")
        pixels = b"P6 4 4 255\n" + number.to_bytes(2, "big") * 24
        if packed:
            shards.setdefault(f"{part}-{number // 1000:03d}.tar", {}).update(
                {f"{number}.ppm": pixels, f"{number}.cls": kind.encode()}
            )
        else:
            file = tmp_path / "images" / part / kind / f"{number}.ppm"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(pixels)
    for name, contents in shards.items():
        tar_of(tmp_path / "images" / name, contents)
    command = [sys.executable, "-c", EXTRACTING, str(tmp_path)]
    peak = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    features = IMAGES * WIDTH * 4 / 2**20
    assert peak < features / 2, f"{peak:.0f} MiB at peak, for {features:.0f} MiB of features"
