"""Images and captions of glyphs: distorted pen strokes and fonts, as bitmaps and as 8x8 counts of ink.

All functions depend only on their arguments and a numpy Generator. Axes: N images, P points along a glyph's strokes,
K control points of a stroke, S = 32 rows and columns of a bitmap, Q = 8 rows and columns of counts, 2 for (x, y).
"""

import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIDE = 32
BLOCK = 4  # ink is counted in blocks of 4x4 pixels, which gives 8x8 counts of 0 to 16
POINTS = 128  # along all strokes of a glyph: less than a pixel apart in a 32x32 bitmap
STEPS_PER_SPAN = 16
FONT_SIZE = 64
STROKES_FILE = Path(__file__).parent / "strokes.txt"

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
GLYPHS = (*string.digits, *string.ascii_lowercase)  # the classes; both cases of a letter are one class
DIGIT_TEMPLATES = (
    "a handwritten digit {}.",
    "a photo of the digit {}.",
    "the number {}.",
    "a handwritten {}.",
    "the digit {}.",
    "a photo of the number {}.",
    "a drawing of the digit {}.",
    "a scan of a handwritten {}.",
    "a small picture of the figure {}.",
    "a printed digit {}.",
    "number {}",
    "{}",
)
LETTER_TEMPLATES = (
    "a handwritten letter {}.",
    "a photo of the letter {}.",
    "the letter {}.",
    "a drawing of the letter {}.",
    "a printed letter {}.",
    "letter {}",
)

Stroke = np.ndarray  # (K, 2) control points in a 100 by 100 square
Way = tuple[float, tuple[Stroke, ...]]  # weight of this way to write a digit, and its strokes


@dataclass(frozen=True)
class Distortion:
    """Amount of random distortion; lengths are in hundredths of the glyph's height.

    Parameters
    ----------
    jitter : float
        Standard deviation of a control point's displacement.
    wave : float
        Amplitude of the smooth displacement over the whole glyph.
    shear, lean : float
        Standard deviation and mean of the slant, a ratio.
    turn : float
        Standard deviation of the rotation, in radians.
    aspect : float
        Standard deviation of the logarithm of width over height.
    trim : float
        Maximum length cut off or added at each end of a stroke, as a share of its length.
    pen : tuple of float
        Minimum and maximum radius of the pen, in pixels of the 32x32 bitmap.
    broken : float
        Share of the glyphs whose strokes have a gap.
    squeezed : float
        Share of the glyphs that do not fill the height of the bitmap.
    """

    jitter: float = 4.0
    wave: float = 3.0
    shear: float = 0.20
    lean: float = 0.10
    turn: float = 0.11
    aspect: float = 0.22
    trim: float = 0.12
    pen: tuple[float, float] = (1.1, 3.3)
    broken: float = 0.06
    squeezed: float = 0.25


def captions(glyph: str) -> list[str]:
    """Return all captions of a glyph; digits are named by figure and by word."""
    if glyph.isdigit():
        names = (glyph, DIGIT_WORDS[int(glyph)])
        return [template.format(name) for name in names for template in DIGIT_TEMPLATES]
    return [template.format(glyph) for template in LETTER_TEMPLATES]


def ways_to_write() -> dict[str, list[Way]]:
    """Return the ways to write each digit, read from `strokes.txt`."""
    ways: dict[str, list[Way]] = {digit: [] for digit in string.digits}
    for line in STROKES_FILE.read_text(encoding="ascii").splitlines():
        if line and not line.startswith("#"):
            digit, weight, strokes = line.split(" ", 2)
            ways[digit].append((float(weight), tuple(_read_stroke(text) for text in strokes.split(" / "))))
    return ways


def pen_bitmap(rng: np.random.Generator, ways: Sequence[Way], distortion: Distortion) -> np.ndarray:
    """Draw a digit with a pen in one of its ways, as a bitmap (S, S) of bool."""
    weights = np.array([weight for weight, _ in ways])
    strokes = ways[rng.choice(len(ways), p=weights / weights.sum())][1]
    curves = [_trimmed(rng, _smooth(stroke), distortion.trim) for stroke in _jittered(rng, strokes, distortion.jitter)]
    points = _evenly(curves)  # (P, 2)
    x, y = points.T / 100 - 0.5
    points = np.stack(_warped(rng, x, y, distortion), axis=1)
    radius = rng.uniform(*distortion.pen)
    radii = radius * (1 + 0.18 * _wobble(rng, np.linspace(0, 1, POINTS)))  # (P,)
    points = _into_box(rng, points, 2 * radius, distortion)
    if rng.random() < distortion.broken:
        start, length = rng.integers(POINTS), rng.integers(6, 16)
        points, radii = (
            np.delete(points, slice(start, start + length), 0),
            np.delete(radii, slice(start, start + length)),
        )
    return _inked(points, radii)


def font_bitmap(
    rng: np.random.Generator, font: ImageFont.FreeTypeFont, character: str, distortion: Distortion
) -> np.ndarray:
    """Draw a character of a font, warped, with thinner or thicker strokes, as a bitmap (S, S) of bool."""
    sheet = Image.new("L", (3 * FONT_SIZE, 3 * FONT_SIZE))
    ImageDraw.Draw(sheet).text((FONT_SIZE, FONT_SIZE // 2), character, font=font, fill=255)
    box = sheet.getbbox()
    if box is None:
        raise ValueError(f"the font {font.getname()} has no glyph for {character!r}")
    thick = sheet.crop(box).filter(ImageFilter.MaxFilter(3))  # otherwise hairlines get lost between the pixels
    glyph = np.asarray(thick, dtype=np.float32) / 255
    warped = _warped_image(rng, glyph, distortion)
    ink = _cropped(warped > 0.5).astype(np.float32)
    width, height = _box_size(rng, ink.shape[1] / ink.shape[0], SIDE, distortion)
    soft = Image.fromarray(ink).resize((max(round(width), 3), max(round(height), 3)), Image.Resampling.BOX)
    canvas = np.zeros((SIDE, SIDE), dtype=np.float32)
    left, top = (SIDE - soft.width) // 2, (SIDE - soft.height) // 2
    canvas[top : top + soft.height, left : left + soft.width] = np.asarray(soft)
    return _blurred(canvas) > rng.uniform(0.10, 0.45)  # a low threshold makes thicker strokes


def block_counts(bitmap: np.ndarray) -> np.ndarray:
    """Return the number of ink pixels per 4x4 block, (Q, Q), 0 to 16, of a bitmap (S, S)."""
    blocks = bitmap.reshape(SIDE // BLOCK, BLOCK, SIDE // BLOCK, BLOCK)
    counts: np.ndarray = blocks.sum(axis=(1, 3))
    return counts


def as_pixels(counts: np.ndarray) -> np.ndarray:
    """Return counts of any shape as grey levels, bright ink on black: round(count * 255 / 16), uint8."""
    return np.round(counts * (255 / BLOCK**2)).astype(np.uint8)


def _read_stroke(text: str) -> Stroke:
    return np.array([[float(number) for number in point.split(",")] for point in text.split()])


def _jittered(rng: np.random.Generator, strokes: Sequence[Stroke], amount: float) -> list[Stroke]:
    """Return strokes (K, 2) with displaced control points; shared points move together, so corners stay closed."""
    together = np.concatenate(strokes)
    distinct, index = np.unique(together, axis=0, return_inverse=True)
    moved = (distinct + rng.normal(0, amount, distinct.shape))[index.ravel()]
    return np.split(moved, np.cumsum([len(stroke) for stroke in strokes])[:-1])


def _smooth(stroke: Stroke) -> np.ndarray:
    """Return points along the uniform Catmull-Rom curve through a stroke's control points (K, 2)."""
    padded = np.concatenate([2 * stroke[:1] - stroke[1:2], stroke, 2 * stroke[-1:] - stroke[-2:-1]])
    before, start, end, after = padded[:-3, None], padded[1:-2, None], padded[2:-1, None], padded[3:, None]
    t = np.linspace(0, 1, STEPS_PER_SPAN)[:, None]
    curve = start + 0.5 * t * (
        end - before + t * (2 * before - 5 * start + 4 * end - after + t * (3 * (start - end) + after - before))
    )
    points: np.ndarray = curve.reshape(-1, 2)
    return points


def _trimmed(rng: np.random.Generator, curve: np.ndarray, most: float) -> np.ndarray:
    """Return a curve with both ends cut off or extended straight, each by up to `most` of its points."""
    count = len(curve)
    for _ in range(2):
        share = rng.uniform(-most, most) * rng.random()
        if share > 0:
            curve = curve[round(share * count) :]
        else:
            ahead = curve[0] - share * count * (curve[0] - curve[3]) / 3
            curve = np.concatenate([ahead[None], curve])
        curve = curve[::-1]
    return curve


def _evenly(curves: Sequence[np.ndarray]) -> np.ndarray:
    """Return points (P, 2) at equal distances along all curves."""
    steps = [np.linalg.norm(np.diff(curve, axis=0), axis=1) + 1e-6 for curve in curves]
    lengths = np.array([step.sum() for step in steps])
    bounds = np.round(np.concatenate([[0], np.cumsum(lengths) / lengths.sum()]) * POINTS).astype(int)
    parts = []
    for curve, step, count in zip(curves, steps, np.diff(bounds), strict=True):
        along = np.concatenate([[0], np.cumsum(step)])
        wanted = np.linspace(0, along[-1], count)
        parts.append(np.stack([np.interp(wanted, along, curve[:, axis]) for axis in (0, 1)], axis=1))
    return np.concatenate(parts)


def _wobble(rng: np.random.Generator, along: np.ndarray) -> np.ndarray:
    """Return a smooth random function, with amplitude about 1, at values between 0 and 1."""
    waves = np.zeros_like(along)
    for frequency in (0.5, 1, 2):
        waves += rng.normal() / frequency * np.sin(2 * np.pi * (frequency * along + rng.random()))
    return waves


def _warped(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, distortion: Distortion
) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates (-0.5 to 0.5, broadcast against each other) after bending, slanting and rotating."""
    bend = distortion.wave / 100
    across = x + bend * (_wobble(rng, y) + 0.5 * _wobble(rng, x))
    down = y + bend * (_wobble(rng, x) + 0.5 * _wobble(rng, y))
    across = across * np.exp(rng.normal(0, distortion.aspect))
    across = across - rng.normal(distortion.lean, distortion.shear) * down
    turn = rng.normal(0, distortion.turn)
    return np.cos(turn) * across - np.sin(turn) * down, np.sin(turn) * across + np.cos(turn) * down


def _box_size(rng: np.random.Generator, aspect: float, side: float, distortion: Distortion) -> tuple[float, float]:
    """Return width and height of the box for a glyph with a ratio of width to height; usually of full height."""
    height = side * (rng.uniform(0.75, 1) if rng.random() < distortion.squeezed else 1.0)
    return min(aspect * height, side * rng.uniform(0.7, 1.0)), height


def _into_box(rng: np.random.Generator, points: np.ndarray, margin: float, distortion: Distortion) -> np.ndarray:
    """Return points (P, 2) scaled and centred in the bitmap, with room for a pen as wide as `margin`."""
    low, high = points.min(axis=0), points.max(axis=0)
    extent = np.maximum(high - low, 0.05)
    width, height = _box_size(rng, 0.8 * float(extent[0] / extent[1]), SIDE - margin, distortion)
    placed: np.ndarray = (points - (low + high) / 2) / extent * np.array([width, height]) + SIDE / 2
    return placed


def _inked(points: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Return the bitmap (S, S) of discs with radii (P,) around points (P, 2)."""
    centres = np.arange(SIDE) + 0.5
    across = (centres[:, None] - points[:, 0]) ** 2  # (S, P)
    down = (centres[:, None] - points[:, 1]) ** 2 - radii**2  # (S, P)
    inside: np.ndarray = (down[:, None] + across[None] < 0).any(axis=-1)
    return inside


def _warped_image(rng: np.random.Generator, glyph: np.ndarray, distortion: Distortion) -> np.ndarray:
    """Return a glyph's image bent, slanted and rotated, resampled on a square twice as high as the bitmap."""
    height, width = glyph.shape
    grid = (np.arange(2 * SIDE) + 0.5) / (2 * SIDE) * 1.8 - 0.9
    backwards = replace(distortion, lean=-distortion.lean)  # each pixel looks up its source
    x, y = _warped(rng, grid[None, :], grid[:, None], backwards)  # (2S, 2S) each
    longest = max(height, width)
    column = (x * longest + width / 2).round().astype(int)
    row = (y * longest + height / 2).round().astype(int)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return np.where(inside, glyph[row.clip(0, height - 1), column.clip(0, width - 1)], 0)


def _cropped(ink: np.ndarray) -> np.ndarray:
    """Return the bounding box of a bitmap's ink; the whole bitmap if it has none."""
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else ink


def _blurred(image: np.ndarray) -> np.ndarray:
    """Return an image (S, S) blurred with weights 1 2 1 in both directions."""
    wide = np.pad(image, 1)
    rows = (wide[:-2] + 2 * wide[1:-1] + wide[2:]) / 4
    smooth: np.ndarray = (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4
    return smooth
