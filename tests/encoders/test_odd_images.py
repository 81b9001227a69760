"""Odd, broken, huge and rotated images: each is read correctly or reported, and none stops the others."""

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.datasets import load_dataset
from taskres_cache.datasets.images import ImageFolder, decode
from taskres_cache.encoders.backbone import Backbone
from taskres_cache.errors import DatasetError, UnreadableImagesError
from taskres_cache.extraction.extract import ExtractOptions, extract
from tests.conftest import save_image

GREY = np.array([[0, 256, 32768, 65535]], np.uint16)


def encoded(image: Image.Image, kind: str, **how: object) -> io.BytesIO:
    stream = io.BytesIO()
    image.save(stream, kind, **how)
    stream.seek(0)
    return stream


def pixels(stream: io.BytesIO) -> np.ndarray:
    return np.asarray(decode(stream, "exif"))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_become_eight(kind: str) -> None:
    assert pixels(encoded(Image.fromarray(GREY), kind))[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]


def test_sixteen_bits_of_a_portable_graymap() -> None:
    stream = io.BytesIO(b"P5 4 1 65535\n" + GREY.astype(">u2").tobytes())
    assert pixels(stream)[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("samples", [np.array([[-5, 100_000]], np.int32), np.array([[0.0, 1.0]], np.float32)])
def test_samples_of_unknown_range_are_refused(samples: np.ndarray) -> None:
    with pytest.raises(ValueError, match="have no defined white"):
        pixels(encoded(Image.fromarray(samples), "TIFF"))


def test_cmyk_palette_grey_and_transparent_images_become_rgb() -> None:
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    assert np.abs(pixels(encoded(red.convert("CMYK"), "JPEG"))[4, 4].astype(int) - [255, 0, 0]).max() <= 8
    assert pixels(encoded(red.convert("P"), "PNG"))[4, 4].tolist() == [255, 0, 0]
    assert pixels(encoded(red.convert("P"), "PNG", transparency=b"\x00" * 5))[4, 4].tolist() == [255, 0, 0]
    assert pixels(encoded(Image.new("L", (8, 8), 90), "PNG"))[4, 4].tolist() == [90] * 3
    assert pixels(encoded(Image.new("1", (8, 8), 1), "PNG"))[4, 4].tolist() == [255] * 3
    assert pixels(encoded(Image.new("RGBA", (8, 8), (1, 2, 3, 0)), "PNG"))[4, 4].tolist() == [1, 2, 3]


def test_the_first_frame_of_an_animation_is_read() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("blue", "red", "white")]
    for kind, how in (("GIF", {}), ("WEBP", {"lossless": True})):
        stream = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=40, **how)
        assert pixels(stream)[4, 4].tolist() == [0, 0, 255]


def test_exif_orientation_is_applied_or_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to display
    left_is_white = Image.fromarray(np.repeat(np.array([[255, 0]], np.uint8), 2, axis=0)).resize((20, 10), 0)
    stream = encoded(left_is_white.convert("RGB"), "PNG", exif=exif)
    upright = np.asarray(decode(stream, "exif"))
    stream.seek(0)
    assert np.asarray(decode(stream, "stored")).shape == (10, 20, 3)
    assert upright.shape == (20, 10, 3)
    assert upright[:8].min() == 255  # the left side is now at the top
    assert upright[12:].max() == 0


def test_a_hundred_megapixels_are_read_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(encoded(Image.new("L", (10_000, 10_000), 7), "PNG"), "exif").size == (10_000, 10_000)


def bomb(width: int, height: int) -> io.BytesIO:
    """A PNG of a few hundred bytes whose header claims a huge image."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return io.BytesIO(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


def test_a_decompression_bomb_is_not_unpacked() -> None:
    with pytest.raises(Image.DecompressionBombError):
        decode(bomb(60_000, 60_000), "exif")


def test_formats_that_run_other_programs_are_refused() -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    with pytest.raises(ValueError, match="not an image in one of the formats JPEG, PNG"):
        decode(io.BytesIO(postscript), "exif")


def test_a_named_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(OSError, match="not a file"):
        ImageFolder(tmp_path).read("pipe.jpg")


@pytest.fixture
def oddities(tmp_path: Path) -> Path:
    """A folder with readable odd images in class `fine` and unreadable ones in class `broken`."""
    folder = tmp_path / "odd ones"
    for number in range(6):
        save_image(folder / "fine" / f"plain {number}.jpg", number)
        save_image(folder / "broken" / f"plain {number}.jpg", 50 + number)
    fine = {
        "one pixel.png": encoded(Image.new("RGB", (1, 1), "red"), "PNG"),
        "thin.png": encoded(Image.new("RGB", (3000, 2), "red"), "PNG"),
        "cmyk.jpg": encoded(Image.new("CMYK", (30, 30)), "JPEG"),
        "sixteen.png": encoded(Image.fromarray(np.tile(GREY, (4, 1))), "PNG"),
        "palette.gif": encoded(Image.new("P", (30, 30), 3), "GIF"),
        'it\'s "quoted".png': encoded(Image.new("RGB", (9, 9)), "PNG"),
        "größer été 図.png": encoded(Image.new("RGB", (9, 9), "blue"), "PNG"),
        "png inside.jpg": encoded(Image.new("RGB", (9, 9), "green"), "PNG"),
        "with\nnewline.png": encoded(Image.new("RGB", (9, 9), "white"), "PNG"),
    }
    whole = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)), "JPEG")
    broken = {
        "cut short.jpg": io.BytesIO(whole.getvalue()[:2000]),
        "text.jpg": io.BytesIO(b"This is a text file."),
        "empty.png": io.BytesIO(b""),
        "bomb.png": bomb(60_000, 60_000),
    }
    for kind, files in (("fine", fine), ("broken", broken)):
        for name, stream in files.items():
            (folder / kind / name).write_bytes(stream.getvalue())
    return folder


EVERYTHING = ExtractOptions(shots=(100,), seeds=(1,), workers=2)


def test_unreadable_images_are_listed_and_all_others_are_encoded(
    oddities: Path, glyph_clip: Backbone, tmp_path: Path
) -> None:
    path = tmp_path / "odd.h5"
    dataset = load_dataset(str(oddities), Path())
    listed = [item.path for part in dataset.partitions.values() for item in part]
    with pytest.raises(UnreadableImagesError) as error:
        extract(dataset, glyph_clip, EVERYTHING, path)
    reasons = error.value.reasons
    drawn = {name for name in listed if name.startswith("broken/") and "plain" not in name}
    assert set(reasons) == drawn
    assert len(drawn) == 4
    assert all(name in str(error.value) for name in drawn)
    assert reasons["broken/text.jpg"].startswith("not an image in one of the formats")
    assert "exceeds limit" in reasons["broken/bomb.png"]
    for name in drawn:
        (oddities / name).unlink()
        save_image(oddities / name, 99)
    fixed = extract(dataset, glyph_clip, EVERYTHING, path)
    assert (fixed.encoded, fixed.images) == (4, len(listed))
    assert {name for name in FeatureCache(path).contents().paths if "newline" in name} == {"fine/with\nnewline.png"}


def test_a_dangling_link_is_reported_before_encoding(photos: Path, glyph_clip: Backbone, tmp_path: Path) -> None:
    (photos / "dog" / "gone away.jpg").symlink_to(tmp_path / "nowhere.jpg")
    dataset = load_dataset(str(photos), Path())
    with pytest.raises(DatasetError, match="dog/gone away.jpg not found below"):
        extract(dataset, glyph_clip, EVERYTHING, tmp_path / "photos.h5")
