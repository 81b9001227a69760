"""Un-normalised features from every family of open_clip's models, as small models with random weights.

Axes: B images or prompts, D embedding.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch

from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.hdf5 import write_cache
from taskres_cache.datasets import Dataset
from taskres_cache.encoders.backbone import Backbone
from taskres_cache.encoders.loading import load_backbone, untrained_model
from taskres_cache.errors import CacheMismatchError, WeightsError
from taskres_cache.extraction.extract import ExtractOptions, extract

PROMPTS = ["a photo of a cat.", "art of the dog."]
OPTIONS = ExtractOptions(shots=(1,), seeds=(1,), workers=0)

TEXT = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VISION = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
TIMM = {"timm_model_name": "vit_tiny_patch16_224", "timm_model_pretrained": False, "image_size": 224}
FAMILIES = {
    "family-clip": {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT},
    "family-resnet": {"embed_dim": 16, "vision_cfg": {**VISION, "layers": [1, 1, 1, 1], "width": 8}, "text_cfg": TEXT},
    "family-coca": {  # coca_ViT-B-32, smaller
        "embed_dim": 16,
        "vision_cfg": {**VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
        "custom_text": True,
    },
    "family-mobileclip": {  # MobileCLIP-B, EVA02 and PE-Core: a timm tower and a text tower of open_clip
        "embed_dim": 16,
        "vision_cfg": {**TIMM, "timm_pool": "token", "timm_proj": None},
        "text_cfg": {**TEXT, "no_causal_mask": True},
        "custom_text": True,
    },
    "family-sigmoid": {  # ViT-B-16-SigLIP: no image projection, a text projection with bias, the last token
        "embed_dim": 192,
        "init_logit_bias": -10,
        "vision_cfg": {**TIMM, "timm_pool": "avg", "timm_proj": "none"},
        "text_cfg": {
            **TEXT,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
        },
        "custom_text": True,
    },
    "family-vitamin": {  # ViTamin and ConvNeXt: a linear projection after a timm tower
        "embed_dim": 16,
        "vision_cfg": {**TIMM, "timm_pool": "", "timm_proj": "linear"},
        "text_cfg": TEXT,
    },
    "family-no-projection": {  # ViT-SO400M-16-SigLIP-i18n-256
        "embed_dim": 32,
        "vision_cfg": VISION,
        "text_cfg": {**TEXT, "proj_type": "none"},
        "custom_text": True,
    },
}


@pytest.fixture(scope="module", autouse=True)
def configs(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("families")
    for name, config in FAMILIES.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


@pytest.fixture
def load(tmp_path: Path):
    def loaded(name: str) -> tuple[Backbone, torch.nn.Module]:
        model, _ = untrained_model(name, seed=1)
        torch.save(model.state_dict(), tmp_path / f"{name}.pt")
        return load_backbone(name, str(tmp_path / f"{name}.pt"), "cpu", "fp32"), model.eval()

    return loaded


@pytest.mark.parametrize("name", FAMILIES)
def test_features_of_every_family_are_not_normalised(name: str, load) -> None:
    backbone, model = load(name)
    size = backbone.framing.size
    pixels = torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(backbone.preprocess[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        images = model.encode_image((pixels.permute(0, 3, 1, 2) / 255 - mean) / std, normalize=False).numpy()
        texts = model.encode_text(backbone.tokenizer(PROMPTS), normalize=False).numpy()
    encoded, inputs = backbone.encode_images_with_inputs(pixels)
    assert np.array_equal(encoded, backbone.encode_images(pixels))
    assert (inputs is None) == (backbone.image_projection is None) == (name == "family-sigmoid")
    if inputs is not None:
        weights, bias = backbone.image_projection
        assert np.allclose(inputs @ weights + (0 if bias is None else bias), encoded, atol=1e-5)
        assert (bias is None) == (name not in ("family-resnet", "family-mobileclip"))
        assert inputs.shape == (2, {"family-resnet": 256}.get(name, weights.shape[0]))
    features = backbone.encode_texts(PROMPTS)
    assert np.allclose(backbone.encode_images(pixels), images, atol=1e-5)
    assert np.allclose(features.embeddings, texts, atol=1e-5)
    for raw in (images, texts):
        assert np.abs(np.linalg.norm(raw, axis=1) - 1).max() > 0.01
    assert (features.pre_projection is None) == (name in ("family-sigmoid", "family-no-projection"))
    if features.pre_projection is not None:
        assert np.array_equal(features.pre_projection @ backbone.projection, features.embeddings)
    backbone.refuse_text_not_raw(PROMPTS)


def test_towers_that_normalise_anyway_are_refused(load, dataset: Dataset, tmp_path: Path, monkeypatch) -> None:
    backbone, _ = load("family-clip")
    raw_text, raw_images = backbone.model.encode_text, backbone.model.encode_image
    normalised = torch.nn.functional.normalize
    monkeypatch.setattr(backbone.model, "encode_image", lambda images, normalize: normalised(raw_images(images)))
    with pytest.raises(WeightsError, match="family-clip returns image features of length 1, expected un-normalised"):
        extract(dataset, backbone, OPTIONS, tmp_path / "photos.h5")
    monkeypatch.setattr(backbone.model, "encode_text", lambda tokens, normalize: normalised(raw_text(tokens)))
    with pytest.raises(WeightsError, match="text features of family-clip are not its pre-projection features times"):
        backbone.refuse_text_not_raw(PROMPTS)


def test_a_cache_of_normalised_features_is_not_extended(load, dataset: Dataset, tmp_path: Path) -> None:
    """Earlier versions stored CoCa's features normalised."""
    backbone, _ = load("family-coca")
    extract(dataset, backbone, OPTIONS, tmp_path / "photos.h5")
    raw = FeatureCache(tmp_path / "photos.h5").contents()
    normalised = raw.image_features[:] / np.linalg.norm(raw.image_features[:], axis=1, keepdims=True)
    write_cache(tmp_path / "photos.h5", replace(raw, image_features=normalised))
    with pytest.raises(CacheMismatchError, match="image features: cache has 'normalised', expected 'un-normalised'"):
        extract(dataset, backbone, OPTIONS, tmp_path / "photos.h5")
