"""The paper's benchmark from one root, as a user runs it: extract, fit, evaluate, tables, and continuing."""

import csv
import json
import math
import shutil
import statistics
from pathlib import Path

import h5py
import numpy as np
import pytest

from taskres_cache.benchmark.pipeline import benchmark_entries
from taskres_cache.errors import UnknownNameError
from tests.by_hand import accuracy, normalised
from tests.conftest import Taskres, as_the_protocol_says, one_line
from tests.datasets.paper.miniatures import LAYOUTS, MISSILES, write_all, write_miniature_with_split

GLYPH = ("--backbone", "glyph-clip", "--pretrained", "bundled", "--device", "cpu")
CACHES, RUNS = Path("cache/glyph-clip-bundled"), Path("runs/glyph-clip-bundled")


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All fifteen data sets in miniature; tests must not write here."""
    root = tmp_path_factory.mktemp("root")
    write_all(root)
    return root


def stored_split(cache: Path, shots: int, seed: int, part: str) -> list[str]:
    with h5py.File(cache) as file:
        rows = file[f"splits/shots_{shots}/seed_{seed}/{part}"][:]
        return [path.decode() for path in file["images/path"][:][rows]]


@pytest.mark.parametrize("name", ["caltech101", "stanford_cars", "ucf101"])
def test_few_shot_splits_are_those_of_coop(name: str, here: Path, taskres: Taskres) -> None:
    split = write_miniature_with_split(name, here)
    assert taskres("extract", name, "--root", here, *GLYPH, "--shots", "1,2,4", "--seeds", "1,2,3").status == 0
    prefix = f"{LAYOUTS[name][1][1]}/".lstrip("/")
    for shots in (1, 2, 4):
        for seed in (1, 2, 3):
            for part, drawn in zip(("train", "val"), as_the_protocol_says(split, shots, seed), strict=True):
                expected = [prefix + path for path in drawn]
                assert stored_split(CACHES / f"{name}.h5", shots, seed, part) == expected


def test_imagenet_splits_have_training_images_only(pristine: Path, here: Path, taskres: Taskres) -> None:
    assert taskres("extract", "imagenet", "--root", pristine, *GLYPH, "--shots", "2", "--seeds", "1").status == 0
    assert len(stored_split(CACHES / "imagenet.h5", 2, 1, "train")) == 8
    assert stored_split(CACHES / "imagenet.h5", 2, 1, "val") == []
    with h5py.File(CACHES / "imagenet.h5") as file:
        assert [name.decode() for name in file["class_ids"][2:]] == list(MISSILES)
        assert (file["images/partition"][:] == 2).sum() == 16
        assert json.loads(file.attrs["preprocess"])["orientation"] == "stored"


def test_a_benchmark_over_all_data_sets(pristine: Path, here: Path, taskres: Taskres) -> None:
    arguments = ("benchmark", "--root", pristine, *GLYPH, "--shots", "1,2", "--seeds", "1,2")
    first = taskres(*arguments)
    assert first.status == 0
    rows = list(csv.DictReader((RUNS / "benchmark.csv").open()))
    trained = [name for name in LAYOUTS if name.startswith("imagenet") is False or name == "imagenet"]
    assert [(row["dataset"], row["shots"]) for row in rows[:22]] == [(n, s) for n in trained for s in ("1", "2")]
    assert [row["dataset"] for row in rows[22:]] == ["imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"]
    assert {(row["trained_on"], row["shots"]) for row in rows[22:]} == {("imagenet", "2")}

    # The numbers are those of the runs.
    for row in rows[:22]:
        found = [
            json.loads(path.read_text()) for path in RUNS.glob(f"{row['dataset']}/*/shots_{row['shots']}/*/*.json")
        ]
        tests = [run["test_accuracy"] for run in found]
        assert len(tests) == 2
        assert float(row["test_mean"]) == pytest.approx(statistics.mean(tests), abs=1e-4)
        assert float(row["test_std"]) == pytest.approx(statistics.stdev(tests), abs=1e-4)
        assert float(row["gain"]) == pytest.approx(statistics.mean(tests) - found[0]["zero_shot_accuracy"], abs=2e-4)
    markdown = (RUNS / "benchmark.md").read_text()
    accuracy, gain = (markdown.split("## ")[number] for number in (1, 2))
    columns = [("zero_shot", "1"), ("test_mean", "1"), ("test_mean", "2")]
    means = [statistics.mean(float(row[name]) for row in rows[:22] if row["shots"] == n) for name, n in columns]
    assert f"| average of 11 | {' | '.join(f'{mean:.2f}' for mean in means)} |" in accuracy
    mean_gain = statistics.mean(float(row["gain"]) for row in rows[:22] if row["shots"] == "2")
    assert f" {mean_gain:+.2f} |\n" in gain
    assert "average of 4" in markdown
    assert "average of 11" in first.out

    # A second time nothing is done again, and the tables are the same.
    stamps = {path: path.stat().st_mtime_ns for path in [*CACHES.iterdir(), *RUNS.rglob("*.safetensors")]}
    again = taskres(*arguments)
    assert again.out == first.out
    assert "imagenet: 4 runs, 4 of them reused" in again.err
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert (RUNS / "benchmark.md").read_text() == markdown

    # With more seeds, only new runs are fitted.
    more = taskres(*arguments[:-1], "1,2,3", "--datasets", "dtd imagenet_a")
    assert "dtd: 6 runs, 4 of them reused" in more.err
    assert "imagenet_a: " in more.err  # tests the existing runs of imagenet


def test_a_benchmark_leaves_out_what_fails_or_is_missing(here: Path, taskres: Taskres) -> None:
    for name in ("dtd", "eurosat"):
        write_miniature_with_split(name, here)
    broken = json.loads((here / "dtd" / "split_zhou_DescribableTextures.json").read_text())
    gone = broken["test"][0][0]
    (here / "dtd" / "images" / gone).unlink()
    shutil.copytree(here / "eurosat", here / "caltech-101")
    outcome = taskres("benchmark", "--root", here, *GLYPH, "--shots", "1", "--seeds", "1")
    assert outcome.status == 1
    lines = outcome.err.splitlines()
    assert f"oxford_pets: left out: missing below {here}: oxford_pets/" in lines
    assert f"caltech101: left out: missing below {here}: caltech-101/101_ObjectCategories/" in lines
    (fault,) = [line for line in lines if line.startswith("dtd: left out, failed: ")]
    assert f"images/{gone} (dtd/split_zhou_DescribableTextures.json test[0]) not found below" in fault
    assert "imagenet_a: left out: " in outcome.err
    markdown = (RUNS / "benchmark.md").read_text()
    assert "| eurosat |" in markdown
    assert "| average of 1 |" in markdown
    assert "## Left out" in markdown
    assert f"- oxford_pets: missing below {here}: oxford_pets/" in markdown


def test_a_benchmark_without_data_sets(here: Path, taskres: Taskres) -> None:
    nothing = taskres("benchmark", "--root", here, *GLYPH)
    assert nothing.status == 1
    assert "no data set could be measured" in nothing.err
    assert not RUNS.exists()
    unknown = taskres("benchmark", "--root", here, "--datasets", "caltech")
    assert unknown.status == 2
    assert "did you mean 'caltech101'" in one_line(unknown)


def test_an_encoder_that_does_not_load_ends_a_benchmark(here: Path, taskres: Taskres) -> None:
    for name in ("dtd", "eurosat"):
        write_miniature_with_split(name, here)
    unknown = taskres("benchmark", "--root", here, "--datasets", "dtd eurosat", "--backbone", "RN5")
    assert unknown.status == 2
    assert "unknown backbone 'RN5'" in one_line(unknown)
    (here / "broken.pt").write_bytes(b"no checkpoint")
    broken = taskres("benchmark", "--root", here, "--datasets", "dtd", "--pretrained", here / "broken.pt")
    assert broken.status == 1
    assert "broken.pt does not load" in one_line(broken)


def test_a_run_with_other_inputs_is_fitted_again(here: Path, taskres: Taskres) -> None:
    arguments = ("benchmark", "--device", "cpu", "--shots", "1,2", "--seeds", "1")
    assert "2 runs, 0 of them reused" in taskres(*arguments).err
    one, two = sorted(RUNS.glob("digits/*/shots_*/seed_1"))
    metrics = json.loads((one / "metrics.json").read_text())
    (one / "metrics.json").write_text(json.dumps({**metrics, "inputs_sha256": "0" * 64}))
    assert "2 runs, 1 of them reused" in taskres(*arguments).err
    other_recipe = json.dumps({**metrics, "recipe": {**metrics["recipe"], "lr": 1.0}})
    (one / "metrics.json").write_text(other_recipe)
    assert "2 runs, 1 of them reused" in taskres(*arguments).err
    (two / "classifier.safetensors").write_bytes(b"damaged")
    assert "2 runs, 1 of them reused" in taskres(*arguments).err
    assert "2 runs, 2 of them reused" in taskres(*arguments).err


def test_benchmark_entries() -> None:
    everything = [entry.name for entry in benchmark_entries(None)]
    assert everything == list(LAYOUTS)
    assert [entry.name for entry in benchmark_entries(["imagenet_a", "dtd", "dtd"])] == ["dtd", "imagenet_a"]
    with pytest.raises(UnknownNameError):
        benchmark_entries(["nothing"])


# Domain generalisation


@pytest.fixture
def imagenet_run(pristine: Path, here: Path, taskres: Taskres) -> Path:
    for name in ("imagenet", "imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"):
        assert taskres("extract", name, "--root", pristine, *GLYPH, "--shots", "4", "--seeds", "1").status == 0
    assert taskres("fit", "imagenet", "--shots", "4", "--epochs", "20", "--device", "cpu").status == 0
    return next(RUNS.glob("imagenet/*/shots_4/seed_1"))


def test_domain_generalisation_uses_the_rows_of_the_tested_classes(imagenet_run: Path, taskres: Taskres) -> None:
    from safetensors.numpy import load_file

    sets = ["imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"]
    results = json.loads(taskres("eval", imagenet_run, "--on", *sets, "--device", "cpu", "--json").out)
    assert [(result["dataset"], result["classes"]) for result in results] == [
        (n, c) for n, c in zip(sets, (4, 4, 3, 2), strict=True)
    ]
    tensors = load_file(imagenet_run / "classifier.safetensors")
    weights = tensors["base"] + 0.5 * tensors["residual"]
    for result, rows in zip(results, ([0, 1, 2, 3], [0, 1, 2, 3], [1, 2, 3], [0, 3]), strict=True):
        with h5py.File(CACHES / f"{result['dataset']}.h5") as file:
            features, labels = file["features/center"][:].astype(np.float64), file["images/label"][:]
        assert result["test_accuracy"] == pytest.approx(accuracy(features, weights[rows], labels))
    assert len({result["test_accuracy"] for result in results}) > 1


def test_a_run_is_not_tested_on_a_different_checkpoint_or_unknown_classes(
    imagenet_run: Path, pristine: Path, here: Path, taskres: Taskres
) -> None:
    taskres("extract", "dtd", "--root", pristine, *GLYPH, "--shots", "1", "--seeds", "1")
    refused = taskres("eval", imagenet_run, "--on", "dtd", "--device", "cpu")
    assert refused.status == 1
    assert "4 of 4 classes that the run does not know" in one_line(refused)
    with h5py.File(shutil.copy(CACHES / "imagenet_a.h5", "other.h5"), "r+") as file:
        del file.attrs["weights_sha256"]
        file.attrs["weights_sha256"] = "0" * 64
    refused = taskres("eval", imagenet_run, "--on", "other.h5", "--device", "cpu")
    assert refused.status == 1
    assert "another checkpoint than the run: weights_sha256" in one_line(refused)


def test_a_test_only_data_set_cannot_be_fitted(imagenet_run: Path, taskres: Taskres) -> None:
    refused = taskres("fit", "imagenet_a")
    assert refused.status == 2
    assert "test images only" in one_line(refused)


def test_on_takes_the_cache_of_the_runs_checkpoint(imagenet_run: Path, here: Path, taskres: Taskres) -> None:
    (here / "cache" / "another-one").mkdir()
    shutil.copy(CACHES / "imagenet_a.h5", here / "cache" / "another-one")
    found = json.loads(taskres("eval", imagenet_run, "--on", "imagenet_a", "--device", "cpu", "--json").out)
    assert found[0]["cache"] == str(CACHES / "imagenet_a.h5")
    assert "several checkpoints" in one_line(taskres("inspect", "imagenet_a"))


# Zero-shot, prompts, base-to-new


def test_three_forms_of_zero_shot(pristine: Path, here: Path, taskres: Taskres) -> None:
    taskres("extract", "imagenet_sketch", "--root", pristine, *GLYPH)
    results = json.loads(taskres("eval", "imagenet_sketch", "--zero-shot", "--device", "cpu", "--json").out)
    with h5py.File(CACHES / "imagenet_sketch.h5") as file:
        text, features = file["text/embeddings"][:].astype(np.float64), file["features/center"][:].astype(np.float64)
        labels = file["images/label"][:]
    weights = {
        "single prompt": text[:, 0],
        "prompt ensemble": normalised(text).mean(1),
        "residual base": text.mean(1),
    }
    assert [result["form"] for result in results] == list(weights)
    assert [len(result["templates"]) for result in results] == [1, 8, 8]
    for result in results:
        assert result["test_accuracy"] == pytest.approx(accuracy(features, weights[result["form"]], labels))
        assert result["val_accuracy"] is None
    table = taskres("eval", "imagenet_sketch", "--zero-shot").out
    assert "prompt ensemble" in table
    assert taskres("eval", "imagenet_sketch", "--zero-shot", "--on", "x").status == 2


def test_own_templates_and_published_ensembles(pristine: Path, here: Path, taskres: Taskres) -> None:
    def templates(*choice: object) -> list[str]:
        outcome = taskres("extract", "dtd", "--root", pristine, *GLYPH, "--shots", "1", "--seeds", "1", *choice)
        assert outcome.status == 0, outcome.err
        with h5py.File(Path(choice[-1]) / "glyph-clip-bundled" / "dtd.h5") as file:
            return [template.decode() for template in file["text/templates"][:]]

    (here / "own.txt").write_text("a {} surface.\n\n  the texture of {}.  \n")
    assert templates("--templates", "own.txt", "--cache-dir", "own") == ["a {} surface.", "the texture of {}."]
    seven = templates("--templates", "imagenet-7", "--cache-dir", "seven")
    assert seven[:2] == ["itap of a {}.", "a bad photo of the {}."]
    assert len(seven) == 7
    assert len(set(templates("--templates", "imagenet-80", "--cache-dir", "eighty"))) == 80
    refused = taskres("extract", "dtd", "--root", pristine, *GLYPH, "--cache-dir", "own")
    assert refused.status == 1
    assert "templates: cache has" in one_line(refused)
    (here / "own.txt").write_text("a {} surface.\na texture\n")
    refused = taskres("extract", "dtd", "--root", pristine, *GLYPH, "--templates", "own.txt")
    assert refused.status == 2
    assert "own.txt, line 2: 'a texture' must have exactly one {}" in one_line(refused)
    (here / "own.txt").write_text("\n")
    assert "has no template" in one_line(taskres("extract", "dtd", "--root", pristine, "--templates", "own.txt"))
    unknown = taskres("extract", "dtd", "--root", pristine, "--templates", "imagenet-8")
    assert "did you mean 'imagenet-80'" in one_line(unknown)


def test_base_classes_are_fitted_and_tested_alone(here: Path, taskres: Taskres) -> None:
    split = write_miniature_with_split("ucf101", here)
    taskres("extract", "ucf101", "--root", here, *GLYPH, "--shots", "2", "--seeds", "1")
    fitted = taskres("fit", "ucf101", "--shots", "2", "--classes", "base", "--epochs", "5", "--device", "cpu", "--json")
    (run,) = json.loads(fitted.out)["runs"]
    half = math.ceil(4 / 2)
    assert run["classes"] == "base"
    assert run["images"] == {
        "train": 2 * half,
        "val": 2 * half,
        "test": sum(label < half for _, label, _ in split["test"]),
    }
    assert Path(run["folder"]).parent.parent.name == "taskres-regular-epochs5-base-classes"
    (again,) = json.loads(taskres("eval", run["folder"], "--device", "cpu", "--json").out)
    assert (again["test_accuracy"], again["classes"]) == (run["test_accuracy"], half)
    refused = taskres("eval", run["folder"], "--classes", "new", "--device", "cpu")
    assert refused.status == 1
    assert "no residual for others" in one_line(refused)
    new = json.loads(taskres("eval", "ucf101", "--zero-shot", "--classes", "new", "--device", "cpu", "--json").out)
    assert {form["classes"] for form in new} == {"new"}
    assert taskres("fit", "ucf101", "--classes", "old").status == 2


# `taskres datasets`


def test_datasets_lists_what_is_complete_and_what_is_missing(here: Path, taskres: Taskres) -> None:
    write_miniature_with_split("dtd", here)
    write_miniature_with_split("eurosat", here)
    (here / "eurosat" / "split_zhou_EuroSAT.json").unlink()
    (here / "stanford_cars" / "cars_train").mkdir(parents=True)
    found = {facts["name"]: facts for facts in json.loads(taskres("datasets", "--root", here, "--json").out)}
    assert found["dtd"]["complete"]
    assert found["dtd"]["warnings"] == []
    assert found["eurosat"]["complete"]
    assert "split_zhou_EuroSAT.json is missing" in found["eurosat"]["warnings"][0]
    assert found["stanford_cars"]["lacks"] == ["stanford_cars/cars_test/", "stanford_cars/split_zhou_StanfordCars.json"]
    steps = "\n".join(found["stanford_cars"]["steps"])
    for part in ("https://", "cars_test.tgz", str(here / "stanford_cars"), "split_zhou_StanfordCars.json"):
        assert part in steps
    printed = taskres("datasets", "--root", here).out
    missing = "stanford_cars/cars_test/, stanford_cars/split_zhou_StanfordCars.json"
    assert f"stanford_cars: missing {missing}\n  home: https://" in printed
    assert "dtd: missing" not in printed


def test_verify_opens_every_image_and_counts(here: Path, taskres: Taskres) -> None:
    split = write_miniature_with_split("oxford_flowers", here)
    outcome = taskres("datasets", "verify", "oxford_flowers", "--root", here, "--json")
    found = json.loads(outcome.out)
    assert found["counts"] == {"classes": 4, "train": 20, "val": 8, "test": 12}
    assert found["published"] == {"classes": 102, "train": 4093, "val": 1633, "test": 2463}
    assert found["faults"] == []
    assert outcome.status == 1
    assert "the counts differ from the published ones" in outcome.err

    gone, cut = split["val"][1][0], split["test"][3][0]
    (here / "oxford_flowers" / "jpg" / gone).unlink()
    whole = (here / "oxford_flowers" / "jpg" / cut).read_bytes()
    (here / "oxford_flowers" / "jpg" / cut).write_bytes(whole[: len(whole) * 2 // 3])
    faults = json.loads(taskres("datasets", "--root", here, "verify", "oxford_flowers", "--json").out)["faults"]
    file = "oxford_flowers/split_zhou_OxfordFlowers.json"
    assert [(fault["path"], fault["listed"]) for fault in faults] == [
        (f"jpg/{gone}", f"{file} val[1]"),
        (f"jpg/{cut}", f"{file} test[3]"),
    ]
    assert faults[0]["fault"] == "missing"
    printed = taskres("datasets", "verify", "oxford_flowers", "--root", here)
    assert f"jpg/{gone} ({file} val[1]): missing" in printed.out
    assert "2 images missing or unreadable" in printed.err


def test_verify_a_complete_data_set(here: Path, taskres: Taskres) -> None:
    outcome = taskres("datasets", "verify", "digits")
    assert outcome.status == 0
    assert "1,079" in outcome.out
    assert taskres("datasets", "verify", "digit").status == 2
    assert taskres("datasets", "verify", "dtd", "--root", here).status == 1
