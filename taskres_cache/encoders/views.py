"""Augmented views of an image: random resized crop and flip, identical on every machine.

A view depends only on its family, the seed, the path of the image and the number of the view: not on the batch or
process that makes it, and not on which other views are made.
"""

from hashlib import sha256
from math import exp, floor, log, sqrt
from random import Random
from typing import Any, NamedTuple

from PIL import Image

WIDE = "wide"
# Family -> share of the image's area that a crop has. Wide is that of TaskRes, narrow that of Tip-Adapter and LP++.
FAMILIES = {WIDE: (0.08, 1.0), "narrow": (0.5, 1.0)}
SCALE = FAMILIES[WIDE]
RATIO = (3 / 4, 4 / 3)  # width / height
FLIPPED = 0.5  # probability
TRIES = 10

Box = tuple[int, int, int, int]  # left, top, right, bottom


class View(NamedTuple):
    """A rendering of an image: CENTER, or an augmented view.

    Parameters
    ----------
    family : str
        A key of `FAMILIES`.
    seed : int
        Seed of the family.
    number : int
        Number of the view in the family, from 0.
    """

    family: str
    seed: int
    number: int


CENTER = View("center", 0, 0)  # the rendering under the model's own preprocessing


def view_recipe(seed: int, family: str = WIDE) -> dict[str, Any]:
    """Return the parameters of a family of views as plain values."""
    scale = list(FAMILIES[family])
    return {"seed": seed, "scale": scale, "ratio": list(RATIO), "flipped": FLIPPED, "interpolation": "bicubic"}


def augmented_view(
    image: Image.Image, size: tuple[int, int], seed: int, path: str, view: int, family: str = WIDE
) -> Image.Image:
    """Return one augmented view of an image.

    Parameters
    ----------
    image : PIL.Image.Image
        The image in RGB.
    size : tuple of int
        Height and width that the encoder takes.
    seed : int
        Seed of all views of a family.
    path : str
        Path of the image in its data set.
    view : int
        Number of the view, from 0.
    family : str, optional
        A key of `FAMILIES`.

    Notes
    -----
    Source: the training transform of CoOp and TaskRes: `RandomResizedCrop(scale=(0.08, 1), bicubic)`, horizontal flip;
    that of Tip-Adapter has scale (0.5, 1).
    """
    kind = "" if family == WIDE else f"{family}|"
    digest = sha256(f"{kind}{seed}|{view}|{path}".encode()).digest()
    rng = Random(int.from_bytes(digest[:8], "big"))
    height, width = size
    view_of_image = image.crop(crop_box(*image.size, rng, FAMILIES[family])).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    flipped = rng.random() < FLIPPED
    return view_of_image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else view_of_image


def crop_box(width: int, height: int, rng: Random, scale: tuple[float, float] = SCALE) -> Box:
    """Return a random crop as torchvision's RandomResizedCrop draws it; the central crop after ten failed tries."""
    for _ in range(TRIES):
        area = width * height * rng.uniform(*scale)
        ratio = exp(rng.uniform(log(RATIO[0]), log(RATIO[1])))
        crop = round(sqrt(area * ratio)), round(sqrt(area / ratio))
        if 0 < crop[0] <= width and 0 < crop[1] <= height:
            return _box(crop, floor(rng.random() * (width - crop[0] + 1)), floor(rng.random() * (height - crop[1] + 1)))
    crop = _largest_crop(width, height)
    return _box(crop, (width - crop[0]) // 2, (height - crop[1]) // 2)


def _largest_crop(width: int, height: int) -> tuple[int, int]:
    """Return width and height of the largest crop whose ratio is within the limits."""
    if width / height < RATIO[0]:
        return width, max(1, min(height, round(width / RATIO[0])))
    if width / height > RATIO[1]:
        return max(1, min(width, round(height * RATIO[1]))), height
    return width, height


def _box(crop: tuple[int, int], left: int, top: int) -> Box:
    return left, top, left + crop[0], top + crop[1]
