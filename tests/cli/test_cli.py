"""The command line as a user meets it: results, messages, exit statuses."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from tests.conftest import Taskres, one_line, save_image

BUNDLED = ("--backbone", "glyph-clip", "--pretrained", "bundled", "--device", "cpu")


@pytest.fixture
def extracted(here: Path, photos: Path, taskres: Taskres) -> Path:
    outcome = taskres("extract", photos, *BUNDLED, "--shots", "1,2", "--seeds", "1,2")
    assert outcome.status == 0, outcome.err
    return here / "cache" / "glyph-clip-bundled" / "photos.h5"


def test_extract_and_fit_a_folder(extracted: Path, here: Path, taskres: Taskres) -> None:
    assert extracted.is_file()
    outcome = taskres("fit", "photos", "--shots", "1,2", "--seeds", "1,2", "--epochs", "5")
    assert outcome.status == 0
    assert "zero-shot %" in outcome.out
    run = here / "runs" / "glyph-clip-bundled" / "photos" / "taskres-regular-epochs5" / "shots_2" / "seed_1"
    assert (run / "classifier.safetensors").is_file()
    assert json.loads((run / "metrics.json").read_text())["shots"] == 2


def test_fit_prints_one_json_document(extracted: Path, taskres: Taskres) -> None:
    outcome = taskres("fit", extracted, "--shots", "2", "--seeds", "1,2", "--alpha", "1.5", "--epochs", "3", "--json")
    document = json.loads(outcome.out)
    assert outcome.status == 0
    assert document["runs"][0]["recipe"]["alpha"] == 1.5
    assert [run["seed"] for run in document["runs"]] == [1, 2]
    assert document["summary"][0]["seeds"] == [1, 2]
    assert all(Path(run["folder"]).is_dir() for run in document["runs"])


def test_lists_of_alphas_and_learning_rates_make_a_grid(extracted: Path, taskres: Taskres) -> None:
    outcome = taskres(
        "fit", extracted, "--shots", "1,2", "--alpha", "0.5,2", "--lr", "0.002,0.01", "--epochs", "3", "--json"
    )
    runs = json.loads(outcome.out)["runs"]
    assert [(run["shots"], run["alpha"], run["recipe"]["lr"]) for run in runs] == [
        (shots, alpha, lr) for shots in (1, 2) for alpha in (0.5, 2.0) for lr in (0.002, 0.01)
    ]
    assert len({run["folder"] for run in runs}) == 8
    table = taskres("fit", extracted, "--shots", "1,2", "--alpha", "0.5,2", "--epochs", "3").out
    assert table.count("zero-shot %") == 2
    assert "taskres-regular-alpha2-epochs3" in table
    wrong = taskres("fit", extracted, "--alpha", "big")
    assert wrong.status == 2
    assert "--alpha 'big': expected comma-separated numbers" in one_line(wrong)


def test_alpha_can_be_chosen_or_learned(extracted: Path, taskres: Taskres) -> None:
    outcome = taskres("fit", extracted, "--shots", "2", "--alpha", "auto", "--epochs", "3", "--json")
    (run,) = json.loads(outcome.out)["runs"]
    assert "/taskres-regular-alpha-auto-epochs3/" in run["folder"]
    tried = {candidate["alpha"]: candidate["val_accuracy"] for candidate in run["candidates"]}
    assert len(tried) == 7
    assert tried[run["alpha"]] == max(tried.values()) == run["val_accuracy"]
    (again,) = json.loads(taskres("eval", run["folder"], "--json").out)
    assert again["test_accuracy"] == run["test_accuracy"]
    (learned,) = json.loads(taskres("fit", extracted, "--shots", "2", "--alpha", "learn", "--json").out)["runs"]
    assert "/taskres-regular-alpha-learn/" in learned["folder"]
    assert learned["alpha"] != 0.5
    assert learned["recipe"]["alpha"] == 0.5


def test_fit_takes_patience_and_precision(extracted: Path, taskres: Taskres) -> None:
    outcome = taskres("fit", extracted, "--shots", "2", "--patience", "2", "--precision", "bf16", "--json")
    (run,) = json.loads(outcome.out)["runs"]
    assert "/taskres-regular-patience2-precisionbf16/" in run["folder"]
    assert len(run["epoch_losses"]) == min(run["kept_epochs"] + 2, 100)
    refused = taskres("fit", extracted, "--shots", "2", "--precision", "tf32", "--device", "cpu")
    assert refused.status == 2
    assert "tf32 needs CUDA" in one_line(refused)
    assert taskres("fit", extracted, "--shots", "2", "--precision", "fp8").status == 2
    assert taskres("fit", extracted, "--shots", "2", "--patience", "0").status == 2


def test_eval_takes_a_run_or_a_folder_of_runs(extracted: Path, here: Path, taskres: Taskres) -> None:
    fitted = json.loads(taskres("fit", "photos", "--shots", "1,2", "--seeds", "1", "--json").out)
    table = taskres("eval", here / "runs")
    assert table.status == 0
    assert "test %" in table.out
    own = json.loads(taskres("eval", here / "runs", "--json").out)
    assert [row["test_accuracy"] for row in own] == [run["test_accuracy"] for run in fitted["runs"]]
    other = json.loads(taskres("eval", fitted["runs"][0]["folder"], "--on", "photos", extracted, "--json").out)
    assert [row["test_accuracy"] for row in other] == [own[0]["test_accuracy"]] * 2


def test_inspect(extracted: Path, taskres: Taskres) -> None:
    plain, verified = taskres("inspect", "photos"), taskres("inspect", "photos", "--verify")
    assert "shots 1, 2 with seeds 1, 2" in plain.out
    assert "intact" not in plain.out
    assert verified.status == 0
    assert "match their checksums" in verified.out
    facts = json.loads(taskres("inspect", extracted, "--verify", "--json").out)
    assert facts["classes"] == 3
    assert facts["images"]["test"] == 6
    assert facts["verified_bytes"]["features/center"] > 0


def test_datasets(here: Path, taskres: Taskres) -> None:
    assert "digits" in taskres("datasets").out
    rows = json.loads(taskres("datasets", "--json").out)
    assert rows[0]["name"] == "digits"
    assert rows[0]["complete"]


def test_import(here: Path, taskres: Taskres) -> None:
    rng = np.random.default_rng(0)
    labels = np.tile([0, 1], 4)
    features = {f"{part}_features": rng.normal(size=(8, 4)) for part in ("train", "test")}
    names = {"classnames": np.array(["jay", "owl"]), "text_features": rng.normal(size=(2, 4))}
    np.savez(here / "birds.npz", **features, **names, train_labels=labels, test_labels=labels)
    assert taskres("import", "birds.npz", "--name", "birds").status == 0
    assert taskres("fit", "birds", "--shots", "2").status == 0
    assert taskres("import", "none.npz", "--name", "birds").status == 1
    assert taskres("import", "birds.npz").status == 2
    assert "shots must be positive" in one_line(taskres("import", "birds.npz", "--name", "birds", "--shots", "-1"))
    assert taskres("import", "birds.npz", "--name", "wrens", "--backbone", "ViT-B/32").status == 0
    assert taskres("fit", "wrens", "--shots", "2").status == 0


def test_second_extract_encodes_nothing(extracted: Path, photos: Path, taskres: Taskres) -> None:
    outcome = taskres("extract", photos, *BUNDLED, "--shots", "1,2", "--seeds", "1,2")
    assert "0 newly encoded\nnothing was missing" in outcome.err


def test_inspect_finds_the_cache_by_the_image_folder(extracted: Path, photos: Path, taskres: Taskres) -> None:
    assert json.loads(taskres("inspect", f"{photos}/", "--json").out)["dataset"] == "photos"


def test_unreadable_images_are_listed_on_standard_error(here: Path, photos: Path, taskres: Taskres) -> None:
    for classname in ("black_cat", "dog", "été"):
        (photos / classname / "image 3.jpg").write_text("no image")
        (photos / classname / "image 4.png").write_text("no image")
    command = ("extract", photos, *BUNDLED, "--shots", "16", "--seeds", "1")
    failed = taskres(*command)
    assert failed.status == 1
    assert "could not read 6 images" in failed.err
    assert all(f"{classname}/image 3.jpg" in failed.err for classname in ("black_cat", "dog", "été"))
    assert not (here / "cache" / "glyph-clip-bundled" / "photos.h5").exists()
    skipped = taskres(*command, "--skip-unreadable")
    assert skipped.status == 0
    assert skipped.err.count("note: skipped") == 6
    assert json.loads(taskres("inspect", "photos", "--json").out)["skipped_images"] == 6


@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        (("extract", "digit"), 2, "unknown data set 'digit'; did you mean 'digits'"),
        (("extract", "digits", "--backbone", "glyf-clip"), 2, "did you mean 'glyph-clip'"),
        (("extract", "digits", "--backbone", "RN50", "--pretrained", "opena1"), 2, "did you mean 'openai'"),
        (("extract", "digits", "--backbone", "RN50", "--pretrained", "lost/weights.pt"), 1, "does not exist"),
        (("extract", "digits", "--shots", "four"), 2, "--shots 'four': expected numbers, all, or a range"),
        (("extract", "digits", "--shots", "0"), 2, "shots must be positive"),
        (("extract", "digits", "--precision", "fp8"), 2, "precision must be"),
        (("extract", "digits", "--device", "cuda:9"), 2, "device 'cuda:9' cannot be used here"),
        (("extract", "digits", "--classnames", "shouted"), 2, "classnames must be one of"),
        (("fit", "nothing"), 2, "unknown cache 'nothing'"),
        (("fit", "nothing.h5"), 1, "does not exist"),
        (("eval", "nothing"), 1, "no classifier.safetensors"),
        (("eval", "a", "b"), 2, "expected one RUN, got a b"),
        (("inspect", "nothing"), 2, "unknown cache"),
    ],
)
def test_wrong_usage_gives_one_line_and_a_status(
    here: Path, taskres: Taskres, arguments: tuple[str, ...], status: int, expected: str
) -> None:
    outcome = taskres(*arguments)
    assert outcome.status == status
    assert expected in one_line(outcome)


def test_wrong_usage_with_a_cache(extracted: Path, taskres: Taskres) -> None:
    missing = taskres("fit", "photos", "--shots", "4")
    assert missing.status == 2
    assert "(available: shots 1, 2 with seeds 1, 2); add it:" in one_line(missing)
    assert taskres("fit", "photos", "--shots", "1", "--lr", "-1").status == 2
    assert taskres("fit", "photos", "--shots", "1", "--base", "fancy").status == 2


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def replace_by_other_hdf5(path: Path) -> None:
    path.unlink()
    with h5py.File(path, "w") as file:
        file["x"] = [1]


def set_newer_version(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 99


def flip_a_bit(path: Path) -> None:
    with h5py.File(path) as file:
        offset = file["features/center"].id.get_chunk_info(0).byte_offset
    raw = bytearray(path.read_bytes())
    raw[offset + 11] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("damage", [truncate, replace_by_other_hdf5, set_newer_version, flip_a_bit])
@pytest.mark.parametrize("command", [("inspect", "photos", "--verify"), ("fit", "photos"), ("extract",)])
def test_every_command_rejects_a_damaged_cache_and_keeps_it(
    extracted: Path, photos: Path, taskres: Taskres, damage: Callable[[Path], None], command: tuple[str, ...]
) -> None:
    damage(extracted)
    before = extracted.read_bytes()
    more = {"extract": (photos, *BUNDLED), "fit": ("--shots", "1"), "inspect": ()}[command[0]]
    outcome = taskres(*command, *more)
    assert outcome.status == 1
    assert str(extracted.name) in one_line(outcome)
    assert extracted.read_bytes() == before


def test_extract_rejects_a_cache_of_another_checkpoint(
    extracted: Path, photos: Path, taskres: Taskres, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    from taskres_cache.encoders.loading import untrained_model

    save_file(untrained_model("glyph-clip", seed=8)[0].state_dict(), tmp_path / "bundled.safetensors")
    before = extracted.read_bytes()
    other = ("--backbone", "glyph-clip", "--pretrained", tmp_path / "bundled.safetensors", "--device", "cpu")
    outcome = taskres("extract", photos, *other)
    assert outcome.status == 1
    assert "weights_sha256: cache has" in one_line(outcome)
    assert extracted.read_bytes() == before


def test_extract_rejects_bad_folders(here: Path, taskres: Taskres) -> None:
    save_image(here / "one" / "cat" / "1.png", 1)
    save_image(here / "two" / "cat" / "1.png", 1)
    (here / "two" / "dog").mkdir()
    only, empty = taskres("extract", "one"), taskres("extract", "two")
    assert (only.status, empty.status) == (1, 1)
    assert "only 1 class" in one_line(only)
    assert "no image in 'dog'" in one_line(empty)


def test_unwritable_cache_folder(here: Path, photos: Path, taskres: Taskres) -> None:
    (here / "file").write_text("a file")
    outcome = taskres("extract", photos, *BUNDLED, "--cache-dir", "file")
    assert outcome.status == 1
    assert "cannot be written" in one_line(outcome)
    assert (here / "file").read_text() == "a file"


def test_help_and_version_import_no_large_library() -> None:
    program = (
        "import sys; sys.argv = ['taskres', *sys.argv[1:]]\n"
        "from taskres_cache.cli import main\n"
        "try:\n    main()\nfinally:\n"
        "    print([name for name in ('torch', 'open_clip', 'h5py', 'numpy', 'PIL') if name in sys.modules])"
    )
    for arguments in (["--help"], ["extract", "--help"], ["fit", "--help"], ["--version"]):
        command = [sys.executable, "-c", program, *arguments]
        printed = subprocess.run(command, capture_output=True, text=True, check=True)
        assert printed.stdout.splitlines()[-1] == "[]", printed.stdout


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("fit", ("0.5, or the data set's own", "100 below 8 shots", "keep the last")),
        ("extract", ("RN50; glyph-clip for digits", "the data set's prompts", "that of the folder or file")),
        ("eval", ("Caches to test on, instead of the run's own cache", "those of the run")),
        ("benchmark", ("none: the bundled digits",)),
    ],
)
def test_help_shows_defaults(command: str, expected: tuple[str, ...], taskres: Taskres) -> None:
    printed = taskres(command, "--help").out
    words = " ".join(printed.translate(str.maketrans("│╭╮╰╯─", " " * 6)).split())
    assert [phrase for phrase in expected if phrase not in words] == []


def test_the_installed_command_runs() -> None:
    command = Path(sys.executable).with_name("taskres")
    printed = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert printed.stdout.startswith("taskres-cache ")
    wrong = subprocess.run([command, "extract"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2


def test_full_disk_loses_no_finished_block(here: Path) -> None:
    """A limit on file sizes simulates the disk: blocks fit, the finished cache does not."""
    command = [str(Path(sys.executable).with_name("taskres")), "extract", "digits", "--device", "cpu"]
    limited = ["bash", "-c", 'ulimit -f 1200; exec "$@"', "limited", *command]
    failed = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "digits.h5 cannot be written" in failed.stderr.splitlines()[-1]
    assert "Traceback" not in failed.stderr
    folder = here / "cache" / "glyph-clip-bundled"
    assert [path.name for path in folder.iterdir()] == ["digits.h5.parts"]
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "1242 images, 0 newly encoded" in again.stderr


def test_defaults_are_the_papers_splits() -> None:
    from taskres_cache.cli import options
    from taskres_cache.datasets import PAPER_SEEDS, PAPER_SHOTS

    assert options.split_numbers(None, None) == (PAPER_SHOTS, PAPER_SEEDS)


def test_interrupted_extract_says_how_to_continue(
    here: Path, taskres: Taskres, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("taskres_cache.extraction.extract.extract", interrupt)
    outcome = taskres("extract", "digits", "--device", "cpu")
    assert outcome.status == 130
    assert outcome.err == "Interrupted. Finished blocks are kept; run the same command again to continue.\n"


def test_views_in_extract_and_fit(taskres: Taskres, here: Path, photos: Path) -> None:
    weights = ("--backbone", "glyph-clip", "--pretrained", "bundled", "--device", "cpu")
    made = taskres("extract", photos, *weights, "--shots", "1", "--seeds", "1", "--views", "2", "--views-seed", "3")
    assert made.status == 0, made.err
    assert "2 augmented views per training image, 6 newly encoded" in made.err
    assert "time: decode " in made.err
    methods = {
        (): "taskres-regular-views2",
        ("--views", "1"): "taskres-regular-views1",
        ("--views", "0"): "taskres-regular",
        ("--views-average",): "taskres-regular-views2-average",
    }
    for options, method in methods.items():
        fitted = taskres("fit", "photos", *(options or ("--method", "taskres")), "--json")
        assert [run["method"] for run in json.loads(fitted.out)["runs"]] == [method]
    refused = taskres("fit", "photos", "--views", "5")
    assert refused.status == 2
    assert "has 2 augmented views of its train images, expected 5" in one_line(refused)


def test_full_memory_of_a_device_is_one_line(taskres: Taskres, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore about it.")

    monkeypatch.setattr("taskres_cache.cli._run", full)
    outcome = taskres("fit", "digits")
    assert outcome.status == 1
    assert "the device ran out of memory (CUDA out of memory" in one_line(outcome)
    assert "or use --device cpu" in outcome.err


def test_other_errors_of_torch_are_not_hidden(taskres: Taskres, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*_: object) -> None:
        raise RuntimeError("a fault of the program")

    monkeypatch.setattr("taskres_cache.cli._run", fault)
    with pytest.raises(RuntimeError, match="a fault of the program"):
        taskres("fit", "digits")
