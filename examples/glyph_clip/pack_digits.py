"""Pack scikit-learn's copy of the UCI digits into `digits.zip`, an archive of PNG files.

Run as `python examples/glyph_clip/pack_digits.py`; needs scikit-learn (extra `dev`).
"""

from io import BytesIO
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from taskres_cache.bundled import DIGITS_ARCHIVE
from taskres_cache.datasets.folder import split_class

SPLIT_SEED = 0
BRIGHTEST = 16  # the arrays count ink in 4x4 blocks: 0 to 16


def png_bytes(counts: np.ndarray) -> bytes:
    """Return an array of counts (8, 8) as a greyscale PNG, bright ink on black."""
    pixels = np.round(counts * (255 / BRIGHTEST)).astype(np.uint8)
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def pack() -> int:
    """Write `partition/class/NUMBER.png` for every digit, with scikit-learn's index as number; return their number."""
    digits = load_digits()
    with ZipFile(DIGITS_ARCHIVE, "w", ZIP_STORED) as archive:
        for digit in range(10):
            names = [f"{index:04d}.png" for index in np.flatnonzero(digits.target == digit)]
            for partition, chosen in split_class(names, str(digit), SPLIT_SEED).items():
                for name in chosen:  # ZipInfo's default date makes the archive reproducible
                    archive.writestr(ZipInfo(f"{partition}/{digit}/{name}"), png_bytes(digits.images[int(name[:4])]))
        return len(archive.namelist())


if __name__ == "__main__":
    print(f"{pack()} images packed into {DIGITS_ARCHIVE.name}")
