"""`taskres predict`: arguments, outputs, files and exit statuses."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from taskres_cache.cli import console
from taskres_cache.encoders.backbone import Backbone
from taskres_cache.encoders.loading import load_backbone, untrained_model
from taskres_cache.runs.prediction import PredictedImages
from taskres_cache.runs.run import write_run
from tests.conftest import Taskres, metrics_of, one_line, save_image
from tests.runs.test_prediction import CLASSNAMES, probabilities_by_hand, run_of

ODD_NAME = 'a, "b"\nc.png'


@pytest.fixture
def run(here: Path, glyph_clip: Backbone) -> Path:
    """The run folder `run`."""
    write_run(here / "run", run_of(glyph_clip), metrics_of())
    return Path("run")


@pytest.fixture
def predict(run: Path, taskres: Taskres) -> Taskres:
    """`taskres predict` with that run."""
    return lambda *arguments: taskres("predict", run, *arguments, "--device", "cpu")


def installed(*arguments: object, given: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [str(Path(sys.executable).with_name("taskres")), "predict", *map(str, arguments)]
    return subprocess.run(command, input=given, capture_output=True, check=False, env={**os.environ, **environment})


def test_few_files_are_shown_in_detail(predict: Taskres, glyph_clip: Backbone, here: Path) -> None:
    for number in range(2):
        save_image(here / f"{number}.png", number)
    outcome = predict("0.png", "1.png", "--top-k", 3)
    assert (outcome.status, outcome.err) == (0, "")
    first, second = (block.splitlines() for block in outcome.out.split("\n\n"))
    expected = probabilities_by_hand(run_of(glyph_clip), glyph_clip, here / "1.png")
    best = np.argsort(-expected)[:3]
    assert (first[0], second[0]) == ("0.png", "1.png")
    assert [line[:2] for line in second[1:]] == ["> ", "  ", "  "]
    shown = [(line[2:].split()[0], float(line[2:].split()[1])) for line in second[1:]]
    assert shown == [(CLASSNAMES[row], pytest.approx(100 * expected[row], abs=0.06)) for row in best]
    bars = [line.partition(" %")[2].strip() for line in second[1:]]
    assert [len(drawn) for drawn in bars] == [pytest.approx(40 * expected[row], abs=1) for row in best]
    assert len({line.index(" %") for line in first[1:] + second[1:]}) == 1


def test_names_with_line_breaks_stay_on_one_line(predict: Taskres, here: Path) -> None:
    save_image(here / "new\nline\x1b[2J.png", 1)
    for named in ("new\nline\x1b[2J.png", "."):
        assert "new\\nline\\x1b[2J.png" in predict(named).out.replace("./", "").splitlines()[0]


def test_folders_get_one_line_per_image_and_a_summary(predict: Taskres, photos: Path, here: Path) -> None:
    save_image(photos / "deep" / "er" / "one more.png", 7)
    save_image(photos / ".thumbnails" / "hidden.png", 7)
    (photos / "dog" / "again").symlink_to(photos)
    outcome = predict("photos")
    lines, summary = (part.splitlines() for part in outcome.out.split("\n\n"))
    assert outcome.status == 0
    assert outcome.err.startswith("images: 31 of 31")
    assert [line.split("  ")[0] for line in lines] == sorted(
        str(path.relative_to(here)) for path in photos.rglob("*.*") if path.is_file() and ".thumb" not in str(path)
    )
    assert summary[0] == "31 images by class"
    classes = [line.rpartition(" %")[0].split()[-2] for line in lines]
    assert all(line[-1] in "█▉▊▋▌▍▎▏" for line in lines)
    counts = {line.split()[0]: int(line.split()[1]) for line in summary[1:]}
    assert counts == {name: classes.count(name) for name in set(classes)}
    assert list(counts.values()) == sorted(counts.values(), reverse=True)


def test_many_files_get_one_line_each(predict: Taskres, photos: Path) -> None:
    paths = [str(path) for path in sorted(photos.rglob("*.*"))]
    assert "> " in predict(*paths[:20]).out
    many = predict(*paths[:21]).out
    assert "> " not in many
    assert "21 images by class" in many


def test_summary_of_the_most_frequent_classes(capfd: pytest.CaptureFixture[str]) -> None:
    from taskres_cache.cli.predict_display import print_summary

    names = tuple(f"class {number:02}" for number in range(30))
    rows = np.array([[7]] * 26 + [[number] for number in range(24)], np.int32)  # 27 of class 7, 1 of each of 23 others
    ones = np.ones(rows.shape, np.float32)
    print_summary(PredictedImages(names, tuple(map(str, range(50))), rows, ones, {"gone.png": "no such file"}))
    lines = capfd.readouterr().out.splitlines()
    assert lines[:3] == ["", "50 images by class, 1 skipped", f"class 07  27   54.0 %  {'█' * 21}▋"]
    assert lines[3] == "class 00   1    2.0 %  ▊"
    assert lines[21] == "class 19   1    2.0 %  ▊"
    assert lines[22:] == ["and 4 more classes with 4 images"]


def test_paths_from_standard_input(run: Path, photos: Path) -> None:
    named = [f"photos/dog/image {number}.{suffix}" for number, suffix in ((0, "png"), (1, "jpg"))]
    given = f"{named[1]}\r\n\n   \n{named[0]}\n".encode()
    done = installed(run, "-", "photos/black_cat", "--json", "--device", "cpu", given=given)
    assert done.returncode == 0, done.stderr
    paths = [image["path"] for image in json.loads(done.stdout)["images"]]
    assert paths[:2] == named[::-1]
    assert len(paths) == 12
    twice = installed(run, "-", "-", given=given)
    assert (twice.returncode, twice.stdout) == (2, b"")
    assert b"- is standard input, which can be read only once" in twice.stderr


def test_json_is_one_document(predict: Taskres, run: Path, glyph_clip: Backbone, photos: Path, here: Path) -> None:
    (here / "broken.png").write_text("no image")
    outcome = predict("photos", "broken.png", "--json", "--top-k", 2)
    document = json.loads(outcome.out)
    assert outcome.status == 0
    assert list(document) == ["run", "temperature", "classnames", "images", "unreadable"]
    assert (document["run"], document["temperature"], document["classnames"]) == ("run", 2.5, list(CLASSNAMES))
    assert document["unreadable"] == {"broken.png": json.loads(outcome.out)["unreadable"]["broken.png"]}
    assert document["unreadable"]["broken.png"].startswith("not an image in one of the formats")
    for image in document["images"][::7]:
        expected = probabilities_by_hand(run_of(glyph_clip), glyph_clip, here / image["path"])
        best = np.argsort(-expected)[:2]
        assert image["predictions"] == [
            {"class": CLASSNAMES[row], "probability": pytest.approx(expected[row], abs=2e-5)} for row in best
        ]


def test_csv_round_trip(here: Path, glyph_clip: Backbone, taskres: Taskres) -> None:
    names = ('red, "round"', "two\nlines", "back\rward")
    write_run(here / "run", run_of(glyph_clip, names), metrics_of())
    paths = [ODD_NAME, "été 図.png", "back\r.png", os.fsdecode(b"\xe9.png")]
    for number, path in enumerate(paths):
        save_image(here / path, number)
    arguments = ("predict", "run", *paths, "--device", "cpu")
    document = json.loads(taskres(*arguments, "--json").out)
    written = taskres(*arguments, "--csv", "new folder/classes.csv")
    assert (written.status, written.out, written.err) == (0, "", "new folder/classes.csv: 4 images\n")
    with open("new folder/classes.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "class", "probability", "class_2", "probability_2", "class_3", "probability_3"]
    assert [row[0] for row in rows] == paths
    for row, image in zip(rows, document["images"], strict=True):
        expected = [[one["class"], one["probability"]] for one in image["predictions"]]
        assert [[name, float(share)] for name, share in zip(row[1::2], row[2::2], strict=True)] == expected
    assert os.listdir("new folder") == ["classes.csv"]


def test_csv_on_standard_output(predict: Taskres, photos: Path, here: Path) -> None:
    predict("photos", "--csv", "classes.csv", "--top-k", 1)
    printed = predict("photos", "--csv", "-", "--top-k", 1)
    assert printed.status == 0
    assert printed.out == (here / "classes.csv").read_text()
    rows = list(csv.DictReader(StringIO(printed.out)))
    assert (len(rows), list(rows[0])) == (30, ["path", "class", "probability"])
    both = predict("photos", "--csv", "-", "--json")
    assert both.status == 2
    assert "--csv - and --json both print to standard output" in one_line(both)


def test_csv_file_with_summary_or_json(predict: Taskres, photos: Path, here: Path) -> None:
    assert predict("photos", "--csv", "a.csv").out.startswith("\n30 images by class\n")
    assert len(json.loads(predict("photos", "--csv", "b.csv", "--json").out)["images"]) == 30
    assert (here / "a.csv").read_bytes() == (here / "b.csv").read_bytes()


def test_unwritable_csv_fails_early(
    predict: Taskres, photos: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "file").write_text("a file")
    for target in ("file/classes.csv", "photos"):
        outcome = predict("photos", "--csv", target)
        assert outcome.status == 1
        assert f"{target} cannot be written" in one_line(outcome)
    assert (here / "file").read_text() == "a file"
    access = os.access
    # a stand-in for permissions: root may write anywhere
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and access(path, mode))
    assert "new/folder/classes.csv cannot be written" in one_line(predict("photos", "--csv", "new/folder/classes.csv"))
    assert not (here / "new").exists()


def test_existing_csv_survives_failures(predict: Taskres, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "classes.csv").write_text("from yesterday")
    save_image(here / "one.png", 1)
    (here / "broken.png").write_text("no image")
    assert predict("broken.png", "--csv", "classes.csv").status == 1
    assert predict("broken.png", "--csv", "new/classes.csv").status == 1

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    outcome = predict("one.png", "--csv", "classes.csv")
    assert outcome.status == 1
    assert "classes.csv cannot be written (No space left on device)" in one_line(outcome)
    assert (here / "classes.csv").read_text() == "from yesterday"
    assert sorted(os.listdir(here)) == ["broken.png", "classes.csv", "one.png", "run"]


def test_unreadable_images_are_listed_and_skipped(predict: Taskres, here: Path) -> None:
    save_image(here / "one.png", 1)
    (here / "broken\x1b[1m.png").write_text("no image")
    (here / "bare").mkdir()
    some = predict("broken\x1b[1m.png", "one.png", "gone.png", "bare", "--top-k", 1)
    assert some.status == 0
    note, first, second = some.err.splitlines()
    assert note == "note: no image below bare"
    assert first.startswith("skipped broken\\x1b[1m.png: not an image in one of the formats JPEG")
    assert second == "skipped gone.png: No such file or directory"
    assert some.out.startswith("one.png  ")
    assert some.out.splitlines()[2] == "1 image by class, 2 skipped"
    none = predict("broken\x1b[1m.png", "gone.png", "--json")
    assert none.status == 1
    assert one_line(none) == "taskres: none of the 2 images could be read; see the reasons above"


@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        (("run", "bare"), 2, "nothing to predict: no image found in bare"),
        (("run", "one.png", "--top-k", "0"), 2, "top-k must be positive, got 0"),
        (("run", "one.png", "--top-k", "-3"), 2, "top-k must be positive, got -3"),
        (("run", "one.png", "--batch-size", "0"), 2, "batch-size must be positive"),
        (("run", "one.png", "--workers", "-1"), 2, "workers must not be negative"),
        (("run", "one.png", "--device", "tpu"), 2, "unknown --device 'tpu'; did you mean 'cpu'?"),
        (("run", "one.png", "--precision", "fp8"), 2, "precision must be"),
        (("run", "one.png", "--pretrained", "lost/file.pt"), 1, "checkpoint lost/file.pt does not exist"),
        ((".", "one.png"), 2, ". holds 2 runs; pass one of them, such as run"),
        (("bare", "one.png"), 1, "no classifier.safetensors at or below bare"),
        (("one.png", "one.png"), 1, "one.png is not an intact run"),
    ],
)
def test_wrong_usage_gives_one_line_and_a_status(
    arguments: tuple[str, ...],
    status: int,
    expected: str,
    run: Path,
    taskres: Taskres,
    here: Path,
    glyph_clip: Backbone,
) -> None:
    write_run(here / "another", run_of(glyph_clip), metrics_of())
    save_image(here / "one.png", 1)
    (here / "bare").mkdir()
    outcome = taskres("predict", *arguments)
    assert outcome.status == status
    assert expected in one_line(outcome)


def test_no_image_is_wrong_usage(run: Path, taskres: Taskres) -> None:
    assert taskres("predict", run).status == 2
    empty = installed(run, "-")
    assert (empty.returncode, empty.stdout) == (2, b"")
    assert empty.stderr.startswith(b"taskres: nothing to predict: no image given; ")


def test_runs_of_local_checkpoints_and_of_imported_features(here: Path, glyph_clip: Backbone, taskres: Taskres) -> None:
    save_image(here / "one.png", 1)
    save_file(untrained_model("glyph-clip", seed=8)[0].state_dict(), here / "mine.safetensors")
    other = load_backbone("glyph-clip", "mine.safetensors", "cpu", "fp32")
    write_run(here / "own", run_of(glyph_clip), metrics_of())
    write_run(here / "local", run_of(other), metrics_of())
    unknown = run_of(glyph_clip)
    unknown = replace(unknown, provenance=replace(unknown.provenance, weights_sha256="unknown", preprocess={}))
    write_run(here / "imported", unknown, metrics_of())
    on_cpu = ("one.png", "--device", "cpu")
    lost = taskres("predict", "local", *on_cpu)
    assert lost.status == 2
    assert "pass that file: --pretrained PATH" in one_line(lost)
    found = taskres("predict", "local/classifier.safetensors", *on_cpu, "--pretrained", "mine.safetensors", "--json")
    expected = probabilities_by_hand(run_of(other), other, here / "one.png")
    (image,) = json.loads(found.out)["images"]
    assert image["predictions"][0]["probability"] == pytest.approx(expected.max(), abs=2e-5)
    wrong = taskres("predict", "own", *on_cpu, "--pretrained", "mine.safetensors")
    assert wrong.status == 1
    assert f"the run has {glyph_clip.weights_sha256[:12]}, these weights {other.weights_sha256[:12]}" in one_line(wrong)
    imported = taskres("predict", "imported", *on_cpu)
    assert imported.status == 1
    assert "TaskResClassifier.from_run" in one_line(imported)


def test_exif_orientation_is_applied(predict: Taskres, here: Path) -> None:
    upright = Image.fromarray(np.random.default_rng(5).integers(0, 256, (48, 24, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.save(here / "upright.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(here / "turned.png", exif=exif)
    upright.transpose(Image.Transpose.ROTATE_90).save(here / "left.png")
    document = json.loads(predict("upright.png", "turned.png", "left.png", "--json").out)
    first, turned, left = (image["predictions"] for image in document["images"])
    assert first == turned
    assert first != left


def test_ascii_output(run: Path, here: Path) -> None:
    save_image(here / "été.png", 1)
    done = installed(run, "été.png", "--top-k", "1", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode("ascii").splitlines()
    assert lines[0] == r"\xe9t\xe9.png"
    assert set(lines[1].rpartition("%")[2].strip()) <= {"#"}


def test_predict_after_extract_and_fit(here: Path, photos: Path, taskres: Taskres) -> None:
    weights = ("--backbone", "glyph-clip", "--pretrained", "bundled", "--device", "cpu")
    assert taskres("extract", photos, *weights, "--shots", "1,2", "--seeds", "1").status == 0
    assert taskres("fit", "photos", "--shots", "1,2", "--device", "cpu").status == 0
    several = taskres("predict", "runs", photos)
    assert several.status == 2
    assert "runs holds 2 runs; pass one of them, such as runs/glyph-clip-bundled/photos/" in one_line(several)
    run = several.err.split("such as ")[1].strip()
    done = installed(run, photos, "--csv", "-", "--top-k", "9", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    header, *rows = csv.reader(StringIO(done.stdout.decode()))
    assert (len(rows), len(header)) == (30, 7)
    assert {row[1] for row in rows} <= {"black_cat", "dog", "été"}
    assert all(sum(map(float, row[2::2])) == pytest.approx(1, abs=1e-5) for row in rows)


@pytest.mark.parametrize(
    ("share", "drawn"), [(0, ""), (0.01, "▏"), (0.25, "██▌"), (0.5, "█████"), (0.999, "██████████"), (1, "█" * 10)]
)
def test_bar_length_is_the_share(share: float, drawn: str) -> None:
    assert console.bar(share, 10) == drawn


def test_shortened_and_printable_names() -> None:
    assert console.shortened("a/b.png", 7) == "a/b.png"
    assert console.shortened("photos/b.png", 7) == "…/b.png"
    assert console.shortened("図図図.png", 7) == "…図.png"
    assert console.printable("a\n\x1b[0m\udce9 été") == "a\\n\\x1b[0m\\udce9 été"


@pytest.mark.parametrize(("orientation", "noted"), [("exif", True), ("exif-on-white", False), ("stored", False)])
def test_transparent_images_over_black_are_noted(
    here: Path, glyph_clip: Backbone, taskres: Taskres, orientation: str, noted: bool
) -> None:
    fitted = run_of(glyph_clip)
    preprocess = {**fitted.provenance.preprocess, "orientation": orientation}
    write_run(here / "run", replace(fitted, provenance=replace(fitted.provenance, preprocess=preprocess)), metrics_of())
    save_image(here / "plain.png", 1)
    Image.new("RGBA", (40, 30)).save(here / "clear.png")
    outcome = taskres("predict", "run", "plain.png", "clear.png", "--device", "cpu")
    assert outcome.status == 0
    assert (
        "note: 1 of 2 images have transparency, and this run reads transparent parts as black" in outcome.err
    ) == noted
