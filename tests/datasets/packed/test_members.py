"""The index of the files in archives."""

import tracemalloc
from pathlib import Path

from taskres_cache.datasets.packed.members import IN_TAR, Members, Place, sample, sampled_check

COUNT = 50_000


def test_the_index_takes_few_bytes_per_file() -> None:
    archive = Path("shards-000.tar")
    tracemalloc.start()
    members = Members()
    for number in range(COUNT):
        members.add(f"shards-000.tar/{number:08d}.jpg", Place(archive, 512 * number, 400, 400, IN_TAR, number, number))
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used / COUNT < 300
    assert members["shards-000.tar/00000007.jpg"] == Place(archive, 3584, 400, 400, IN_TAR, 7, 7)
    assert len(members) == COUNT


def test_a_sample_is_all_of_a_short_content_and_both_ends_of_a_long_one() -> None:
    for length in (0, 1, 4096, 4097, 8191, 8192):
        content = bytes(range(256)) * 32
        assert b"".join(sample(content[:length])) == content[:length]
    assert sample(b"a" * 4096 + b"b" * 9 + b"c" * 4096) == (b"a" * 4096, b"c" * 4096)
    assert sampled_check(b"ab", b"c") == sampled_check(b"a", b"bc") != sampled_check(b"a", b"bd")
