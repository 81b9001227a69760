"""Blocks of an unfinished extraction: stored, kept apart by their inputs, and ignored when damaged."""

from pathlib import Path

import numpy as np
import pytest

from taskres_cache.errors import CacheDamagedError, StorageError
from taskres_cache.extraction.blocks import BlockFolder, discard_blocks, read_rows

INPUTS = {"weights": "ab", "precision": "fp32"}


def rows(seed: int, count: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)


def test_rows_are_found_by_key(tmp_path: Path) -> None:
    blocks = BlockFolder(tmp_path / "parts", "image", INPUTS)
    blocks.write(["a", "b", "é c"], rows(1))
    blocks.write(["d", "e", "f"], rows(2))
    places = BlockFolder(tmp_path / "parts", "image", INPUTS).places()
    assert set(places) == {"a", "b", "é c", "d", "e", "f"}
    mixed = read_rows([places[key] for key in ("f", "é c", "d", "f")])
    assert np.array_equal(mixed, np.stack([rows(2)[2], rows(1)[2], rows(2)[0], rows(2)[2]]))


def test_a_block_that_is_removed_after_it_was_found(tmp_path: Path) -> None:
    blocks = BlockFolder(tmp_path, "image", INPUTS)
    blocks.write(["a", "b", "c"], rows(1))
    place = blocks.places()["b"]
    place.file.unlink()
    with pytest.raises(CacheDamagedError, match="damaged or removed by another program; run the same command again"):
        read_rows([place])


def test_blocks_from_other_inputs_are_ignored(tmp_path: Path) -> None:
    BlockFolder(tmp_path, "image", INPUTS).write(["a"], rows(1, 1))
    assert BlockFolder(tmp_path, "text", INPUTS).places() == {}
    assert BlockFolder(tmp_path, "image", {**INPUTS, "precision": "bf16"}).places() == {}


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[: len(raw) // 2], lambda raw: raw[:-150] + b"\x00" * 150, lambda _: b""]
)
def test_a_damaged_block_is_ignored(tmp_path: Path, damage) -> None:
    blocks = BlockFolder(tmp_path, "image", INPUTS)
    blocks.write(["a", "b", "c"], rows(1))
    blocks.write(["d", "e", "f"], rows(2))
    file = sorted(tmp_path.glob("*.npz"))[0]
    lost = set(np.load(file)["keys"].tolist())
    file.write_bytes(damage(file.read_bytes()))
    assert set(blocks.places()) == set("abcdef") - lost


def test_a_block_with_a_flipped_bit_is_ignored(tmp_path: Path) -> None:
    blocks = BlockFolder(tmp_path, "image", INPUTS)
    blocks.write(["a", "b", "c"], rows(1))
    (file,) = tmp_path.glob("*.npz")
    raw = bytearray(file.read_bytes())
    raw[bytes(raw).index(rows(1).tobytes()) + 5] ^= 1
    file.write_bytes(raw)
    assert blocks.places() == {}


def test_a_temporary_file_is_ignored(tmp_path: Path) -> None:
    blocks = BlockFolder(tmp_path, "image", INPUTS)
    blocks.write(["a", "b", "c"], rows(1))
    (file,) = tmp_path.glob("*.npz")
    (tmp_path / f".{file.name}.123.tmp").write_bytes(file.read_bytes()[:40])
    assert set(blocks.places()) == {"a", "b", "c"}


def test_a_folder_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be created"):
        BlockFolder(tmp_path / "file" / "parts", "image", INPUTS).prepare()


def test_discarded_blocks_are_gone(tmp_path: Path) -> None:
    BlockFolder(tmp_path / "parts", "image", INPUTS).write(["a"], rows(1, 1))
    discard_blocks(tmp_path / "parts")
    assert not (tmp_path / "parts").exists()


def test_a_block_with_any_damaged_byte_counts_as_missing_or_is_whole(tmp_path: Path) -> None:
    """A flipped bit in a zip header raises zlib.error, NotImplementedError, RuntimeError and others."""
    blocks = BlockFolder(tmp_path, "image", {})
    blocks.write(["a", "b"], np.ones((2, 3), np.float32))
    (file,) = tmp_path.glob("*.npz")
    whole = file.read_bytes()
    for place in range(len(whole)):
        for bit in (0, 3, 7):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            file.write_bytes(damaged)
            places = blocks.places()
            assert set(places) in (set(), {"a", "b"})
            if places:
                assert (read_rows([places["a"]]) == 1).all()
