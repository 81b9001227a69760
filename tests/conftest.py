"""Small real files, made in `tmp_path`, and the command line as a user meets it."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from taskres_cache.caches.contents import CacheContents, Split, TextBases
from taskres_cache.caches.hdf5 import write_cache
from taskres_cache.caches.provenance import Provenance
from taskres_cache.datasets import Dataset, load_dataset
from taskres_cache.encoders.backbone import Backbone
from taskres_cache.encoders.loading import load_backbone
from taskres_cache.extraction.extract import ExtractOptions, extract
from taskres_cache.runs.metrics import Metrics


@dataclass(frozen=True)
class Outcome:
    """What a command did: its exit status and what it printed where."""

    status: int
    out: str
    err: str


Taskres = Callable[..., Outcome]


@pytest.fixture
def taskres(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Taskres:
    """Run `taskres` in this process, exactly as the installed command does."""
    from taskres_cache.cli import main

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["taskres", *map(str, arguments)])
        capfd.readouterr()
        try:
            main()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(bool(end.code))
        printed = capfd.readouterr()
        return Outcome(status, printed.out, printed.err)

    return run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that commands run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def metrics_of(**known: Any) -> Metrics:
    """Return metrics of one seed of the paper's method, with what a test is about put in."""
    of_a_run = {"dataset": "toy", "backbone": "tower", "pretrained": "random", "method": "taskres-regular"}
    return Metrics(**{**of_a_run, "shots": 16, "seed": 1, "zero_shot_accuracy": 50.0, "test_accuracy": 80.0, **known})


def make_earlier(folder: Path, *absent: str, **changed: Any) -> None:
    """Make a run of an earlier version of a run: without digests, without some fields, with others changed."""
    stored = json.loads((folder / "metrics.json").read_text())
    for name in ("study_sha256", "classifier_sha256", "cache_from_run", "content_sha256", *absent):
        del stored[name]
    (folder / "metrics.json").write_text(json.dumps({**stored, **changed}))
    file = folder / "classifier.safetensors"
    with safe_open(file, framework="numpy") as opened:
        metadata = opened.metadata()
    del metadata["content_sha256"], metadata["inputs_sha256"]
    save_file(load_file(file), file, metadata)


def one_line(outcome: Outcome) -> str:
    """Return the one line that a failed command prints, after checking that it is one and no traceback."""
    lines = [line for line in outcome.err.splitlines() if line.startswith("taskres: ")]
    assert len(lines) == 1, outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    return lines[0]


def as_the_protocol_says(split: dict, shots: int, seed: int) -> tuple[list[str], list[str]]:
    """Draw from a split file as CoOp does: the protocol written a second time, over paths instead of positions."""
    rng = Random(seed)
    drawn = []
    for part, count in (("train", shots), ("val", min(shots, 4))):
        by_label: dict[int, list[str]] = {}
        for path, label, _ in split[part]:
            by_label.setdefault(label, []).append(path)
        groups = [rng.sample(paths, count) if len(paths) >= count else paths for paths in by_label.values()]
        drawn.append([path for group in groups for path in group])
    return drawn[0], drawn[1]


@pytest.fixture(scope="session")
def glyph_clip() -> Backbone:
    return load_backbone("glyph-clip", "bundled", device="cpu", precision="fp32")


@pytest.fixture(scope="session")
def digits_cache(glyph_clip: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of the bundled digits with all shots and seeds of the paper; only to be read."""
    path = tmp_path_factory.mktemp("digits") / "digits.h5"
    extract(load_dataset("digits", Path()), glyph_clip, ExtractOptions(), path)
    return path


def save_image(path: Path, seed: int, size: tuple[int, int] = (40, 30)) -> None:
    """Write a real image file with content of its own, in the format that its suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of three classes with ten images each, JPEG and PNG, one name with a space and one not ASCII."""
    folder = tmp_path / "photos"
    for label, classname in enumerate(["black_cat", "dog", "été"]):
        for number in range(10):
            suffix = "jpg" if number % 2 else "png"
            save_image(folder / classname / f"image {number}.{suffix}", seed=100 * label + number)
    return folder


@pytest.fixture
def dataset(photos: Path) -> Dataset:
    """The same photos as a data set."""
    return load_dataset(str(photos), Path())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where their cache belongs."""
    return tmp_path / "cache" / "glyph-clip-bundled" / "photos.h5"


@pytest.fixture
def provenance() -> Provenance:
    return Provenance(
        dataset="toy",
        backbone="tower",
        pretrained="random",
        model_config="tower",
        weights_sha256="ab" * 32,
        logit_scale=100.0,
        preprocess={"size": [8, 8], "orientation": "exif"},
        precision="fp32",
        classnames_form="spaces",
        split="given",
    )


@pytest.fixture
def contents(provenance: Provenance) -> CacheContents:
    """A cache of 3 classes: 12 train, 3 val and 9 test images in 8 dimensions, around one direction a class."""
    rng = np.random.default_rng(7)
    centres = rng.normal(size=(3, 8))
    labels = np.tile(np.arange(3, dtype=np.int32), 8)
    towers = (centres[:, None, :] + rng.normal(scale=0.8, size=(3, 2, 8))).astype(np.float32)
    return CacheContents(
        provenance=provenance,
        classnames=("black_cat", "dog", "été"),
        paths=tuple(f"{row}/été {row}.png" for row in range(24)),
        stamps=tuple(f"10-{row}" for row in range(24)),
        labels=labels,
        partitions=np.repeat([0, 1, 2], [12, 3, 9]).astype(np.uint8),
        image_features=(centres[labels] + rng.normal(scale=0.7, size=(24, 8))).astype(np.float32),
        text=TextBases(("a photo of a {}.", "art of the {}."), towers, towers, np.eye(8, dtype=np.float32)),
        splits={
            (1, 1): Split(np.array([5, 0, 7]), np.array([12, 13, 14])),
            (1, 2): Split(np.array([3, 4, 11]), np.array([12, 13, 14])),
            (4, 1): Split(np.arange(12), np.array([14, 13, 12])),
            (4, 2): Split(np.arange(12)[::-1].copy(), np.array([12, 13, 14])),
        },
    )


@pytest.fixture
def cache_file(tmp_path: Path, contents: CacheContents) -> Path:
    path = tmp_path / "cache" / "tower-random" / "toy.h5"
    write_cache(path, contents)
    return path
