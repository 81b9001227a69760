"""torchrun: every rank encodes its share, the cache is assembled once, and a killed rank loses only its own block."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.errors import RankError
from taskres_cache.extraction.ranks import Ranks, joined_ranks
from taskres_cache.system.devices import available_cores
from tests.conftest import save_image

BIN = Path(sys.executable).parent
PATIENCE = 90.0


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 1,400 images, six blocks."""
    folder = tmp_path_factory.mktemp("ranks") / "noise"
    for number in range(1400):
        part = "train" if number < 8 else "test"
        save_image(folder / part / ("even" if number % 2 else "odd") / f"{number}.png", number, size=(64, 48))
    return folder


def command(folder: Path, cache_dir: Path, *others: str) -> list[str]:
    weights = ["--backbone", "glyph-clip", "--pretrained", "bundled", "--device", "cpu", "--precision", "fp32"]
    splits = ["--shots", "1", "--seeds", "1", "--views", "2", "--pre-projection", "all"]
    return ["extract", str(folder), *weights, *splits, "--cache-dir", str(cache_dir), *others]


def torchrun(count: int, arguments: list[str]) -> "subprocess.Popen[str]":
    """Start `taskres` under torchrun on this machine, with the command in the README."""
    launch = [str(BIN / "torchrun"), "--standalone", "--nproc-per-node", str(count), "--no-python"]
    return subprocess.Popen(
        [*launch, str(BIN / "taskres"), *arguments], stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def alone(folder: Path, cache_dir: Path) -> FeatureCache:
    subprocess.run([str(BIN / "taskres"), *command(folder, cache_dir)], capture_output=True, check=True)
    return cache_in(cache_dir)


def cache_in(cache_dir: Path) -> FeatureCache:
    return FeatureCache(cache_dir / "glyph-clip-bundled" / "noise.h5")


def assert_same(one: FeatureCache, other: FeatureCache) -> None:
    ours, theirs = one.contents(), other.contents()
    assert (ours.paths, ours.stamps) == (theirs.paths, theirs.stamps)
    assert np.array_equal(ours.image_features, theirs.image_features)
    assert np.array_equal(ours.augmented, theirs.augmented)
    assert np.array_equal(ours.pre_projection, theirs.pre_projection)
    assert np.array_equal(ours.augmented_pre_projection, theirs.augmented_pre_projection)
    assert one.verify().keys() == other.verify().keys()
    assert np.allclose(ours.text.embeddings, theirs.text.embeddings, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def whole(noise: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    return alone(noise, tmp_path_factory.mktemp("whole"))


def test_two_ranks_make_the_same_cache_as_one_process(noise: Path, whole: FeatureCache, tmp_path: Path) -> None:
    running = torchrun(2, command(noise, tmp_path))
    _, printed = running.communicate(timeout=PATIENCE)
    assert running.returncode == 0, printed
    assert re.search(r"images of noise, part 1 of 2: \d+ of \d+", printed)
    assert printed.count("1394 images, 1394 newly encoded") == 1  # only rank 0 prints
    assert printed.count("next: taskres fit noise") == 1
    assert_same(cache_in(tmp_path), whole)
    assert [file.name for file in (tmp_path / "glyph-clip-bundled").iterdir()] == ["noise.h5"]


def test_a_killed_rank_loses_only_its_own_block(noise: Path, whole: FeatureCache, tmp_path: Path) -> None:
    parts = tmp_path / "glyph-clip-bundled" / "noise.h5.parts"
    running = torchrun(2, command(noise, tmp_path))
    deadline = time.monotonic() + PATIENCE
    while not list(parts.glob("image-*.npz")) and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(rank_of(running.pid, 1), signal.SIGKILL)
    running.communicate(timeout=PATIENCE)
    assert running.returncode != 0
    assert not parts.with_name("noise.h5").exists()
    kept = sum(len(np.load(block)["keys"]) for block in parts.glob("image-*.npz"))
    assert kept > 0
    again = torchrun(2, command(noise, tmp_path))
    _, printed = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0, printed
    done = re.search(r"1394 images, (\d+) newly encoded", printed)
    views = re.search(r"2 augmented views per training image, (\d+) newly encoded", printed)
    assert done is not None
    assert views is not None
    assert int(done[1]) + int(views[1]) == 1394 + 2 * 2 - kept
    assert_same(cache_in(tmp_path), whole)


def rank_of(launcher: int, rank: int) -> int:
    """Return the process id of a rank that torchrun started."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            variables = (folder / "environ").read_bytes().split(b"\0")
        except (OSError, IndexError):
            continue
        if parent == launcher and f"RANK={rank}".encode() in variables:
            return int(folder.name)
    raise AssertionError(f"no rank {rank} below {launcher}")


def test_a_failure_of_rank_0_stops_all_ranks(noise: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "glyph-clip-bundled").write_text("not a folder")
    running = torchrun(2, command(noise, tmp_path / "cache"))
    _, printed = running.communicate(timeout=PATIENCE)
    assert running.returncode != 0
    assert len(re.findall(r"^taskres: .*noise.h5 cannot be written", printed, flags=re.MULTILINE)) == 1
    assert "taskres_cache/" not in printed  # no traceback of this library


def test_a_single_process_is_rank_0_of_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with joined_ranks() as ranks:
        assert type(ranks) is Ranks
        assert (ranks.number, ranks.count, ranks.first) == (0, 1, True)
        assert ranks.gathered("own") == ["own"]
        assert ranks.agreed(lambda: 5) == 5


def test_cores_are_divided_among_the_ranks_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr("taskres_cache.system.devices.CPU_QUOTA", Path("/nowhere"))
    assert available_cores() == 8
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert available_cores() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # torchrun sets both
    assert available_cores() == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "20")
    assert available_cores() == 1


@pytest.mark.parametrize(("quota", "cores"), [("200000 100000\n", 2), ("50000 100000\n", 1), ("max 100000\n", 8)])
def test_a_container_may_limit_the_cores(
    quota: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    for variable in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr("taskres_cache.system.devices.CPU_QUOTA", tmp_path / "cpu.max")
    assert available_cores() == cores


class Exchange:
    """The parts of torch.distributed that two ranks use, seen from rank 0; the other rank may be gone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_lost = False
        parts = {
            "init_process_group": self.exchange,
            "get_rank": lambda: 0,
            "get_world_size": lambda: 2,
            "broadcast_object_list": self.exchange,
            "all_gather_object": self.exchange,
            "is_initialized": lambda: False,
        }
        for name, part in parts.items():
            monkeypatch.setattr(f"taskres_cache.extraction.ranks.dist.{name}", part)
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "0")

    def exchange(self, *_: object, **__: object) -> None:
        if self.is_lost:
            raise RuntimeError("Connection closed by peer")


def test_a_lost_rank_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    exchange = Exchange(monkeypatch)
    with joined_ranks() as ranks:
        exchange.is_lost = True
        with pytest.raises(RankError, match="lost the connection to the other ranks .*Connection closed by peer"):
            ranks.gathered("own")
        with pytest.raises(RankError, match="lost the connection to the other ranks"):
            ranks.agreed(lambda: 5)


def test_an_error_of_the_work_is_not_a_lost_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    Exchange(monkeypatch)

    def full() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError), joined_ranks():
        full()
    with pytest.raises(torch.OutOfMemoryError), joined_ranks() as ranks:
        ranks.agreed(full)
