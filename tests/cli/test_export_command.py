"""`taskres export` as a user meets it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from taskres_cache.exporting import tensors
from tests.conftest import Taskres, one_line

QUICK = ("--shots", "1", "--epochs", "3", "--device", "cpu")


@pytest.fixture
def run(here: Path, cache_file: Path, taskres: Taskres) -> Path:
    outcome = taskres("fit", cache_file, *QUICK, "--json")
    assert outcome.status == 0, outcome.err
    return Path(json.loads(outcome.out)["runs"][0]["folder"])


def test_export_prints_format_comparison_and_usage(run: Path, here: Path, taskres: Taskres) -> None:
    printed = {name: taskres("export", run, "--to", name) for name in ("a.safetensors", "a.pt")}
    assert [outcome.status for outcome in printed.values()] == [0, 0]
    assert [outcome.err for outcome in printed.values()] == ["", ""]
    first, shape, compared, *usage = printed["a.safetensors"].out.splitlines()
    assert first == f"a.safetensors: safetensors, 3 classes, {Path('a.safetensors').stat().st_size:,} bytes"
    assert shape == "weights: 3 x 8, float32"
    assert compared.startswith("compared with the run on 9 test images of the run's cache: ")
    assert compared.endswith(" (tolerance 1.0e-05)")
    assert usage[0] == "use it in Python:"
    assert 'load_file("a.safetensors")' in usage[2]
    assert printed["a.pt"].out.startswith("a.pt and a.pt.json: open_clip, 3 classes, ")
    assert load_file("a.safetensors")["weights"].shape == (3, 8)
    assert torch.load("a.pt", weights_only=True).shape == (8, 3)


def test_onnx_export(run: Path, here: Path, taskres: Taskres) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    outcome = taskres("export", run, "--to", "new/folder/a.onnx")
    assert outcome.status == 0, outcome.err
    assert outcome.err == ""
    assert "\nimage_features: N x 8, float32\nprobabilities: N x 3, float32\n" in outcome.out
    session = onnxruntime.InferenceSession("new/folder/a.onnx")
    (probabilities,) = session.run(None, {"image_features": np.ones((2, 8), np.float32)})
    assert np.allclose(probabilities.sum(axis=1), 1)


def test_json_is_one_document(run: Path, here: Path, taskres: Taskres) -> None:
    document = json.loads(taskres("export", run, "--to", "head.bin", "--format", "open_clip", "--json").out)
    assert document["files"] == ["head.bin", "head.bin.json"]
    assert (document["format"], document["classes"], document["shapes"]) == ("open_clip", 3, {"tensor": [8, 3]})
    assert document["bytes"] == Path("head.bin").stat().st_size + Path("head.bin.json").stat().st_size
    compared = document["comparison"]
    assert (compared["rows"], compared["of"]) == (9, "test images of the run's cache")
    assert 0 <= compared["greatest_difference"] <= compared["tolerance"] == 1e-5
    assert document["usage"][0] == "import torch"


def test_wrong_usage_gives_one_line_and_writes_nothing(run: Path, here: Path, taskres: Taskres) -> None:
    before = sorted(here.rglob("*"))
    for arguments, expected in (
        ((run, "--to", "head.h5"), "head.h5: unknown suffix, expected one of .safetensors (safetensors), .onnx"),
        ((run, "--to", "head"), "head: unknown suffix"),
        ((run, "--to", "head.pt", "--format", "openclip"), "unknown format 'openclip'; did you mean 'open_clip'?"),
        ((run, "--to", "head.pt", "--with-encoder"), "--with-encoder needs ONNX, but head.pt is open_clip"),
        ((run, "--to", "head.onnx", "--pretrained", "openai"), "pass it only together with --with-encoder"),
        ((run, "--to", run / "classifier.safetensors"), "run folders use that name"),
        ((run, "--to", "cache", "--format", "onnx"), "cannot export to cache: it is a folder"),
    ):
        outcome = taskres("export", *arguments)
        assert outcome.status == 2, outcome
        assert expected in one_line(outcome)
    assert taskres("export", run).status == 2  # --to is required
    assert sorted(here.rglob("*")) == before


def test_several_runs_or_none(run: Path, here: Path, cache_file: Path, taskres: Taskres) -> None:
    assert taskres("export", "runs", "--to", "head.pt").status == 0  # the folder contains one run
    assert taskres("fit", cache_file, *QUICK, "--seeds", "1,2").status == 0
    several = taskres("export", "runs", "--to", "head.pt")
    assert several.status == 2
    assert "runs holds 2 runs; pass one of them, such as runs/" in one_line(several)
    none = taskres("export", "cache", "--to", "head.pt")
    assert none.status == 1
    assert "no classifier.safetensors at or below cache; pass a run folder that `taskres fit` wrote" in one_line(none)


def test_missing_extra_gives_one_line(run: Path, here: Path, taskres: Taskres, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    outcome = taskres("export", run, "--to", "head.onnx")
    assert outcome.status == 1
    assert one_line(outcome) == (
        "taskres: `taskres export` to ONNX needs onnx, onnxscript, onnxruntime (not installed): "
        "pip install 'taskres-cache[onnx]'"
    )


def test_wrong_export_replaces_no_file(
    run: Path, here: Path, taskres: Taskres, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("head.pt").write_text("mine")
    monkeypatch.setattr(tensors, "unit_weights", lambda head: head.weights.numpy())  # not of length 1
    outcome = taskres("export", run, "--to", "head.pt")
    assert outcome.status == 1
    assert "could not export head.pt: the written file differs from the run by" in one_line(outcome)
    assert Path("head.pt").read_text() == "mine"
    assert not Path("head.pt.json").exists()


def test_installed_command_exports(run: Path, here: Path) -> None:
    command = [str(Path(sys.executable).with_name("taskres")), "export", str(run)]
    done = subprocess.run([*command, "--to", "head.safetensors"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("head.safetensors: safetensors, 3 classes")
    assert done.stderr == ""
    wrong = subprocess.run([*command, "--to", "head.tar"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("taskres: head.tar: unknown suffix")
    pytest.importorskip("onnxruntime")
    graph = subprocess.run([*command, "--to", "head.onnx"], capture_output=True, text=True, check=True)
    assert graph.stderr == ""  # the exporter's messages are hidden
    assert graph.stdout.startswith("head.onnx: onnx, 3 classes")


def test_export_with_the_bundled_encoder(here: Path, photos: Path, taskres: Taskres) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    bundled = ("--backbone", "glyph-clip", "--pretrained", "bundled", "--device", "cpu")
    assert taskres("extract", photos, *bundled, "--shots", "1", "--seeds", "1").status == 0
    assert taskres("fit", "photos", *QUICK).status == 0
    outcome = taskres("export", "runs", "--to", "whole.onnx", "--with-encoder", "--json")
    assert outcome.status == 0, outcome.err
    document = json.loads(outcome.out)
    assert document["shapes"] == {"pixels": ["N", 3, 32, 32], "probabilities": ["N", 3]}
    assert document["comparison"]["of"] == "random images with a fixed seed"
    metadata = onnxruntime.InferenceSession("whole.onnx").get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classnames"]) == ["black_cat", "dog", "été"]
    assert "(N, 3, 32, 32), RGB from 0 to 1" in metadata["how_to_use"]
