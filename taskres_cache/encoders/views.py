"""Augmented views of an image: random resized crop and flip, the same on any machine.

A view is drawn from (seed, path of the image, number of the view) and from nothing else, so that neither the batch nor
the process that it is made in, nor what else is made, changes it.
"""

from hashlib import sha256
from math import exp, floor, log, sqrt
from random import Random
from typing import Any

from PIL import Image

CENTER = -1  # number of the rendering under the model's own preprocessing; augmented views count from 0

SCALE = (0.08, 1.0)  # of the image's area
RATIO = (3 / 4, 4 / 3)  # width by height
FLIPPED = 0.5  # of all views
TRIES = 10

Box = tuple[int, int, int, int]  # left, top, right, bottom


def view_recipe(seed: int) -> dict[str, Any]:
    """Return what views are made by, as plain values."""
    return {"seed": seed, "scale": list(SCALE), "ratio": list(RATIO), "flipped": FLIPPED, "interpolation": "bicubic"}


def augmented_view(image: Image.Image, size: tuple[int, int], seed: int, path: str, view: int) -> Image.Image:
    """Return one augmented view of an image.

    Parameters
    ----------
    image : in RGB.
    size : height and width that the encoder takes.
    seed : of all views of a cache.
    path : what the image is known by in its data set.
    view : number of the view.

    Notes
    -----
    Source: the training transform of CoOp and TaskRes: `RandomResizedCrop(scale=(0.08, 1), bicubic)`, horizontal flip.
    """
    digest = sha256(f"{seed}|{view}|{path}".encode()).digest()
    rng = Random(int.from_bytes(digest[:8], "big"))
    height, width = size
    view_of_image = image.crop(crop_box(*image.size, rng)).resize((width, height), Image.Resampling.BICUBIC)
    flipped = rng.random() < FLIPPED
    return view_of_image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else view_of_image


def crop_box(width: int, height: int, rng: Random) -> Box:
    """Return a random crop as torchvision's RandomResizedCrop draws it; the middle, in vain for ten times."""
    for _ in range(TRIES):
        area = width * height * rng.uniform(*SCALE)
        ratio = exp(rng.uniform(log(RATIO[0]), log(RATIO[1])))
        crop = round(sqrt(area * ratio)), round(sqrt(area / ratio))
        if 0 < crop[0] <= width and 0 < crop[1] <= height:
            return _box(crop, floor(rng.random() * (width - crop[0] + 1)), floor(rng.random() * (height - crop[1] + 1)))
    crop = _widest(width, height)
    return _box(crop, (width - crop[0]) // 2, (height - crop[1]) // 2)


def _widest(width: int, height: int) -> tuple[int, int]:
    """Return the largest crop whose ratio is within the limits."""
    if width / height < RATIO[0]:
        return width, max(1, min(height, round(width / RATIO[0])))
    if width / height > RATIO[1]:
        return max(1, min(width, round(height * RATIO[1]))), height
    return width, height


def _box(crop: tuple[int, int], left: int, top: int) -> Box:
    return left, top, left + crop[0], top + crop[1]
