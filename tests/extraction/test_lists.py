"""Lists and exports through `taskres extract`, `fit` and `predict`; killed in the middle and run again."""

import csv
import json
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from taskres_cache import dataset_of
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.datasets import Dataset, load_dataset
from taskres_cache.encoders.backbone import Backbone
from taskres_cache.extraction.extract import ExtractOptions, extract
from tests.conftest import Taskres, one_line, save_image
from tests.extraction.children import in_a_child
from tests.extraction.test_kill import ATTEMPTS, BLOCKS_MADE, folder, stopped, wait_until, whole
from tests.extraction.test_kill import extract as command

__all__ = ["folder", "whole"]  # fixtures
BUNDLED = ("--backbone", "glyph-clip", "--pretrained", "bundled")
Rows = list[tuple[str, str, str]]


def as_csv(rows: Rows) -> str:
    return "\n".join(["path;label;split", *(";".join(row) for row in rows)])


def as_lines(rows: Rows) -> str:
    return "\n".join(json.dumps({"file_name": path, "label": name, "split": part}) for path, name, part in rows)


def as_coco(rows: Rows) -> str:
    names = sorted({name for _, name, _ in rows})
    images = [{"id": number, "file_name": path, "split": part} for number, (path, _, part) in enumerate(rows)]
    shown = [{"image_id": number, "category_id": names.index(name)} for number, (_, name, _) in enumerate(rows)]
    categories = [{"id": number, "name": name} for number, name in enumerate(names)]
    return json.dumps({"images": images, "annotations": shown, "categories": categories})


def as_label_studio(rows: Rows) -> str:
    def result(name: str) -> dict:
        return {"type": "choices", "from_name": "kind", "value": {"choices": [name]}}

    tasks = [
        {
            "id": number,
            "data": {"image": f"/data/local-files/?d={path}", "split": part},
            "annotations": [{"result": [result(name)]}],
        }
        for number, (path, name, part) in enumerate(rows)
    ]
    return json.dumps(tasks)


WRITERS = {"noise.csv": as_csv, "noise.jsonl": as_lines, "noise.coco.json": as_coco, "noise.json": as_label_studio}


def rows_of(folder: Path) -> Rows:
    """Return the images of a folder in the order in which its data set has them."""
    dataset = load_dataset(str(folder))
    return [
        (item.path, dataset.classnames[item.label], part)
        for part, items in dataset.partitions.items()
        for item in items
    ]


@pytest.mark.parametrize("name", WRITERS)
def test_a_killed_extraction_of_a_list_resumes(folder: Path, whole: FeatureCache, tmp_path: Path, name: str) -> None:
    """The cache of a list is, byte by byte of its features, that of the folder which it lists."""
    write: Callable[[Rows], str] = WRITERS[name]
    typed = tmp_path / name
    typed.write_text(write(rows_of(folder)))
    options = ("--root", str(folder), "--name", "noise")
    parts = tmp_path / "glyph-clip-bundled" / "noise.h5.parts"
    for _ in range(ATTEMPTS):
        status, _ = stopped(typed, tmp_path, signal.SIGKILL, *options)
        if not parts.with_name("noise.h5").exists():
            break
        shutil.rmtree(parts.parent)  # the run was over before it could be killed
    assert status == -signal.SIGKILL
    kept = sum(len(np.load(block)["keys"]) for block in parts.glob(BLOCKS_MADE))
    assert 0 < kept < 1212

    again = subprocess.run([*command(typed, tmp_path), *options], capture_output=True, text=True, check=True)
    assert f"1212 images, {1212 - kept} newly encoded" in again.stderr
    resumed, expected = FeatureCache(parts.with_name("noise.h5")).contents(), whole.contents()
    assert (resumed.paths, resumed.stamps, resumed.classnames) == (expected.paths, expected.stamps, expected.classnames)
    assert resumed.provenance.images_folder == str(folder)
    assert np.array_equal(resumed.labels, expected.labels)
    assert np.array_equal(resumed.image_features, expected.image_features)
    assert np.array_equal(resumed.text.embeddings, expected.text.embeddings)


def test_a_killed_extraction_of_images_in_memory_resumes(
    glyph_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names and stamps depend on pixels only, so that rows made anew are those of the blocks."""
    monkeypatch.setattr("taskres_cache.extraction.extract.BLOCK_ROWS", 5)

    def made() -> Dataset:
        rng = np.random.default_rng(7)
        pictures = (rng.integers(0, 256, (160, 160, 3), dtype=np.uint8) for _ in range(400))
        return dataset_of([(pixels, "odd" if n % 2 else "even") for n, pixels in enumerate(pictures)], "noise")

    options = ExtractOptions((1,), (1,), workers=0, batch_size=5)
    extract(made(), glyph_clip, options, tmp_path / "whole.h5")
    for _ in range(ATTEMPTS):
        child = in_a_child(lambda: extract(made(), glyph_clip, options, tmp_path / "noise.h5"))
        wait_until(lambda: bool(list((tmp_path / "noise.h5.parts").glob(BLOCKS_MADE))) or not child.is_alive())  # noqa: B023
        child.kill()
        child.join()
        if not (tmp_path / "noise.h5").exists():
            break
        (tmp_path / "noise.h5").unlink()  # the run was over before it could be killed
    assert child.exitcode == -signal.SIGKILL
    done = extract(made(), glyph_clip, options, tmp_path / "noise.h5")
    assert 0 < done.encoded < done.images
    resumed, expected = (FeatureCache(tmp_path / name).contents() for name in ("noise.h5", "whole.h5"))
    assert (resumed.paths, resumed.stamps) == (expected.paths, expected.stamps)
    assert np.array_equal(resumed.image_features, expected.image_features)


def test_extract_fit_and_predict(photos: Path, here: Path, taskres: Taskres) -> None:
    files = sorted(file for file in photos.rglob("*.*g"))
    with (here / "list.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["nr", "picture", "what"], *([7, file, file.parent.name] for file in files)])
    named = ("--label-column", "what", "--name", "pets")
    done = taskres("extract", "list.csv", *named, *BUNDLED, "--shots", "2", "--seeds", "1")
    assert done.status == 0, done.err
    assert "next: taskres fit pets" in done.err
    assert taskres("fit", "pets", "--shots", "2", "--seeds", "1").status == 0
    predicted = taskres("predict", "runs/glyph-clip-bundled/pets", files[0])
    assert predicted.status == 0
    assert str(files[0]) in predicted.out
    assert taskres("datasets", "verify", "list.csv", "--label-column", "what").status == 0


def test_missing_images_are_named_with_their_rows(photos: Path, here: Path, taskres: Taskres) -> None:
    rows = [(f"photos/dog/{n}.png", "dog", "test") for n in range(7)]
    rows += [
        (f"photos/{name}/image {n}.png", name, part)
        for name in ("dog", "black_cat")
        for n, part in ((0, "train"), (2, "test"))
    ]
    (here / "list.csv").write_text(as_csv(rows))
    arguments = ("extract", "list.csv", *BUNDLED, "--shots", "1", "--seeds", "1")
    line = one_line(taskres(*arguments))
    assert "photos/dog/0.png (list.csv, row 2), " in line
    assert "photos/dog/4.png (list.csv, row 6) and 2 more not found below ." in line
    assert "--skip-unreadable" in line
    verified = taskres("datasets", "verify", "list.csv")
    assert verified.status == 1
    assert "photos/dog/6.png (list.csv, row 8): missing" in verified.out
    done = taskres(*arguments, "--skip-unreadable")
    assert done.status == 0
    assert "skipped photos/dog/6.png" in done.err
    save_image(photos / "dog" / "3.png", 3)
    assert "1 newly encoded" in taskres(*arguments, "--skip-unreadable").err
