"""`taskres backbones`: the list, its filter, JSON, and errors; `tests/choosing/test_trial.py` tests `--try`."""

import json
from pathlib import Path

import pytest

from tests.conftest import Taskres, one_line


def test_the_list_as_a_table_and_as_json(taskres: Taskres) -> None:
    lines = taskres("backbones", "RN50-openai").out.splitlines()
    assert lines[1].split() == ["model", "tag", "here", "embedding", "image", "image", "tower", "all"]
    assert [line.split()[:2] for line in lines[3:] if line] == [["RN50", "openai"]]
    assert lines[3].split()[3:] == ["1024", "224", "38.3", "102.0"]
    (one,) = json.loads(taskres("backbones", "glyph-clip", "--json").out)
    assert one == {
        "model": "glyph-clip",
        "tag": "bundled",
        "dim": 64,
        "image_size": 32,
        "image_parameters": 1327832,
        "parameters": 4595161,
        "is_default": True,
        "is_here": True,
    }


def test_only_what_is_here(taskres: Taskres, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    rows = taskres("backbones", "--here").out.splitlines()[3:]
    assert [row.split()[0] for row in rows if row] == ["glyph-clip"]
    assert json.loads(taskres("backbones", "RN50", "--here", "--json").out) == []


@pytest.mark.parametrize(
    ("line", "status", "expected"),
    [
        ("backbones nothing-like-this", 2, "no model or tag with 'nothing-like-this'"),
        ("backbones --models RN50", 2, "--models is for --try"),
        ("backbones --try digits", 2, "goes together with --models"),
        ("backbones RN50 --try digits --models RN50", 2, "without WORD"),
        ("backbones --try nowhere --models RN50", 2, "unknown data set 'nowhere'"),
    ],
)
def test_wrong_usage(taskres: Taskres, here: Path, line: str, status: int, expected: str) -> None:
    outcome = taskres(*line.split())
    assert outcome.status == status
    assert expected in one_line(outcome)


def test_if_no_model_works_the_command_fails(taskres: Taskres) -> None:
    outcome = taskres("backbones", "--try", "digits", "--models", "RN55,glyph-clip:no/file.pt", "--device", "cpu")
    assert outcome.status == 1
    assert "did you mean 'RN50'" in outcome.err
    assert outcome.err.splitlines()[-1] == "taskres: none of the 2 models could be tried; see above"


def test_the_ranking_as_json(taskres: Taskres) -> None:
    words = ("--models", "glyph-clip,RN55", "--images", "50", "--device", "cpu", "--workers", "0", "--json")
    outcome = taskres("backbones", "--try", "digits", *words)
    assert outcome.status == 0, outcome.err
    document = json.loads(outcome.out)
    assert (document["dataset"], document["images"], document["classes"]) == ("digits", 50, 10)
    assert [one["model"] for one in document["ranking"]] == ["glyph-clip"]
    assert [one["model"] for one in document["failed"]] == ["RN55"]
