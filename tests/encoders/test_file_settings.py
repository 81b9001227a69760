"""Settings of checkpoint files: preprocessing and activation, against those of open_clip's tags."""

import json
from pathlib import Path

import open_clip
import pytest
import torch

from taskres_cache import Recipe, fit
from taskres_cache.datasets import Dataset
from taskres_cache.encoders.catalogue import find_weights
from taskres_cache.encoders.file_settings import settings_of_file
from taskres_cache.encoders.loading import load_backbone, untrained_model
from taskres_cache.errors import OptionError, UnknownNameError, WeightsError
from taskres_cache.extraction.extract import ExtractOptions, extract
from taskres_cache.runs.encoder import load_encoder
from taskres_cache.runs.finding import find_run
from taskres_cache.runs.run import read_classifier

KEYS = ("mean", "std", "interpolation", "resize_mode")
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
BRIGHT = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "interpolation": "bilinear", "resize_mode": "squash"}
UNDECIDED = {"ViT-H-14", "ViT-H-14-quickgelu", "ViT-L-14"}  # their tags have different preprocessing


@pytest.fixture
def own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small model in open_clip's lists, with the tags `bright` and, of the same weights, `dark`; its weights."""
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "listed.json").write_text(json.dumps(TINY))
    (configs / "listed-quickgelu.json").write_text(json.dumps({**TINY, "quick_gelu": True}))
    open_clip.add_model_config(configs)
    file = tmp_path / "w.pt"
    torch.save(untrained_model("listed", seed=1)[0].state_dict(), file)
    tags = {"bright": {"file": str(file), "quick_gelu": True, **BRIGHT}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "listed", tags)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "listed-quickgelu", tags.copy())
    return file


def with_second_tag() -> None:
    open_clip.pretrained._PRETRAINED["listed"]["dark"] = {**BRIGHT, "mean": (0.5, 0.5, 0.5)}


def test_files_of_every_model_get_the_settings_of_its_tags(tmp_path: Path) -> None:
    """The table of open_clip: 196 tags of 115 models."""
    undecided, checked = set(), 0
    for name in open_clip.list_models():
        tags = {tag: open_clip.get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)}
        found = settings_of_file(name, tmp_path / "w.pt")
        if len({tuple(map(str, map(tag.get, KEYS))) for tag in tags.values()}) > 1:
            undecided.add(name)
            assert "have others" in found.origin
        for tag, known in tags.items():
            asked = settings_of_file(name, tmp_path / "w.pt", tag)
            named = settings_of_file(name, tmp_path / f"{tag}.pt")
            for one in (asked, named, *([] if name in undecided else [found])):
                assert all(str(one.preprocess[key]) == str(_listed(known[key])) for key in KEYS)
            assert asked.quick_gelu == named.quick_gelu == known.get("quick_gelu", False)
            checked += 1
    assert undecided == UNDECIDED
    assert checked == len(open_clip.list_pretrained())


def _listed(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def test_the_activation_follows_the_tags_if_all_agree(tmp_path: Path) -> None:
    assert find_weights("RN50", _file(tmp_path)).config == "RN50-quickgelu"
    mixed = find_weights("ViT-B-32", _file(tmp_path))
    assert mixed.config == "ViT-B-32"
    assert "the tags openai, laion400m_e31, laion400m_e32, metaclip_400m, metaclip_fullcc of ViT-B-32" in mixed.notes[0]
    assert find_weights("ViT-B-32", _file(tmp_path), "openai").config == "ViT-B-32-quickgelu"
    assert find_weights("ViT-B-16-SigLIP", _file(tmp_path)).config == "ViT-B-16-SigLIP"


def _file(folder: Path) -> str:
    (folder / "w.pt").write_bytes(b"")
    return str(folder / "w.pt")


def test_a_file_gives_the_features_of_its_tag(own_model: Path) -> None:
    by_tag = load_backbone("listed", "bright", "cpu", "fp32")
    by_file = load_backbone("listed", str(own_model), "cpu", "fp32")
    assert by_file.preprocess == by_tag.preprocess
    assert (by_file.preprocess["mean"], by_file.preprocess["interpolation"]) == ([0.0, 0.0, 0.0], "bilinear")
    assert by_file.model_config == by_tag.model_config == "listed-quickgelu"
    assert str(by_file.framing) == str(by_tag.framing)
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    assert (by_file.encode_images(pixels) == by_tag.encode_images(pixels)).all()
    assert by_tag.notes == ()
    (note,) = by_file.notes
    assert note.startswith(
        "w.pt is used with mean 0 0 0, std 1 1 1, interpolation bilinear, resize_mode squash, QuickGELU: those of all "
        "tags of listed; --pretrained-like TAG says otherwise"
    )


def test_a_run_of_a_tag_accepts_the_file_though_the_tags_disagree(
    own_model: Path, dataset: Dataset, tmp_path: Path
) -> None:
    with_second_tag()
    by_tag = load_backbone("listed", "bright", "cpu", "fp32")
    cache = tmp_path / "photos.h5"
    extract(dataset, by_tag, ExtractOptions(shots=(1,), seeds=(1,), workers=0), cache)
    fit_one(cache, tmp_path / "runs")
    classifier = read_classifier(find_run(tmp_path / "runs"))
    by_file = load_encoder(classifier, str(own_model), "cpu")
    assert by_file.preprocess == by_tag.preprocess
    assert by_file.model_config == by_tag.model_config
    undecided = load_backbone("listed", str(own_model), "cpu", "fp32")
    assert undecided.preprocess["mean"] == pytest.approx([0.48145466, 0.4578275, 0.40821073])
    assert "the tags bright, dark of listed have others; --pretrained-like TAG says otherwise" in undecided.notes[0]
    asked = load_backbone("listed", str(own_model), "cpu", "fp32", pretrained_like="bright")
    assert asked.preprocess == by_tag.preprocess


def fit_one(cache: Path, out: Path) -> None:
    fit(cache, [(1, 1)], [Recipe(epochs=1)], "cpu", out)


def test_a_config_next_to_the_file_is_read(own_model: Path) -> None:
    described = {"model_cfg": TINY, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "size": 99}}
    config = own_model.with_name("open_clip_config.json")
    config.write_text(json.dumps(described))
    backbone = load_backbone("listed", str(own_model), "cpu", "fp32")
    assert backbone.preprocess["mean"] == [0.1, 0.2, 0.3]
    assert backbone.preprocess["size"] == [32, 32]
    assert backbone.model_config == "listed"
    assert f"as {config} says" in backbone.notes[0]
    config.write_text(json.dumps({**described, "model_cfg": {**TINY, "embed_dim": 512}}))
    other = load_backbone("listed", str(own_model), "cpu", "fp32")
    assert other.preprocess["mean"] == [0.0, 0.0, 0.0]
    assert f"{config} describes another model than listed and is not used" in other.notes[0]
    for broken in ("{", "[1]", '{"preprocess_cfg": 3}', '{"model_cfg": {"vision_cfg": 3}}'):
        config.write_text(broken)
        with pytest.raises(WeightsError, match="could not read .*open_clip_config.json"):
            load_backbone("listed", str(own_model), "cpu", "fp32")


def test_pretrained_like_is_a_tag_and_for_files(own_model: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown tag of listed 'brigt'; did you mean 'bright'"):
        load_backbone("listed", str(own_model), pretrained_like="brigt")
    with pytest.raises(OptionError, match="--pretrained-like is for checkpoint files; bright is a tag"):
        load_backbone("listed", "bright", pretrained_like="bright")
    assert find_weights("listed", str(own_model), "ViT-B-32:openai").config == "listed-quickgelu"


def test_a_model_without_a_tag_takes_the_default_one() -> None:
    chosen = {
        name: find_weights(name, None).label
        for name in open_clip.list_models()
        if open_clip.list_pretrained_tags_by_model(name)
    }
    assert {chosen[name] for name in ("RN50", "ViT-B-32", "ViT-L-14")} == {"openai"}
    assert chosen["ViT-B-16-SigLIP"] == "webli"
    assert chosen["ViT-H-14"] == "dfn5b"
    assert chosen["coca_ViT-L-14"] == "laion2b_s13b_b90k"
    assert chosen["MobileCLIP-B"] == "datacompdr_lt"
    assert find_weights("glyph-clip", None).label == "bundled"
    assert find_weights("ViT-H-14", None).notes == (
        "ViT-H-14 is loaded with the tag dfn5b (--pretrained takes another: laion2b_s32b_b79k, metaclip_fullcc, "
        "metaclip_altogether)",
    )
    with pytest.raises(OptionError, match="open_clip has no weights for convnext_tiny; pass a checkpoint file"):
        find_weights("convnext_tiny", None)


def test_a_model_in_a_folder(own_model: Path, dataset: Dataset, tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "my model"
    folder.mkdir()
    described = {"model_cfg": TINY, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3]}}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    (folder / "open_clip_pytorch_model.bin").write_bytes(own_model.read_bytes())
    monkeypatch.chdir(tmp_path)
    backbone = load_backbone("local-dir:my model", None, "cpu", "fp32")
    assert (backbone.name, backbone.pretrained) == ("local-dir-my-model", "own")
    assert backbone.model_config == f"local-dir:{folder}"
    assert backbone.preprocess["mean"] == [0.1, 0.2, 0.3]
    cache = tmp_path / "photos.h5"
    extract(dataset, backbone, ExtractOptions(shots=(1,), seeds=(1,), workers=0), cache)
    fit_one(cache, tmp_path / "runs")
    classifier = read_classifier(find_run(tmp_path / "runs"))
    monkeypatch.chdir("/")
    assert load_encoder(classifier, None, "cpu").weights_sha256 == backbone.weights_sha256
    moved = folder.rename(tmp_path / "moved")
    with pytest.raises(WeightsError, match="my model has no open_clip_config.json; pass .*--pretrained FOLDER"):
        load_encoder(classifier, None, "cpu")
    for place in (moved, moved / "open_clip_pytorch_model.bin"):
        assert load_encoder(classifier, str(place), "cpu").preprocess == backbone.preprocess
    with pytest.raises(OptionError, match="brings its own weights and settings; leave out --pretrained"):
        load_backbone(f"local-dir:{moved}", "openai")
    (moved / "open_clip_pytorch_model.bin").unlink()
    with pytest.raises(WeightsError, match="could not load the weights"):
        load_backbone(f"local-dir:{moved}", None, "cpu")


def test_a_model_of_the_hub_has_a_plain_name() -> None:
    weights = find_weights("hf-hub:laion/CLIP-ViT-B-32", None)
    assert (weights.name, weights.label, weights.config) == (
        "hf-hub-laion-CLIP-ViT-B-32",
        "own",
        "hf-hub:laion/CLIP-ViT-B-32",
    )
    for name in ("hf-hub:", "hf-hub:../..", "hf-hub:///"):
        with pytest.raises(OptionError, match="names no model"):
            find_weights(name, None)
