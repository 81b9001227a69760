"""The image tower on a GPU, with stubs of torch.cuda: streams of the lanes, TF32, and the size of a batch."""

from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch

from taskres_cache.encoders import backbone as module
from taskres_cache.encoders.backbone import TRIAL_BATCH, Backbone
from taskres_cache.encoders.encoding import LANES_ON_GPU, _begin_lane
from taskres_cache.system.accelerator import FIRST_LANE_STREAM, own_stream

CUDA = torch.device("cuda", 1)
GIB = 1 << 30


class OnGpu(Backbone):
    """A backbone that says that it is on a GPU, and computes nothing."""

    def on_device(self, pixels: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(pixels)

    def encode_images(self, pixels: torch.Tensor) -> np.ndarray:
        assert len(pixels) == TRIAL_BATCH
        return np.empty((len(pixels), 1), np.float32)


def test_lanes_have_the_same_streams_for_every_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    made, used, devices = [], [], []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: made.append(device) or object())
    monkeypatch.setattr(torch.cuda, "set_stream", used.append)
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    own_stream.cache_clear()
    for _ in range(11):
        streams = count(FIRST_LANE_STREAM)
        for _ in range(LANES_ON_GPU):
            _begin_lane(CUDA, streams)
    own_stream.cache_clear()
    assert made == [CUDA] * LANES_ON_GPU
    assert used[:LANES_ON_GPU] * 11 == used
    assert len(set(used)) == LANES_ON_GPU
    assert set(devices) == {CUDA}


@pytest.mark.skipif(torch.cuda.is_available(), reason="the stub has no pixels on the GPU")
@pytest.mark.parametrize(("precision", "calls"), [("fp32", 1), ("fp16", 0), ("bf16", 0)])
def test_convolutions_of_fp32_do_not_use_tf32(
    precision: str, calls: int, glyph_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    monkeypatch.setattr(module, "use_float32_convolutions", lambda: called.append(1))
    on_gpu = replace(glyph_clip, device=CUDA, precision=precision)
    with pytest.raises((RuntimeError, AssertionError)):  # there is no GPU
        on_gpu.encode_images(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))
    assert len(called) == calls


@pytest.mark.parametrize(("free", "at_once", "size"), [(80, 2, 256), (4, 2, 128), (4, 1, 256), (0.001, 2, 1)])
def test_a_batch_fits_into_free_memory(
    free: float, at_once: int, size: int, glyph_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An image takes 10 MiB. Of 4 GiB, 70 % hold 286 images, 143 for each of two batches.
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: GIB)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: GIB + TRIAL_BATCH * 10 * (1 << 20))
    monkeypatch.setattr(module, "free_memory", lambda device: int(free * GIB))
    assert OnGpu(**{**vars(glyph_clip), "device": CUDA}).batch_that_fits(256, at_once) == size
