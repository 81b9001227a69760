"""Streamlined towers compute the same function."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from taskres_cache.encoders.checkpoints import digest_of_weights
from taskres_cache.encoders.loading import load_backbone, untrained_model
from taskres_cache.encoders.streamlining import streamlined


def as_after_training(model: nn.Module) -> nn.Module:
    """Give batch norms statistics and weights that differ from the identity."""
    generator = torch.Generator().manual_seed(1)
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        around = ((norm.running_mean, -0.3), (norm.running_var, 0.5), (norm.weight.data, 0.5), (norm.bias.data, -0.2))
        for value, low in around:
            value.copy_(low + torch.rand(value.shape, generator=generator))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def rn50() -> nn.Module:
    return as_after_training(untrained_model("RN50", seed=0)[0])


def test_a_streamlined_rn50_computes_the_same_with_less_work(rn50: nn.Module) -> None:
    pixels = torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    before = pixels.clone()
    with torch.no_grad():
        expected = rn50.visual(pixels)
        counted = dispatched(rn50.visual, pixels)
        less = streamlined(rn50.visual)
        found = less(pixels)
        fewer = dispatched(less, pixels)
        again = rn50.visual(pixels)
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()
    assert torch.equal(pixels, before)
    assert torch.equal(again, expected)  # the original tower is unchanged
    assert (counted["native_batch_norm"], fewer["native_batch_norm"]) == (55, 0)
    assert (counted["add_"], fewer["add_"]) == (16, 16)
    assert fewer["rows of linear maps"] == 3 * (2 * 50 + 2)  # keys and values of 50 tokens; query and output of one
    assert counted["rows of linear maps"] == 3 * 4 * 50


def dispatched(tower: nn.Module, pixels: torch.Tensor) -> dict[str, int]:
    """Return how often a tower calls each operator, and the total number of rows of its linear maps."""
    with torch.profiler.profile(record_shapes=True) as profile:
        tower(pixels)
    counts = {event.key.removeprefix("aten::"): event.count for event in profile.key_averages()}
    linear = [event for event in profile.key_averages(group_by_input_shape=True) if event.key == "aten::linear"]
    rows = sum(event.count * int(np.prod(event.input_shapes[0][:-1])) for event in linear)
    return {"native_batch_norm": 0, "add_": 0, **counts, "rows of linear maps": rows}


def test_a_backbone_is_streamlined_and_has_the_digest_of_its_checkpoint(rn50: nn.Module, tmp_path: Path) -> None:
    torch.save(rn50.state_dict(), tmp_path / "trained.pt")
    backbone = load_backbone("RN50", str(tmp_path / "trained.pt"), device="cpu", precision="fp32")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.model.modules())
    assert backbone.weights_sha256 == digest_of_weights(rn50)
    pixels = torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(backbone.preprocess[name])[:, None, None] for name in ("mean", "std"))
    expected = rn50.encode_image((pixels.permute(0, 3, 1, 2) / 255 - mean) / std).numpy()
    assert np.abs(backbone.encode_images(pixels) - expected).max() <= 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("config", ["RN101", "RN50x4-quickgelu", "timm-mobilenetv4"])
def test_other_towers_compute_the_same(config: str) -> None:
    if config.startswith("timm"):
        import timm

        tower, size = timm.create_model("mobilenetv3_small_050", pretrained=False), 64
    else:
        model, _ = untrained_model(config, seed=0)
        tower, size = model.visual, 288 if "x4" in config else 224
    tower = as_after_training(tower)
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = tower(pixels)
        found = streamlined(tower)(pixels)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_a_tower_without_batch_norms_is_unchanged() -> None:
    tower = untrained_model("ViT-B-32", seed=0)[0].visual
    assert streamlined(tower) is tower


def test_a_tower_that_cannot_be_traced_is_unchanged() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.norm(pixels) if pixels.sum() > 0 else pixels

    tower = Branching().eval()
    assert streamlined(tower) is tower


class Shares(nn.Module):
    """Adds to the result of a convolution that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        mapped = self.convolution(self.norm(pixels))
        return (mapped + pixels) * mapped


def test_a_result_that_is_used_twice_is_not_changed_in_place() -> None:
    tower = as_after_training(Shares())
    pixels = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    expected = tower(pixels)
    assert torch.equal(streamlined(tower)(pixels), expected)


class AllTokens(nn.Module):
    """Attention whose tokens are all used."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.BatchNorm2d(3), nn.MultiheadAttention(4, 2)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(pixels).flatten(2).permute(2, 0, 1)
        own = self.attention
        weights = (own.in_proj_weight, own.in_proj_bias, None, None, False, 0.0, own.out_proj.weight, own.out_proj.bias)
        found, _ = nn.functional.multi_head_attention_forward(
            query=tokens, key=tokens, value=tokens, embed_dim_to_check=4, num_heads=2,
            in_proj_weight=weights[0], in_proj_bias=weights[1], bias_k=None, bias_v=None, add_zero_attn=False,
            dropout_p=0.0, out_proj_weight=weights[6], out_proj_bias=weights[7], training=False, need_weights=False,
        )  # fmt: skip
        return found.mean(dim=0)


def test_attention_whose_tokens_are_all_used_is_computed_in_full() -> None:
    tower = as_after_training(AllTokens())
    tower.norm = nn.BatchNorm2d(4).eval()
    pixels = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = tower(pixels)
        assert torch.allclose(streamlined(tower)(pixels), expected, atol=1e-6)


class WithNumbers(nn.Module):
    """A tower that adds a tensor to a number, as MobileCLIP does."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = self.norm(self.convolution(images))
        return 1 + (found + 2 * found)


def test_adding_to_a_number_works() -> None:
    torch.manual_seed(0)
    tower = WithNumbers().eval()
    tower.norm.running_mean.fill_(0.3)  # type: ignore[union-attr]
    images = torch.randn(2, 3, 8, 8)
    expected = tower(images)
    assert torch.allclose(streamlined(tower)(images), expected, atol=1e-5)
