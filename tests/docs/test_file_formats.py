"""The page of file formats names every key and tensor of a run."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
from safetensors import safe_open

from taskres_cache.runs.metrics import Metrics
from tests.docs.pages import ROOT, run_command

PAGE = (ROOT / "docs" / "file-formats.md").read_text()
# Provenance, as a cache has it; the page of the cache format lists it.
CACHE = (ROOT / "cache" / "README.md").read_text()


def test_keys_of_a_run_are_named(in_demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_command("taskres fit digits --search --residual both --base enhanced", monkeypatch)
    (folder,) = Path("runs").glob("*/digits/*both*/shots_16/seed_1")
    keys = {*json.loads((folder / "metrics.json").read_text()), *(known.name for known in fields(Metrics))}
    assert [key for key in sorted(keys) if f"`{key}`" not in PAGE] == []
    with safe_open(folder / "classifier.safetensors", "numpy") as stored:
        assert [name for name in stored.keys() if f"`{name}`" not in PAGE] == []  # noqa: SIM118
        assert [name for name in stored.metadata() if f"`{name}`" not in PAGE + CACHE] == []
