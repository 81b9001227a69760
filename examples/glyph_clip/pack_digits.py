"""Pack scikit-learn's copy of the UCI digits into `digits.zip`, an archive of PNG files.

Run as `python examples/glyph_clip/pack_digits.py`; needs scikit-learn (extra `dev`).
"""

from collections.abc import Iterable
from io import BytesIO
from random import Random
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from taskres_cache.bundled import DIGITS_ARCHIVE
from taskres_cache.datasets import PARTITIONS

SPLIT_SEED = 0
BRIGHTEST = 16  # the arrays count ink in 4x4 blocks: 0 to 16


def png_bytes(counts: np.ndarray) -> bytes:
    """Return an array of counts (8, 8) as a greyscale PNG, bright ink on black."""
    pixels = np.round(counts * (255 / BRIGHTEST)).astype(np.uint8)
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def split_class(paths: Iterable[str], classname: str) -> dict[str, list[str]]:
    """Split the paths of one class 60/20/20 by a shuffle: no image ever comes or goes."""
    shuffled = sorted(paths)
    Random(f"{SPLIT_SEED}/{classname}").shuffle(shuffled)
    share = round(len(shuffled) * 0.2)
    cuts = {"test": shuffled[:share], "val": shuffled[share : 2 * share], "train": shuffled[2 * share :]}
    return {partition: sorted(cuts[partition]) for partition in PARTITIONS}


def pack() -> int:
    """Write `partition/class/NUMBER.png` for every digit, with scikit-learn's index as number; return their number."""
    digits = load_digits()
    with ZipFile(DIGITS_ARCHIVE, "w", ZIP_STORED) as archive:
        for digit in range(10):
            names = [f"{index:04d}.png" for index in np.flatnonzero(digits.target == digit)]
            for partition, chosen in split_class(names, str(digit)).items():
                for name in chosen:  # ZipInfo's default date makes the archive reproducible
                    archive.writestr(ZipInfo(f"{partition}/{digit}/{name}"), png_bytes(digits.images[int(name[:4])]))
        return len(archive.namelist())


if __name__ == "__main__":
    print(f"{pack()} images packed into {DIGITS_ARCHIVE.name}")
