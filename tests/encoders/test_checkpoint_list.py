"""The list of open_clip's checkpoints: names, sizes, and which weights are on this machine."""

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from taskres_cache.bundled import CLIP_SIZES, GLYPH_CLIP_WEIGHTS
from taskres_cache.datasets.word_lists import clip_models
from taskres_cache.encoders import catalogue
from taskres_cache.encoders.checkpoint_list import is_here, list_checkpoints
from taskres_cache.encoders.loading import untrained_model
from taskres_cache.encoders.sizes import counted, model_size


def test_a_word_finds_models_and_tags() -> None:
    assert {one.tag for one in list_checkpoints("openai") if one.model == "RN50"} == {"openai"}
    assert [(one.model, one.tag) for one in list_checkpoints("vit-b/16 OPENAI")] == [("ViT-B-16", "openai")]
    assert list_checkpoints("nothing-like-this") == []
    assert len(list_checkpoints()) > 190


def test_facts_of_known_models() -> None:
    (vit,) = list_checkpoints("ViT-L-14-336 openai")
    assert (vit.dim, vit.image_size, vit.is_default) == (768, 336, True)
    assert [one.tag for one in list_checkpoints("RN50") if one.model == "RN50" and one.is_default] == ["openai"]
    (glyph,) = list_checkpoints("glyph-clip")
    assert (glyph.tag, glyph.dim, glyph.image_size, glyph.is_here) == ("bundled", 64, 32, True)


def test_published_numbers_of_parameters() -> None:
    """Millions, of the image tower and of all, in open_clip's docs/model_profile.csv."""
    published = {"RN50": (38.32, 102.01), "ViT-B-32": (87.85, 151.28), "ViT-H-14": (632.08, 986.11)}
    millions = {name: tuple(round(one / 1e6, 2) for one in model_size(name) if one) for name in published}
    assert millions == published


@pytest.mark.parametrize("name", ["RN50", "ViT-B-16-SigLIP", "glyph-clip", "nllb-clip-base"])
def test_bundled_sizes_are_those_of_the_modules(name: str) -> None:
    bundled, again = model_size(name), counted(name)
    assert again.image == bundled.image
    assert bundled.total is None or again.total == bundled.total


def test_a_model_with_values_has_as_many_parameters() -> None:
    model, _ = untrained_model("glyph-clip", seed=0)
    assert model_size("glyph-clip").total == sum(parameter.numel() for parameter in model.parameters())


def test_sizes_of_all_models_are_bundled() -> None:
    assert set(clip_models()) <= set(json.loads(CLIP_SIZES.read_text()))


def in_hub_cache(folder: Path, repository: str, file: str) -> None:
    """Make the hub's cache of one file."""
    below = folder / f"models--{repository.replace('/', '--')}"
    (below / "refs").mkdir(parents=True)
    (below / "refs" / "main").write_text("abc")
    (below / "snapshots" / "abc").mkdir(parents=True)
    (below / "snapshots" / "abc" / file).write_bytes(b"weights")


@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_weights_in_the_hubs_cache_are_found(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert not is_here("RN50", "openai")
    in_hub_cache(tmp_path, "timm/resnet50_clip.openai", file)
    assert is_here("RN50", "openai")
    assert not is_here("RN50", "yfcc15m")


def test_files_that_open_clip_asks_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert catalogue.weight_files("glyph-clip", "bundled") == ("", (str(GLYPH_CLIP_WEIGHTS),))
    repository, files = catalogue.weight_files("ViT-B-32", "laion2b_s34b_b79k")
    assert repository == "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
    assert files == ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    monkeypatch.setattr(catalogue, "DOWNLOADS", tmp_path)
    monkeypatch.setattr(catalogue.open_clip, "get_pretrained_cfg", lambda name, tag: {"url": "https://x/y/w.pt"})
    assert catalogue.weight_files("RN50", "openai") == ("", (str(tmp_path / "w.pt"),))
    assert not is_here("RN50", "openai")
    (tmp_path / "w.pt").touch()
    assert is_here("RN50", "openai")
