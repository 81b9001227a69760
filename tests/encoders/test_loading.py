"""Loading backbones: open_clip models with random weights, the bundled model, names, files and tags."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file

from taskres_cache.encoders.backbone import Backbone
from taskres_cache.encoders.catalogue import BUNDLED_TAG
from taskres_cache.encoders.checkpoints import digest_of_weights
from taskres_cache.encoders.loading import load_backbone, untrained_model
from taskres_cache.errors import OptionError, UnknownNameError, WeightsError
from taskres_cache.system.devices import has_fast_bfloat16

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module", autouse=True)
def tiny_configs(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Three small configs in open_clip's registry: plain, with QuickGELU, and with a biased text projection."""
    folder = tmp_path_factory.mktemp("configs")
    (folder / "tiny.json").write_text(json.dumps(TINY))
    (folder / "tiny-quickgelu.json").write_text(json.dumps({**TINY, "quick_gelu": True}))
    biased = {**TINY, "custom_text": True, "text_cfg": {**TINY["text_cfg"], "proj_bias": True}}
    (folder / "tiny-biased.json").write_text(json.dumps(biased))
    open_clip.add_model_config(folder)


def random_pixels(count: int, size: int) -> torch.Tensor:
    shape = (count, size, size, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def tiny_file(tmp_path: Path) -> Path:
    model, _ = untrained_model("tiny", seed=1)
    file = tmp_path / "my-weights.safetensors"
    save_file(model.state_dict(), file)
    return file


def test_local_checkpoint(tiny_file: Path) -> None:
    backbone = load_backbone("tiny", str(tiny_file), device="cpu")
    assert (backbone.name, backbone.pretrained, backbone.model_config) == ("tiny", "my-weights", "tiny")
    assert (backbone.precision, backbone.adapts) == ("bf16" if has_fast_bfloat16(backbone.device) else "fp32", True)
    assert backbone.logit_scale == pytest.approx(1 / 0.07, rel=1e-6)
    assert backbone.preprocess["size"] == [32, 32]
    assert not backbone.model.training


def test_features_equal_open_clips_and_are_not_normalised(tiny_file: Path) -> None:
    backbone = load_backbone("tiny", str(tiny_file), device="cpu", precision="fp32")
    model, _, preprocess = open_clip.create_model_and_transforms("tiny", pretrained=str(tiny_file))
    model.eval()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8))
    prompts = ["a photo of a cat.", "art of the dog."]
    with torch.no_grad():
        images = model.encode_image(preprocess(image)[None]).numpy()
        texts = model.encode_text(open_clip.get_tokenizer("tiny")(prompts)).numpy()
    framed = np.array(backbone.framing(image))[None]
    assert framed.shape == (1, *backbone.framing.size, 3)
    assert np.allclose(backbone.encode_images(backbone.on_device(framed)), images, atol=1e-6)
    features = backbone.encode_texts(prompts)
    assert np.allclose(features.embeddings, texts, atol=1e-5)
    assert np.abs(np.linalg.norm(texts, axis=1) - 1).min() > 0.01
    assert features.pre_projection is not None
    assert backbone.projection is not None
    assert features.pre_projection.shape == (2, 32)
    assert np.array_equal(features.pre_projection @ backbone.projection, features.embeddings)
    assert backbone.model.text_projection is not None


def test_a_projection_with_bias_is_not_linear(tmp_path: Path) -> None:
    model, _ = untrained_model("tiny-biased", seed=1)
    torch.nn.init.ones_(model.text.text_projection.bias)
    torch.save(model.state_dict(), tmp_path / "biased.pt")
    backbone = load_backbone("tiny-biased", str(tmp_path / "biased.pt"), device="cpu")
    features = backbone.encode_texts(["a cat"])
    assert backbone.projection is None
    assert features.pre_projection is None
    assert features.embeddings.shape == (1, 16)


def test_digest_depends_on_the_weights_and_not_on_the_container(tmp_path: Path, tiny_file: Path) -> None:
    model, _ = untrained_model("tiny", seed=1)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "other-container.pt")
    first = load_backbone("tiny", str(tiny_file), device="cpu")
    second = load_backbone("tiny", str(tmp_path / "other-container.pt"), device="cpu")
    assert first.weights_sha256 == second.weights_sha256 == digest_of_weights(model)
    assert digest_of_weights(untrained_model("tiny", seed=2)[0]) != first.weights_sha256


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_openai_archives_get_quickgelu(tmp_path: Path) -> None:
    model, _ = untrained_model("tiny-quickgelu", seed=3)
    torch.jit.script(model.eval()).save(str(tmp_path / "RN.pt"))
    backbone = load_backbone("tiny", str(tmp_path / "RN.pt"), device="cpu", precision="fp32")
    assert backbone.model_config == "tiny-quickgelu"
    assert backbone.weights_sha256 == digest_of_weights(model)
    assert "QuickGELU: OpenAI's, since it is a TorchScript archive; --pretrained-like TAG" in backbone.notes[0]
    model.input_resolution = torch.tensor(32)  # as OpenAI's archives have it
    torch.jit.script(model.eval()).save(str(tmp_path / "RN.pt"))
    assert load_backbone("tiny", str(tmp_path / "RN.pt"), device="cpu").notes == ()
    pixels = random_pixels(2, 32)
    mean, std = (torch.tensor(backbone.preprocess[name])[:, None, None] for name in ("mean", "std"))
    with torch.no_grad():
        expected = model.encode_image((pixels.permute(0, 3, 1, 2) / 255 - mean) / std).numpy()
    assert np.allclose(backbone.encode_images(pixels), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "tag", "config"),
    [
        ("RN50", "openai", "RN50-quickgelu"),
        ("RN50-quickgelu", "openai", "RN50-quickgelu"),
        ("ViT-B-32", "openai", "ViT-B-32-quickgelu"),
        ("ViT-B-16", "openai", "ViT-B-16-quickgelu"),
        ("RN101", "openai", "RN101-quickgelu"),
        ("RN101", "yfcc15m", "RN101-quickgelu"),
        ("RN50x16", "openai", "RN50x16-quickgelu"),
        ("ViT-B-32", "laion2b_s34b_b79k", "ViT-B-32"),
    ],
)
def test_tags_get_the_activation_they_were_trained_with(
    monkeypatch: pytest.MonkeyPatch, name: str, tag: str, config: str
) -> None:
    """Only the download is replaced, by a model with random weights."""
    requested = []

    create_model = open_clip.create_model

    def create(config_name: str, pretrained: str, **_: object) -> torch.nn.Module:
        requested.append((config_name, pretrained))
        return create_model("tiny", pretrained=None)

    monkeypatch.setattr(open_clip, "create_model", create)
    backbone = load_backbone(name, tag, device="cpu")
    assert requested == [(config, tag)]
    assert (backbone.name, backbone.pretrained, backbone.model_config) == (name, tag, config)


def test_rn50_with_random_weights(tmp_path: Path) -> None:
    model, _ = untrained_model("RN50", seed=0)
    torch.save(model.state_dict(), tmp_path / "random.pt")
    backbone = load_backbone("RN50", str(tmp_path / "random.pt"), device="cpu")
    assert backbone.encode_images(random_pixels(1, 224)).shape == (1, 1024)
    features = backbone.encode_texts(["a photo of a cat."])
    assert features.pre_projection is not None
    assert (features.pre_projection.shape, features.embeddings.shape) == ((1, 512), (1, 1024))


def test_unknown_names_offer_near_matches() -> None:
    with pytest.raises(UnknownNameError, match="unknown backbone 'RN5O'; did you mean .*'RN50'"):
        load_backbone("RN5O", "openai")
    with pytest.raises(UnknownNameError, match="unknown tag of RN50 'openia'; did you mean 'openai'"):
        load_backbone("RN50", "openia")
    with pytest.raises(UnknownNameError, match="tags of glyph-clip: bundled; or pass the path"):
        load_backbone("glyph-clip", "openai")
    with pytest.raises(WeightsError, match="checkpoint weights/none.pt does not exist"):
        load_backbone("RN50", "weights/none.pt")


def test_a_failed_download_suggests_a_local_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("open_clip.factory.download_pretrained", offline)
    with pytest.raises(WeightsError, match="could not load the weights .*no route to host.*--pretrained PATH"):
        load_backbone("RN50", "openai")


def test_weights_that_do_not_fit_are_refused(tmp_path: Path, tiny_file: Path) -> None:
    with pytest.raises(WeightsError, match="does not load into glyph-clip"):
        load_backbone("glyph-clip", str(tiny_file))
    state = untrained_model("tiny", seed=1)[0].state_dict()
    del state["visual.proj"]
    save_file(state, tmp_path / "incomplete.safetensors")
    with pytest.raises(WeightsError, match=r"does not load into tiny: .*Missing key.*visual\.proj"):
        load_backbone("tiny", str(tmp_path / "incomplete.safetensors"))
    (tmp_path / "noise.pt").write_bytes(b"noise" * 100)
    with pytest.raises(WeightsError, match="does not load into tiny"):
        load_backbone("tiny", str(tmp_path / "noise.pt"))


def test_unknown_devices_and_precisions_are_refused(tiny_file: Path) -> None:
    with pytest.raises(OptionError, match="device 'tpu' cannot be used here"):
        load_backbone("tiny", str(tiny_file), device="tpu")
    with pytest.raises(OptionError, match="precision must be auto, fp32, bf16, fp16, got 'int8'"):
        load_backbone("tiny", str(tiny_file), device="cpu", precision="int8")


def test_bfloat16_is_close_to_float32(glyph_clip: Backbone) -> None:
    low = load_backbone("glyph-clip", "bundled", device="cpu", precision="bf16")
    pixels = random_pixels(4, 32)
    exact, rough = glyph_clip.encode_images(pixels), low.encode_images(pixels)
    cosines = (exact * rough).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rough, axis=1)
    assert rough.dtype == np.float32
    assert not np.array_equal(exact, rough)
    assert cosines.min() > 0.999


def test_an_untrained_model_does_not_change_the_global_generator() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    untrained_model("tiny", seed=9)
    assert torch.equal(torch.rand(3), expected)


def test_the_bundled_model_needs_no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda *_, **__: pytest.fail("tried to download"))
    assert load_backbone("glyph-clip", BUNDLED_TAG, device="cpu").pretrained == "bundled"


def test_a_missing_tokenizer_package_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(config: str) -> None:
        raise ImportError("Please install transformers")

    monkeypatch.setattr("taskres_cache.encoders.loading.open_clip.get_tokenizer", missing)
    with pytest.raises(WeightsError, match="a package that is not installed .Please install transformers.; pip"):
        load_backbone("glyph-clip", "bundled", device="cpu", precision="fp32")


def test_a_tokenizer_that_cannot_be_downloaded_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(config: str) -> None:
        raise OSError("We couldn't connect to the hub\nand found no file")

    monkeypatch.setattr("taskres_cache.encoders.loading.open_clip.get_tokenizer", unreachable)
    with pytest.raises(WeightsError) as error:
        load_backbone("glyph-clip", "bundled", device="cpu", precision="fp32")
    assert str(error.value) == (
        "could not load the tokenizer of glyph-clip (We couldn't connect to the hub and found no file); it comes from "
        "the Hugging Face hub: run once with network access, or copy the hub's cache from another machine"
    )


def test_an_unreachable_hub_is_not_tried_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub and transformers retry every file several times, which took a minute."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("taskres_cache.encoders.hub._is_reachable", lambda: False)
    seen = []

    def download(*_: object, **__: object) -> None:
        seen.append(constants.HF_HUB_OFFLINE)
        raise OSError("offline")

    monkeypatch.setattr("open_clip.factory.download_pretrained", download)
    with pytest.raises(WeightsError, match="could not load the weights 'openai' of RN50-quickgelu .*offline"):
        load_backbone("RN50", "openai")
    assert seen == [True]
    assert not constants.HF_HUB_OFFLINE
    monkeypatch.setattr("taskres_cache.encoders.hub._is_reachable", lambda: pytest.fail("asked the hub"))
    load_backbone("glyph-clip", "bundled", device="cpu")
