"""Augmented views: torchvision's transform with another generator; only seed, path and number matter."""

from collections.abc import Callable
from hashlib import sha256
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.functional import resized_crop

from taskres_cache.encoders import views as module
from taskres_cache.encoders.views import augmented_view, crop_box, view_recipe


def picture(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width + 1000 * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def both_crops(width: int, height: int, monkeypatch: pytest.MonkeyPatch, draws: Callable[[], float]) -> tuple:
    """Return our crop and torchvision's as (left, top, right, bottom), from the same random numbers."""

    class Fed(Random):
        def random(self) -> float:
            return draws()

    def uniform(_: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return torch.tensor(float(low) + (float(high) - float(low)) * draws(), dtype=torch.float64)

    def randint(low: int, high: int, size: tuple[int, ...]) -> torch.Tensor:
        return torch.tensor([low + int(draws() * (high - low))])

    ours = crop_box(width, height, Fed())
    monkeypatch.setattr(torch.Tensor, "uniform_", uniform)
    monkeypatch.setattr(torch, "randint", randint)
    top, left, tall, wide = RandomResizedCrop.get_params(picture(width, height), module.SCALE, module.RATIO)
    return ours, (left, top, left + wide, top + tall)


@pytest.mark.parametrize("number", [0.0, 0.25, 0.5, 0.999])
@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (32, 32), (300, 20), (20, 300), (1, 1)])
def test_crops_equal_torchvisions(width: int, height: int, number: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # The same number for every draw: this also covers ten failed tries.
    ours, theirs = both_crops(width, height, monkeypatch, lambda: number)
    assert ours == theirs


def test_crops_have_the_distribution_of_the_paper() -> None:
    boxes = np.array([crop_box(400, 300, Random(seed)) for seed in range(4000)])
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    area = width * height / (400 * 300)
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= 400
    assert boxes[:, 3].max() <= 300
    assert 0.079 < area.min() < 0.09
    assert area.max() > 0.95
    assert (width / height).min() > 0.74
    assert (width / height).max() < 1.35
    torch.manual_seed(0)
    theirs = [RandomResizedCrop.get_params(picture(400, 300), module.SCALE, module.RATIO)[2:] for _ in range(4000)]
    quantiles = (0.1, 0.5, 0.9)
    expected = np.quantile([tall * wide / (400 * 300) for tall, wide in theirs], quantiles)
    assert np.allclose(np.quantile(area, quantiles), expected, atol=0.03)


def test_a_view_equals_torchvisions_crop_and_resize() -> None:
    image = picture(120, 90)
    shown = augmented_view(image, (48, 64), seed=0, path="a.png", view=3)
    assert shown.size == (64, 48)
    left, top, right, bottom = crop_box(120, 90, Random(seed_of(0, "a.png", 3)))
    expected = resized_crop(image, top, left, bottom - top, right - left, [48, 64], InterpolationMode.BICUBIC)
    either = (expected, expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert [np.array_equal(np.asarray(shown), np.asarray(one)) for one in either].count(True) == 1


def seed_of(seed: int, path: str, view: int) -> int:
    return int.from_bytes(sha256(f"{seed}|{view}|{path}".encode()).digest()[:8], "big")


def test_a_view_depends_only_on_seed_path_and_number() -> None:
    image = picture(64, 64)
    shown = {
        name: np.asarray(augmented_view(image, (32, 32), *of)).tobytes()
        for name, of in {
            "one": (0, "a.png", 0),
            "seed": (1, "a.png", 0),
            "view": (0, "a.png", 1),
            "path": (0, "b.png", 0),
        }.items()
    }
    assert len(set(shown.values())) == 4
    np.random.default_rng().random()
    torch.rand(3)
    assert np.asarray(augmented_view(image, (32, 32), 0, "a.png", 0)).tobytes() == shown["one"]


def test_views_are_the_same_on_every_machine() -> None:
    # Recorded once: other values would not match the views in existing caches.
    assert crop_box(500, 375, Random(seed_of(0, "cat/1.jpg", 0))) == (174, 48, 403, 339)
    assert crop_box(500, 375, Random(seed_of(7, "été/2 3.png", 11))) == (116, 53, 464, 359)


def test_half_of_all_views_are_flipped() -> None:
    ramp = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (200, 1))).convert("RGB")
    rising = 0
    for view in range(600):
        row = np.asarray(augmented_view(ramp, (16, 16), 0, "ramp", view))[8, :, 0].astype(int)
        rising += row[-1] > row[0]
    assert 250 < rising < 350


def test_the_recipe_has_the_parameters_of_the_views() -> None:
    recipe = view_recipe(5)
    assert recipe["seed"] == 5
    assert recipe["scale"] == [0.08, 1.0]
    assert recipe["interpolation"] == "bicubic"
