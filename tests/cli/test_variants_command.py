"""`taskres fit` with other bases and residuals, and its search."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from tests.conftest import Taskres, one_line
from tests.runs.fitting.test_base_files import Evil

BUNDLED = ("--backbone", "glyph-clip", "--pretrained", "bundled", "--device", "cpu")
QUICK = ("--shots", "2", "--epochs", "3", "--device", "cpu")


@pytest.fixture
def extracted(here: Path, photos: Path, taskres: Taskres) -> Path:
    outcome = taskres("extract", photos, *BUNDLED, "--shots", "1,2", "--seeds", "1,2")
    assert outcome.status == 0, outcome.err
    return here / "cache" / "glyph-clip-bundled" / "photos.h5"


def fitted(taskres: Taskres, *arguments: Any) -> list[dict[str, Any]]:
    outcome = taskres("fit", "photos", *QUICK, *arguments, "--json")
    assert outcome.status == 0, outcome.err
    runs: list[dict[str, Any]] = json.loads(outcome.out)["runs"]
    return runs


def test_list_of_bases(extracted: Path, taskres: Taskres) -> None:
    runs = fitted(taskres, "--base", "regular,enhanced,enhanced-only")
    assert [Path(run["folder"]).parts[-3] for run in runs] == [
        "taskres-regular-epochs3", "taskres-enhanced-epochs3", "taskres-enhanced-only",
    ]  # fmt: skip
    for run in runs:
        (again,) = json.loads(taskres("eval", run["folder"], "--device", "cpu", "--json").out)
        for name in ("zero_shot_accuracy", "base_accuracy", "test_accuracy"):
            assert again[name] == run[name]
    printed = taskres("fit", "photos", *QUICK, "--base", "regular,enhanced")
    regular, enhanced = printed.out.split("taskres-enhanced", 1)
    assert "base %" in enhanced
    assert "base %" not in regular
    assert ", base 0." in printed.err
    assert printed.err.splitlines()[-1] == "next: taskres report runs/glyph-clip-bundled/photos"
    assert "base %" in taskres("eval", runs[1]["folder"], "--device", "cpu").out


def test_base_from_the_authors_checkpoint(extracted: Path, here: Path, taskres: Taskres) -> None:
    with h5py.File(extracted) as file:
        projection = file["text/projection"][:]
    noise = np.random.default_rng(0).normal(size=projection.shape).astype(np.float32)
    torch.save({"state_dict": {"weight": torch.from_numpy((projection + 0.1 * noise).T)}}, here / "model.pth.tar")
    (run,) = fitted(taskres, "--base", "model.pth.tar")
    assert run["method"].startswith("taskres-file-sha256")
    assert run["base_file"] == "model.pth.tar"
    assert (
        run["base_accuracy"] != run["zero_shot_accuracy"] or run["base_val_accuracy"] != run["zero_shot_val_accuracy"]
    )
    torch.save({"state_dict": {"weight": torch.from_numpy(projection.T)}}, here / "own.pth.tar")
    (own,) = fitted(taskres, "--base", "own.pth.tar")  # the checkpoint's own projection makes the regular base
    (regular,) = fitted(taskres)
    assert own["zero_shot_accuracy"] == own["base_accuracy"]
    assert own["epoch_losses"] == pytest.approx(regular["epoch_losses"], rel=1e-3)
    (again,) = fitted(taskres, "--base", run["folder"])
    assert again["base_accuracy"] == run["base_accuracy"]


def test_invalid_bases_give_one_line(extracted: Path, here: Path, taskres: Taskres) -> None:
    def refused(stored: Any, status: int = 1) -> str:
        torch.save(stored, here / "model.pth.tar")
        outcome = taskres("fit", "photos", *QUICK, "--base", "model.pth.tar")
        assert outcome.status == status
        return one_line(outcome)

    assert "expected (" in refused({"state_dict": {"weight": torch.ones(3, 5)}})
    assert "has no tensor state_dict.weight" in refused({"weight": torch.ones(3, 5)})
    proof = here / "ran"
    assert "so it was not opened" in refused({"state_dict": {"weight": Evil(f"touch {proof}")}})
    assert not proof.exists()
    misspelt = taskres("fit", "photos", *QUICK, "--base", "enhancd")
    assert misspelt.status == 2
    assert "did you mean 'enhanced'" in one_line(misspelt)
    assert not (here / "runs").exists()  # nothing was fitted


def test_residuals_of_both_sides(extracted: Path, taskres: Taskres) -> None:
    for kind in ("image", "both"):
        (run,) = fitted(taskres, "--residual", kind, "--alpha", "3")
        assert f"taskres-regular-{kind}-residual-" in run["folder"]
        (again,) = json.loads(taskres("eval", run["folder"], "--device", "cpu", "--json").out)
        assert again["test_accuracy"] == run["test_accuracy"]
    wrong = taskres("fit", "photos", *QUICK, "--residual", "sound")
    assert wrong.status == 2
    assert "residual must be one of text, image, both, got 'sound'" in one_line(wrong)
    nothing = taskres("fit", "photos", *QUICK, "--residual", "image", "--base", "enhanced-only")
    assert nothing.status == 2
    assert "enhanced-only trains no residual" in one_line(nothing)


def test_search_shows_the_chosen_values(extracted: Path, taskres: Taskres) -> None:
    arguments = ("--alpha", "0.5,2", "--lr", "0.002,0.02", "--weight-decay", "0.0005", "--search")
    (run,) = fitted(taskres, *arguments)
    assert "/taskres-regular-alpha-auto-epochs3-alphas0.5,2-lrs0.002,0.02-weight-decays0.0005/" in run["folder"]
    assert len(run["candidates"]) == 4
    assert run["chosen"] in run["candidates"]
    printed = taskres("fit", "photos", "--shots", "1,2", "--seeds", "1,2", "--epochs", "3", *arguments).out
    assert printed.count("chosen by validation accuracy") == 1
    table = printed.split("chosen by validation accuracy")[1]
    assert all(column in table for column in ("alpha", "lr", "weight decay", "candidates"))
    rows = [line.split()[:2] for line in table.partition("─\n")[2].partition("\n\n")[0].splitlines() if line]
    assert [(int(shots), int(seed)) for shots, seed in rows] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    refused = taskres("fit", "photos", *QUICK, "--search", "--alpha", "learn")
    assert refused.status == 2
    assert "pass only one of them" in one_line(refused)


def test_list_of_weight_decays(extracted: Path, taskres: Taskres) -> None:
    runs = fitted(taskres, "--weight-decay", "0,0.01", "--lr", "0.002,0.02")
    assert [(run["recipe"]["lr"], run["recipe"]["weight_decay"]) for run in runs] == [
        (0.002, 0.0), (0.002, 0.01), (0.02, 0.0), (0.02, 0.01),
    ]  # fmt: skip
    wrong = taskres("fit", "photos", *QUICK, "--weight-decay", "much")
    assert wrong.status == 2
    assert "--weight-decay 'much': expected comma-separated numbers" in one_line(wrong)


def test_imported_features_have_no_projection(here: Path, taskres: Taskres) -> None:
    rng, labels = np.random.default_rng(0), np.tile([0, 1], 4)
    features = {f"{part}_features": rng.normal(size=(8, 4)) for part in ("train", "test")}
    names = {"classnames": np.array(["jay", "owl"]), "text_features": rng.normal(size=(2, 4))}
    np.savez(here / "birds.npz", **features, **names, train_labels=labels, test_labels=labels)
    assert taskres("import", "birds.npz", "--name", "birds").status == 0
    refused = taskres("fit", "birds", "--shots", "2", "--base", "enhanced")
    assert refused.status == 2
    assert "its features were imported; use --base regular" in one_line(refused)
    searched = taskres("fit", "birds", "--shots", "2", "--search")
    assert searched.status == 2
    assert "need validation images" in one_line(searched)
    assert taskres("fit", "birds", "--shots", "2", "--residual", "both", "--device", "cpu").status == 0
