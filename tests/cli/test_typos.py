"""Typos are answered before torch is imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from taskres_cache.datasets.word_lists import clip_models, clip_tags
from tests.conftest import Taskres, one_line

# arguments, exit status, part of the message
TYPOS = [
    ("extract nowhere", 2, "unknown data set 'nowhere'"),
    ("extract digits --backbone glyf-clip", 2, "did you mean 'glyph-clip'?"),
    ("extract digits --backbone RN50 --pretrained opanai", 2, "did you mean 'openai'?"),
    ("extract digits --pretrained no/file.pt", 1, "checkpoint no/file.pt does not exist"),
    ("extract digits --device gpu", 2, "unknown --device 'gpu'; did you mean 'cpu'?"),
    ("extract digits --precision fp8", 2, "--precision must be one of auto, fp32, bf16, fp16, got 'fp8'"),
    ("extract digits --shots 0", 2, "shots must be positive"),
    ("extract digits --views -1", 2, "--views must not be negative, got -1"),
    ("extract digits --batch-size 0", 2, "--batch-size must be positive, got 0"),
    ("extract digits --templates nofile", 2, "unknown templates 'nofile'"),
    ("extract digits --classnames space", 2, "did you mean 'spaces'?"),
    ("extract digits --cache-dir file", 1, "--cache-dir file cannot be written: it is not a folder"),
    ("fit nowhere", 2, "unknown cache 'nowhere'"),
    ("fit nowhere.h5", 1, "cache nowhere.h5 does not exist"),
    ("fit toy --shots 3", 2, "has no split with 3 shots and seed 1"),
    ("fit toy --shots 1 --alpha x", 2, "--alpha 'x': expected comma-separated numbers"),
    ("fit toy --shots 1 --alpha nan", 2, "alpha must be a finite number"),
    ("fit toy --shots 1 --lr -1", 2, "lr must be a positive number"),
    ("fit toy --shots 1 --epochs 0", 2, "--epochs must be positive"),
    ("fit toy --shots 1 --base enhancd", 2, "did you mean 'enhanced'"),
    ("fit toy --shots 1 --residual texts", 2, "residual must be one of"),
    ("fit toy --shots 1 --classes nwe", 2, "did you mean 'new'?"),
    ("fit toy --shots 1 --views-average", 2, "views must be 1 or more"),
    ("fit toy --shots 1 --out file", 1, "--out file cannot be written"),
    ("eval nowhere", 1, "no classifier.safetensors at or below nowhere"),
    ("eval run --on nowhere", 2, "unknown cache 'nowhere'"),
    ("eval run --on nowhere.h5", 1, "cache nowhere.h5 does not exist"),
    ("eval nowhere --zero-shot", 2, "unknown cache 'nowhere'"),
    ("suggest nowhere file", 1, "no classifier.safetensors"),
    ("suggest RN50 file --csv file/x", 1, "cannot be written"),
    ("backbones --models RN50", 2, "--models is for --try"),
    ("predict nowhere x.png", 1, "no classifier.safetensors"),
    ("predict run nope.png", 1, "none of the 1 images exists"),
    ("predict run file --csv file/x", 1, "cannot be written"),
    ("predict run file --pretrained no.pt", 1, "checkpoint no.pt does not exist"),
    ("export nowhere --to x.onnx", 1, "no classifier.safetensors"),
    ("export run --to x.foo", 2, "unknown suffix"),
    ("report nowhere", 1, "no classifier.safetensors"),
    ("report run --to x.foo", 2, "cannot write a report to x.foo"),
    ("inspect nowhere", 2, "unknown cache 'nowhere'"),
    ("import nowhere.npz --name x", 1, "nowhere.npz does not exist"),
    ("datasets verify nowhere", 2, "unknown data set"),
    ("benchmark --datasets nope", 2, "unknown data set 'nope'"),
    ("benchmark --backbone RN55", 2, "did you mean 'RN50'"),
    ("doctor --device gpu", 2, "unknown --device"),
]
PROGRAM = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from taskres_cache.cli import main
answers = []
for line in sys.stdin.read().splitlines():
    sys.argv, said = ["taskres", *line.split()], io.StringIO()
    try:
        with redirect_stderr(said):
            main()
    except SystemExit as end:
        answers.append((end.code, said.getvalue(), "torch" in sys.modules))
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, bool]]:
    """What each line gets, all in one process that has not imported torch: status, message, and whether torch came."""
    import numpy as np

    from taskres_cache.caches.contents import CacheContents, Split, TextBases
    from taskres_cache.caches.hdf5 import write_cache
    from taskres_cache.caches.provenance import Provenance

    folder = tmp_path_factory.mktemp("typos")
    source = Provenance(
        "toy", "tower", "random", "tower", "ab" * 32, 100.0, {"size": [8, 8]}, "fp32", "spaces", "given"
    )
    features = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    text = np.random.default_rng(1).normal(size=(2, 1, 4)).astype(np.float32)
    rows = np.arange(2)
    write_cache(
        folder / "cache" / "tower-random" / "toy.h5",
        CacheContents(
            provenance=source,
            classnames=("a", "b"),
            paths=tuple(f"{row}.png" for row in range(6)),
            stamps=tuple(f"1-{row}" for row in range(6)),
            labels=np.tile(np.arange(2, dtype=np.int32), 3),
            partitions=np.repeat([0, 1, 2], 2).astype(np.uint8),
            image_features=features,
            text=TextBases(("a {}.",), text, None, None),
            splits={(1, 1): Split(rows, rows + 2)},
        ),
    )
    (folder / "run").mkdir()
    (folder / "run" / "classifier.safetensors").write_bytes(b"never read")
    (folder / "file").write_text("a file")
    lines = "\n".join(line for line, *_ in TYPOS)
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=True, cwd=folder)
    return dict(zip((line for line, *_ in TYPOS), json.loads(done.stdout), strict=True))


@pytest.mark.parametrize(("line", "status", "expected"), TYPOS, ids=[line for line, *_ in TYPOS])
def test_typos_are_answered_without_torch(
    answers: dict[str, tuple[int, str, bool]], line: str, status: int, expected: str
) -> None:
    code, said, imported = answers[line]
    assert expected in said.splitlines()[-1]
    assert said.splitlines()[-1].startswith("taskres: ")
    assert (code, imported) == (status, False)


def test_tags_read_from_the_file_are_open_clips() -> None:
    import open_clip

    told = {model: clip_tags(model) for model in clip_models() if model != "glyph-clip"}
    assert sum(map(bool, told.values())) > 90
    wrong = [
        model for model, tags in told.items() if tags and list(tags) != open_clip.list_pretrained_tags_by_model(model)
    ]
    assert wrong == []
    assert told["RN50-quickgelu"] == ("openai", "yfcc15m", "cc12m")
    assert "dfn5b" in told["ViT-H-14-quickgelu"]


def test_choices_are_the_librarys() -> None:
    from taskres_cache.cli import checks
    from taskres_cache.datasets.prompts import PROMPT_FORMS
    from taskres_cache.encoders.catalogue import HUB, LOCAL

    assert checks.PREFIXES == (HUB, LOCAL)
    assert PROMPT_FORMS == ("spaces", "raw")


def test_a_prompt_in_place_of_a_file_is_refused_in_a_short_line(here: Path, taskres: Taskres) -> None:
    refused = one_line(taskres("extract", "digits", "--templates", "word " * 50_000))
    assert "unknown templates 'word word" in refused
    assert len(refused) < 2100
