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
    for number, name in enumerate(sorted(drawn), 90):
        (oddities / name).unlink()
        save_image(oddities / name, number)
    fixed = extract(dataset, glyph_clip, EVERYTHING, path)
    assert (fixed.encoded, fixed.images) == (4, len(listed))
    assert {name for name in FeatureCache(path).contents().paths if "newline" in name} == {"fine/with\nnewline.png"}


def read(image: Image.Image, orientation: str, **how: object) -> np.ndarray:
    return np.asarray(decode(encoded(image, "PNG", **how), orientation))


def test_transparent_parts_of_own_pictures_are_white() -> None:
    """Drawing programs store transparent parts as black."""
    logo = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    logo.putpixel((0, 0), (200, 10, 20, 255))
    logo.putpixel((1, 0), (0, 0, 0, 128))
    pixels = read(logo, "exif-on-white")
    assert pixels[0, 0].tolist() == [200, 10, 20]
    assert pixels[0, 1].tolist() == [127, 127, 127]
    assert (pixels[1:] == 255).all()
    assert (read(logo, "exif")[1:] == 0).all()
    assert (read(logo, "stored")[1:] == 0).all()
    grey = Image.new("L", (4, 4), 7)
    assert (read(grey, "exif-on-white", transparency=7) == 255).all()
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 0, 250, 250, 250])
    assert (read(palette, "exif-on-white", transparency=0) == 255).all()
    opaque = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8))
    assert np.array_equal(read(opaque, "exif-on-white"), np.asarray(opaque))
    assert np.array_equal(read(opaque.convert("RGBA"), "exif-on-white"), np.asarray(opaque))


@pytest.mark.parametrize(
    ("largest", "own", "stored"), [(255, 255, 0), (4095, 255, 15), (1000, 62, 3), (65535, 255, 255)]
)
def test_scans_are_scaled_by_the_bits_that_they_use(largest: int, own: int, stored: int) -> None:
    """Published data sets are read as the field reads them, by 16 bits."""
    scan = Image.fromarray(np.array([[0, largest]], np.uint16))
    assert read(scan, "exif-on-white")[0, :, 0].tolist() == [0, own]
    assert read(scan, "exif")[0, :, 0].tolist() == [0, stored]
    assert read(scan, "stored")[0, :, 0].tolist() == [0, stored]


def test_broken_exif_data_do_not_make_an_image_unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8))
    for exif in (b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0" + bytes(40), b"junk"):
        assert np.asarray(decode(encoded(image, "JPEG", exif=exif), "exif-on-white")).shape == (9, 9, 3)

    def raises(image: Image.Image) -> Image.Image:
        raise SyntaxError("not a TIFF file")

    monkeypatch.setattr("PIL.ImageOps.exif_transpose", raises)
    for orientation in ("exif", "exif-on-white"):
        assert np.array_equal(read(image, orientation), np.asarray(image))
    with pytest.raises(OSError, match="truncated"):
        decode(io.BytesIO(encoded(Image.effect_noise((90, 90), 9), "JPEG").getvalue()[:1500]), "exif")


def test_a_dangling_link_is_reported_before_encoding(photos: Path, glyph_clip: Backbone, tmp_path: Path) -> None:
    (photos / "dog" / "gone away.jpg").symlink_to(tmp_path / "nowhere.jpg")
    dataset = load_dataset(str(photos), Path())
    with pytest.raises(DatasetError, match="dog/gone away.jpg not found below"):
        extract(dataset, glyph_clip, EVERYTHING, tmp_path / "photos.h5")
