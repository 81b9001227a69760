"""The pipeline of decoding and encoding: grouping, counting, and features that do not depend on cores or workers."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.datasets import Dataset
from taskres_cache.datasets.images import ImageFolder
from taskres_cache.encoders.backbone import Backbone
from taskres_cache.encoders.decoding import Decoding, WantedImage, decoded_batches, rendered
from taskres_cache.encoders.encoding import Seconds, in_blocks, lanes
from taskres_cache.encoders.views import CENTER, View, augmented_view
from taskres_cache.errors import CacheMismatchError, OptionError
from taskres_cache.extraction.extract import ExtractOptions, extract
from tests.conftest import save_image

OPTIONS = ExtractOptions(shots=(1, 2), seeds=(1,), views=3)


def wanted(*counts: int) -> list[WantedImage]:
    return [
        WantedImage(f"{number}.png", tuple(View("wide", 5, view) for view in range(count)))
        for number, count in enumerate(counts)
    ]


def test_blocks_never_split_an_image() -> None:
    groups = [[len(image.views) for image in block] for block in in_blocks(wanted(3, 3, 3, 1, 9, 1, 1), 7)]
    assert groups == [[3, 3], [3, 1], [9], [1, 1]]
    assert in_blocks([], 7) == []


def test_seconds_add_up_to_shares() -> None:
    spent = Seconds(decode=1.0, encode=2.0) + Seconds(encode=4.0, write=1.0)
    assert spent.shares() == {"decode": 12.5, "transfer": 0.0, "encode": 75.0, "write": 12.5}
    assert sum(Seconds().shares().values()) == 0.0


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_is_read_once_for_all_its_views(workers: int, glyph_clip: Backbone, tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", 1)

    class Counting(ImageFolder):
        def read(self, path: str):
            with (tmp_path / "reads").open("a") as log:
                log.write(path)
            return super().read(path)

    how = Decoding(Counting(tmp_path), glyph_clip.framing, workers, low_priority=True)
    image = WantedImage("a.png", (CENTER, View("wide", 5, 0), View("wide", 5, 1)))
    with decoded_batches([[image], [image]], how) as decoded:
        batches = list(decoded)
    assert (tmp_path / "reads").read_text() == "a.png" * 2
    upright = ImageFolder(tmp_path).read("a.png")
    expected = [glyph_clip.framing(upright), *(augmented_view(upright, (32, 32), 5, "a.png", view) for view in (0, 1))]
    for batch in batches:
        assert batch.images == (image,)
        assert np.array_equal(batch.pixels, np.stack([np.asarray(one) for one in expected]))
    assert np.array_equal(rendered(image, how), batches[0].pixels)


def test_lanes_restore_the_number_of_threads(glyph_clip: Backbone) -> None:
    before = torch.get_num_threads()
    with lanes(glyph_clip) as threads:
        assert threads.submit(torch.get_num_threads).result() == 1
    assert torch.get_num_threads() == before


def features_of(path: Path) -> tuple[np.ndarray, np.ndarray]:
    contents = FeatureCache(path).contents()
    assert contents.augmented is not None
    return contents.image_features[:], contents.augmented[:]


@pytest.mark.parametrize("cores", [1, 2, 5])
def test_features_do_not_depend_on_cores_or_workers(
    cores: int, dataset: Dataset, glyph_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(dataset, glyph_clip, replace(OPTIONS, workers=0), tmp_path / "one.h5")
    monkeypatch.setattr("taskres_cache.encoders.encoding.available_cores", lambda: cores)
    extract(dataset, glyph_clip, replace(OPTIONS, workers=3), tmp_path / "other.h5")
    for one, other in zip(features_of(tmp_path / "one.h5"), features_of(tmp_path / "other.h5"), strict=True):
        assert np.array_equal(one, other)


def test_views_are_stored_with_their_images(dataset: Dataset, glyph_clip: Backbone, tmp_path: Path) -> None:
    done = extract(dataset, glyph_clip, replace(OPTIONS, views_seed=4), tmp_path / "photos.h5")
    cache = FeatureCache(tmp_path / "photos.h5")
    train = cache.rows("train")
    assert (done.views, done.views_encoded) == (3, 3 * len(train))
    assert cache.views == 3
    assert cache.provenance.views["seed"] == 4
    assert np.array_equal(cache.augmented_rows, train)
    row = int(train[-1])
    path = cache.files()[row][0]
    shown = [augmented_view(dataset.source.read(path), (32, 32), 4, path, view) for view in range(3)]
    alone = glyph_clip.encode_images(torch.from_numpy(np.stack([np.asarray(one) for one in shown])))
    ((positions, found),) = cache.augmented_pieces(np.array([row]))
    assert positions.tolist() == [0]
    assert np.allclose(found[0], alone, atol=1e-4 * np.abs(alone).max())


def test_more_views_and_more_shots_encode_only_new_renderings(
    dataset: Dataset, glyph_clip: Backbone, tmp_path: Path
) -> None:
    path = tmp_path / "photos.h5"
    extract(dataset, glyph_clip, replace(OPTIONS, views=0), path)
    assert FeatureCache(path).views == 0
    some = extract(dataset, glyph_clip, replace(OPTIONS, views=2), path)
    train = len(FeatureCache(path).rows("train"))
    assert (some.encoded, some.views_encoded) == (0, 2 * train)
    more = extract(dataset, glyph_clip, replace(OPTIONS, views=5), path)
    assert (more.encoded, more.views_encoded) == (0, 3 * train)
    wider = extract(dataset, glyph_clip, ExtractOptions(shots=(4,), seeds=(1,)), path)  # views not requested
    new = len(FeatureCache(path).rows("train")) - train
    assert new > 0
    assert (wider.encoded, wider.views_encoded) == (wider.images - more.images, 5 * new)
    at_once = tmp_path / "once.h5"
    extract(dataset, glyph_clip, ExtractOptions(shots=(1, 2, 4), seeds=(1,), views=5), at_once)
    for grown, whole in zip(features_of(path), features_of(at_once), strict=True):
        assert np.allclose(grown, whole, rtol=1e-4, atol=1e-5)
    again = extract(dataset, glyph_clip, ExtractOptions(shots=(4,), seeds=(1,)), path)
    assert (again.encoded, again.views_encoded, again.changed) == (0, 0, False)


def test_views_of_another_seed_are_refused(dataset: Dataset, glyph_clip: Backbone, tmp_path: Path) -> None:
    path = tmp_path / "photos.h5"
    extract(dataset, glyph_clip, OPTIONS, path)
    with pytest.raises(CacheMismatchError, match="views: cache has .*'seed': 0.*expected .*'seed': 1"):
        extract(dataset, glyph_clip, replace(OPTIONS, views_seed=1), path)
    with pytest.raises(OptionError, match="views must not be negative"):
        ExtractOptions(views=-1)


def test_automatic_precision_follows_the_cache(dataset: Dataset, glyph_clip: Backbone, tmp_path: Path) -> None:
    path = tmp_path / "photos.h5"
    extract(dataset, replace(glyph_clip, precision="bf16"), OPTIONS, path)
    adapting = replace(glyph_clip, precision="fp32", adapts=True)
    extract(dataset, adapting, replace(OPTIONS, shots=(4,)), path)
    assert FeatureCache(path).provenance.precision == "bf16"
    assert FeatureCache(path).contents().image_features.dtype == np.float16
    with pytest.raises(CacheMismatchError, match="precision: cache has 'bf16', expected 'fp32'"):
        extract(dataset, glyph_clip, OPTIONS, path)


STARTED = """
import multiprocessing, sys
from pathlib import Path

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    from taskres_cache.encoders.loading import load_backbone
    from taskres_cache.datasets import load_dataset
    from taskres_cache.extraction.extract import ExtractOptions, extract

    backbone = load_backbone("glyph-clip", "bundled", device="cpu", precision="fp32")
    options = ExtractOptions(shots=(1, 2), seeds=(1,), views=3, workers=2)
    print(extract(load_dataset(sys.argv[2], Path()), backbone, options, Path(sys.argv[3])).encoded)
"""


@pytest.mark.parametrize("how", ["spawn", "forkserver"])  # the defaults of other systems and of later Python versions
def test_decoding_works_with_every_start_method(
    how: str, dataset: Dataset, photos: Path, glyph_clip: Backbone, tmp_path: Path
) -> None:
    (tmp_path / "started.py").write_text(STARTED)
    command = [sys.executable, str(tmp_path / "started.py"), how, str(photos), str(tmp_path / "other.h5")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    done = extract(dataset, glyph_clip, OPTIONS, tmp_path / "one.h5")
    assert int(printed.stdout) == done.encoded
    for one, other in zip(features_of(tmp_path / "one.h5"), features_of(tmp_path / "other.h5"), strict=True):
        assert np.array_equal(one, other)
