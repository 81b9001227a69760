"""A run in memory: any form of picture, many threads, the same answers as `predict_images`."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from PIL import Image

from taskres_cache.encoders.backbone import Backbone
from taskres_cache.errors import OptionError, PictureError
from taskres_cache.runs.live.batching import Batcher
from taskres_cache.runs.live.pictures import opened
from taskres_cache.runs.live.predictor import Predictor
from taskres_cache.runs.prediction import PredictOptions, predict_images
from taskres_cache.runs.run import Run, load_run, write_run
from tests.conftest import metrics_of, save_image
from tests.runs.test_prediction import run_of


@pytest.fixture(scope="module")
def run(glyph_clip: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run") / "taskres" / "shots_1" / "seed_1"
    folder.mkdir(parents=True)
    write_run(folder, run_of(glyph_clip), metrics_of())
    return load_run(folder)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.png" for number in range(12)]
    for number, path in enumerate(paths):
        save_image(path, number, (20 + number, 30))
    return paths


def test_every_form_of_a_picture_gives_the_same(run: Run, pictures: list[Path]) -> None:
    path = pictures[0]
    image = Image.open(path)
    pixels = np.asarray(image)
    content = path.read_bytes()
    forms = [
        path,
        str(path),
        content,
        bytearray(content),
        BytesIO(content),
        image,
        pixels,
        torch.from_numpy(pixels.copy()),
    ]
    together = run.predict(forms)
    assert len(set(together.labels)) == 1
    assert np.ptp(together.probabilities, axis=0).max() < 1e-5
    with path.open("rb") as stream:
        assert run.predict(stream).label == together.labels[0]
    for form in (path, content, image, pixels):
        np.testing.assert_allclose(run.predict(form).probabilities[0], together.probabilities[0], atol=1e-5)


def test_predictions_equal_those_of_the_command(run: Run, pictures: list[Path], glyph_clip: Backbone) -> None:
    ours = run.predict(iter(pictures), with_features=True)
    theirs = predict_images(list(map(str, pictures)), run.classifier, glyph_clip, PredictOptions(4))
    by_class = np.take_along_axis(ours.probabilities, theirs.classes, axis=1)
    np.testing.assert_allclose(by_class, theirs.probabilities, atol=1e-5)
    np.testing.assert_allclose(run.embed(pictures), ours.image_features, atol=1e-5)
    assert run.classify(run.embed(pictures)) == list(ours.labels)
    assert ours.names == tuple(map(str, pictures))
    assert ours.top(2)[0][0] == (ours.labels[0], pytest.approx(ours.confidences[0]))


def test_an_exif_rotated_photo_is_read_upright_in_every_form(run: Run, tmp_path: Path) -> None:
    pixels = np.zeros((40, 20, 3), np.uint8)
    pixels[:20] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    Image.fromarray(pixels).save(path, exif=exif, quality=95)
    image = Image.open(path)
    expected = opened(path, "exif").size
    assert expected == (40, 20)
    assert opened(image, "exif").size == opened(path.read_bytes(), "exif").size == expected
    assert image.size == (20, 40)  # the caller's image is as before


def test_one_bad_picture_of_many_has_an_error_and_costs_nobody_else(run: Run, pictures: list[Path]) -> None:
    given = [pictures[0], b"no picture", pictures[1], "missing.png", np.zeros((3, 8, 8), np.uint8)]
    with pytest.warns(UserWarning, match="could not read picture 1 .* and 2 more"):
        found = run.predict(given)
    assert [label is None for label in found.labels] == [False, True, False, True, True]
    assert "not an image" in found.errors[1]
    assert found.errors[3] == "No such file or directory"
    assert "shape (3, 8, 8), expected (H, W, 3); move the channels to the end" in found.errors[4]
    assert np.isnan(found.probabilities[1]).all()
    np.testing.assert_allclose(found.probabilities[2], run.predict(pictures[1]).probabilities[0], atol=1e-5)
    assert "unreadable: not an image" in repr(found)
    assert "unreadable: not an image" in found._repr_html_()


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (b"", "not an image"),
        ("https://example.org/cat.jpg", "is a web address; download the picture"),
        (".", "not a file"),
        (np.zeros((8, 8, 3)), "type float64, expected uint8"),
        (np.zeros((8, 8, 4), np.uint8), r"expected \(H, W, 3\)"),
        (np.zeros((0, 8, 3), np.uint8), r"expected \(H, W, 3\)"),
    ],
)
def test_a_single_bad_picture_is_an_error(run: Run, picture: object, said: str) -> None:
    with pytest.raises(PictureError, match=said):
        run.predict(picture)


def test_something_else_is_an_error(run: Run) -> None:
    with pytest.raises(OptionError, match="got int, expected a path"):
        run.predict(5)
    with pytest.raises(PictureError, match="got int"), pytest.warns(UserWarning, match="could not read picture 0"):
        run.embed([5])
    assert len(run.predict([])) == 0


def test_a_batch_of_arrays_is_many_pictures(run: Run) -> None:
    batch = np.random.default_rng(0).integers(0, 255, (3, 9, 7, 3), np.uint8)
    assert len(run.predict(batch)) == 3
    assert len(run.predict(batch[0])) == 1


def test_fifty_threads_share_one_encoder(run: Run, pictures: list[Path]) -> None:
    alone = [run.predict(path).probabilities[0] for path in pictures]
    loaded = run.predictor
    with ThreadPoolExecutor(50) as pool:
        found = list(pool.map(run.predict, pictures * 20))
    assert run.predictor is loaded
    for position, one in enumerate(found):
        np.testing.assert_allclose(one.probabilities[0], alone[position % len(pictures)], atol=1e-5)


def test_a_run_travels_to_another_process_without_its_encoder(run: Run, pictures: list[Path]) -> None:
    expected = run.predict(pictures[0]).label
    copy = pickle.loads(pickle.dumps(run))
    assert copy == run
    assert copy.predict(pictures[0]).label == expected


def test_memory_of_an_iterator_stays_bounded(run: Run) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    predictor = Predictor(run.classifier, run.predictor.backbone, batch_size=2)
    assert len(predictor.predict(pixels for _ in range(50))) == 50
    predictor.close()
    assert len(predictor.predict(pixels)) == 1  # it starts again


def test_what_waits_becomes_one_batch_and_an_error_reaches_its_callers() -> None:
    sizes, go = [], Event()

    def encode(pixels: np.ndarray) -> tuple[np.ndarray, None]:
        go.wait(10)
        sizes.append(len(pixels))
        if len(pixels) == 3:
            raise ValueError("broken")
        return pixels[:, 0, 0].astype(np.float32), None

    batcher = Batcher(encode, most=4)
    first = batcher.submit(np.zeros((1, 1, 3), np.uint8))
    while not first.running():
        pass
    waiting = [batcher.submit(np.full((1, 1, 3), number, np.uint8)) for number in range(7)]
    cancelled = waiting.pop(1).cancel()
    go.set()
    results = [one.exception(10) or one.result().image_features[0] for one in waiting]
    assert cancelled
    assert results[0] == "ValueError" or sizes[0] == 1
    batcher.close()
    assert sizes[0] == 1
    assert max(sizes) <= 4
