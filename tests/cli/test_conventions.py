"""Names of options that people bring from other programs, the cache folder's variable, and typos in options."""

from pathlib import Path

import pytest

from taskres_cache.cli.conventions import with_own_names
from tests.conftest import Taskres, one_line

KNOWN = {"--backbone", "--workers", "--seeds"}


def test_names_of_other_programs_are_replaced() -> None:
    given = ["--model", "RN50", "--num-workers=2", "--seed", "1"]
    assert with_own_names(given, KNOWN) == ["--backbone", "RN50", "--workers=2", "--seeds", "1"]


def test_other_words_stay() -> None:
    assert with_own_names(["model", "--output", "x", "--seed=--model"], KNOWN) == [
        "model",
        "--output",
        "x",
        "--seeds=--model",
    ]
    assert with_own_names(["--", "--model"], KNOWN) == ["--", "--model"]
    assert with_own_names(["--seed", "1"], {*KNOWN, "--seed"}) == ["--seed", "1"]


def test_commands_take_them(here: Path, taskres: Taskres) -> None:
    model = ("--model", "glyph-clip", "--pretrained=bundled", "--num-workers", "0", "--device", "cpu")
    extracted = taskres("extract", "digits", *model, "--shots", "1", "--seed", "1")
    assert extracted.status == 0, extracted.err
    fitted = taskres("fit", "digits", "--shots", "1", "--seed=1", "--output", "mine", "--device", "cpu")
    assert fitted.status == 0, fitted.err
    assert [file.parts[0] for file in Path().glob("*/*/*/*/shots_1/seed_1/metrics.json")] == ["mine"]


def test_help_does_not_show_them(taskres: Taskres) -> None:
    shown = taskres("extract", "--help").out
    assert "--backbone" in shown
    assert not any(alias in shown for alias in ("--model", "--num-workers", "--seed "))


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("fit x --shot 1", "did you mean --shots?"),
        ("fit x --sede 1", "did you mean --seeds?"),
        ("extract x --modl RN50", "did you mean --model?"),
        ("extract x --bckbone RN50", "did you mean --backbone?"),
        ("fit x --num-epochs 3", "did you mean --epochs?"),
        ("--verson", "did you mean --version?"),
        ("datasets --rot x", "did you mean --root?"),
        ("fit x --qqq", "no such option: --qqq (see taskres fit --help)"),
        ("predict run x.png --model RN50", "no such option: --model (see"),
        ("predikt", "Did you mean 'predict'?"),
    ],
)
def test_a_misspelt_option_names_the_likely_one(taskres: Taskres, line: str, meant: str) -> None:
    outcome = taskres(*line.split())
    assert outcome.status == 2
    assert meant in one_line(outcome)


def test_the_variable_is_the_default_folder_of_caches(
    here: Path, cache_file: Path, taskres: Taskres, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "cache").rename(here / "elsewhere")
    assert taskres("inspect", "toy").status == 2
    monkeypatch.setenv("TASKRES_CACHE_DIR", "elsewhere")
    assert taskres("inspect", "toy").status == 0
    assert taskres("inspect", "toy", "--cache-dir", "cache").status == 2
    assert "TASKRES_CACHE_DIR" in taskres("inspect", "--help").out
    monkeypatch.setenv("TASKRES_CACHE_DIR", "")
    assert "searched: cache)" in taskres("inspect", "toy").err


def test_the_next_command_repeats_the_folder_only_if_needed(
    here: Path, taskres: Taskres, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    arrays = {
        "text_features": np.random.default_rng(1).normal(size=(2, 4)).astype(np.float32),
        "classnames": np.array(["a", "b"]),
    }
    for seed, partition in enumerate(("train", "test")):
        arrays[f"{partition}_features"] = np.random.default_rng(seed).normal(size=(4, 4)).astype(np.float32)
        arrays[f"{partition}_labels"] = np.array([0, 1, 0, 1])
    np.savez("toy.npz", **arrays)
    monkeypatch.setenv("TASKRES_CACHE_DIR", "elsewhere")
    once = taskres("import", "toy.npz", "--name", "toy", "--shots", "1", "--seed", "1")
    assert once.status == 0, once.err
    assert once.err.splitlines()[-1] == "next: taskres fit toy"
    again = taskres("import", "toy.npz", "--name", "toy", "--shots", "1", "--seed", "1", "--cache-dir", "cache")
    assert again.err.splitlines()[-1] == "next: taskres fit toy --cache-dir cache"
