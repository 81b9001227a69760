"""Loading a frozen CLIP: the only module that knows open_clip."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from huggingface_hub import try_to_load_from_cache
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from torch import nn
from torchvision.transforms import Normalize, ToTensor

from taskres_cache.bundled import GLYPH_CLIP_CONFIG, GLYPH_CLIP_WEIGHTS
from taskres_cache.encoders.backbone import PRECISIONS, Backbone, Framing, Tokenizer
from taskres_cache.encoders.checkpoints import digest_of_weights, is_torchscript, torchscript_weights
from taskres_cache.encoders.streamlining import streamlined
from taskres_cache.errors import OptionError, UnknownNameError, WeightsError
from taskres_cache.system.devices import best_precision, choose_device

BUNDLED_TAG = "bundled"
HUB_FILES = (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME)  # what open_clip downloads for a tag that names no file

open_clip.add_model_config(GLYPH_CLIP_CONFIG)
logging.getLogger("open_clip").setLevel(logging.ERROR)


def load_backbone(name: str, pretrained: str, device: str = "auto", precision: str = "auto") -> Backbone:
    """Load a frozen CLIP with pretrained weights.

    Parameters
    ----------
    name : str
        An open_clip model, such as `RN50` or `ViT-B-32` (`ViT-B/32` works too), or the bundled `glyph-clip`.
    pretrained : str
        A tag of the model, such as `openai`, or the path of a local checkpoint: a .safetensors, .pt or .bin file of
        open_clip, or a TorchScript archive of OpenAI. The bundled model has the tag `bundled`.
    device : str, optional
        `auto`, `cpu`, `cuda`, `cuda:1` or `mps`. `auto` prefers CUDA, then MPS, then the CPU.
    precision : str, optional
        What the image tower computes in: `fp32`, `bf16`, `fp16` or `auto`. `auto` is fp16 on CUDA, bf16 on CPUs with
        bfloat16 instructions, else fp32. The text tower always computes in fp32.

    Returns
    -------
    Backbone
        The model on its device, in evaluation mode, with its preprocessing and the digest of its weights. Its
        features are float32 and not normalised.

    Raises
    ------
    UnknownNameError
        There is no model of that name, or the model has no such tag.
    WeightsError
        The weights could not be downloaded or read, or do not fit the model.
    OptionError
        The device or the precision is not available here.

    Examples
    --------
    The bundled model reads images of 32 x 32 pixels and needs no download.

    >>> from taskres_cache import load_backbone
    >>> backbone = load_backbone("glyph-clip", "bundled", device="cpu")
    >>> backbone.framing.size
    (32, 32)
    >>> backbone.encode_texts(["a photo of the digit zero.", "a photo of the digit one."]).embeddings.shape
    (2, 64)
    """
    name = name.replace("/", "-")
    target = choose_device(device)
    chosen = _choose_precision(precision, target)
    weights = _find_weights(name, pretrained)
    model, transform = _build(weights, pretrained)
    model = model.eval().requires_grad_(False)
    preprocess, sha256 = plain_preprocess(model), digest_of_weights(model)
    model.visual = streamlined(model.visual)  # type: ignore[arg-type]
    return Backbone(
        name=name,
        pretrained=weights.label,
        model_config=weights.config,
        weights_sha256=sha256,
        logit_scale=float(model.state_dict()["logit_scale"].exp()),
        preprocess=preprocess,
        precision=chosen,
        adapts=precision == "auto",
        device=target,
        model=model.to(target, memory_format=torch.channels_last),  # type: ignore[call-overload]
        framing=_framing(transform, preprocess["size"]),
        tokenizer=_tokenizer(weights.config),
    )


def has_tag(name: str, tag: str) -> bool:
    """Return True if a backbone has weights under that tag; the stem of a local file is no tag."""
    bundled = name == GLYPH_CLIP_CONFIG.stem and tag == BUNDLED_TAG
    return bundled or bool(open_clip.is_pretrained_cfg(name, tag))


def untrained_model(config_name: str, seed: int) -> tuple[nn.Module, Tokenizer]:
    """Return a model of an open_clip config with random weights drawn from `seed`, and its tokenizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with _quiet():
            model = open_clip.create_model(config_name, pretrained=None, pretrained_text=False)
    return model, _tokenizer(config_name)


def downloaded_weights() -> list[tuple[str, str]]:
    """Return the (name, tag) pairs of open_clip whose weights are in the Hugging Face cache; downloads nothing.

    Weights from other hosts are left out: an incomplete download of those looks like a complete one.
    """
    found = []
    for name, tag in open_clip.list_pretrained():
        repository, file = os.path.split(open_clip.get_pretrained_cfg(name, tag).get("hf_hub", ""))
        files = (file, str(Path(file).with_suffix(".safetensors"))) if file else HUB_FILES
        if repository and any(isinstance(try_to_load_from_cache(repository, one), str) for one in files):
            found.append((name, tag))
    return [pair for pair in found if (pair[0].removesuffix("-quickgelu"), pair[1]) not in set(found) - {pair}]


def plain_preprocess(model: nn.Module) -> dict[str, Any]:
    """Return the model's preprocessing as plain JSON values."""
    preprocess = open_clip.get_model_preprocess_cfg(model)
    return {key: list(value) if isinstance(value, tuple | list) else value for key, value in sorted(preprocess.items())}


@dataclass(frozen=True)
class _Weights:
    """Which weights to load: the label to store, the open_clip config to build, and the file if they are local."""

    label: str
    config: str
    file: Path | None


def _find_weights(name: str, pretrained: str) -> _Weights:
    """Return the weights that a name and a tag or path stand for; nothing is read or downloaded yet."""
    if name not in open_clip.list_models():
        raise UnknownNameError("backbone", name, open_clip.list_models(), "pass an open_clip model or glyph-clip")
    if name == GLYPH_CLIP_CONFIG.stem and pretrained == BUNDLED_TAG:
        return _Weights(BUNDLED_TAG, name, GLYPH_CLIP_WEIGHTS)
    if open_clip.is_pretrained_cfg(name, pretrained):
        return _Weights(pretrained, _config_for_tag(name, pretrained), None)
    file = Path(pretrained)
    if file.is_file():
        return _Weights(file.stem, _config_for_file(name, file), file)
    if file.suffix or len(file.parts) > 1:
        raise WeightsError(f"checkpoint {pretrained} does not exist; pass the path of a local file or a tag of {name}")
    known = [BUNDLED_TAG] if name == GLYPH_CLIP_CONFIG.stem else open_clip.list_pretrained_tags_by_model(name)
    remedy = f"tags of {name}: {', '.join(known) or 'none'}; or pass the path of a local checkpoint file"
    raise UnknownNameError(f"tag of {name}", pretrained, known, remedy)


def _config_for_tag(name: str, tag: str) -> str:
    """Return the config that a tag's weights were trained with.

    OpenAI's and some other weights need QuickGELU. If the config does not have it, open_clip only warns and computes
    with the wrong activation; each such model has a sibling config with the right one.
    """
    needs_quick_gelu = open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False)
    return _with_quick_gelu(name) if needs_quick_gelu else name


def _config_for_file(name: str, file: Path) -> str:
    """Return the config of a local file: OpenAI's TorchScript archives need QuickGELU, other files follow the name."""
    return _with_quick_gelu(name) if is_torchscript(file) else name


def _with_quick_gelu(name: str) -> str:
    if (open_clip.get_model_config(name) or {}).get("quick_gelu", False):
        return name
    sibling = f"{name}-quickgelu"
    if sibling not in open_clip.list_models():
        raise WeightsError(f"these weights need QuickGELU, but open_clip has no config {sibling}; choose another tag")
    return sibling


def _build(weights: _Weights, pretrained: str) -> tuple[nn.Module, Any]:
    """Return the model with its weights, in fp32 on the CPU, and its preprocessing."""
    source = str(weights.file) if weights.file else pretrained
    try:
        with _quiet():
            if weights.file is not None and is_torchscript(weights.file):
                return _build_from_torchscript(weights.config, weights.file)
            model, transform = open_clip.create_model_from_pretrained(weights.config, source, precision="fp32")
            return model, transform
    except Exception as error:  # open_clip, torch, safetensors and the hub raise anything from OSError to KeyError
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if weights.file is not None:
            raise WeightsError(f"checkpoint {weights.file} does not load into {weights.config}: {reason}") from error
        raise WeightsError(
            f"could not load the weights {pretrained!r} of {weights.config} ({reason}); on a machine without network "
            "access pass a local checkpoint file: --pretrained PATH"
        ) from error


def _build_from_torchscript(config: str, file: Path) -> tuple[nn.Module, Any]:
    state = torchscript_weights(file)
    model, _, transform = open_clip.create_model_and_transforms(config, pretrained=None)
    model.load_state_dict(state, strict=True)
    return model, transform


def _framing(transform: Any, size: list[int] | int) -> Framing:
    """Return open_clip's preprocessing up to the conversion to numbers, which `encode_images` does on the device."""
    steps = list(transform.transforms)
    numbers = next((place for place, step in enumerate(steps) if isinstance(step, ToTensor)), len(steps))
    if [type(step) for step in steps[numbers + 1 :]] != [Normalize]:
        raise WeightsError(f"this model's preprocessing is not supported: {transform}; install open_clip 3")
    height, width = (size, size) if isinstance(size, int) else size
    return Framing(tuple(steps[:numbers]), (height, width))


def _tokenizer(config: str) -> Tokenizer:
    """Return the tokenizer of an open_clip config; raises WeightsError if it needs a package that is not installed."""
    try:
        return open_clip.get_tokenizer(config)  # type: ignore[no-any-return]
    except ImportError as error:  # open_clip requires only the packages that its own tokenizers need
        reason = " ".join(str(error).split())
        raise WeightsError(
            f"the tokenizer of {config} needs a package that is not installed ({reason}); pip install transformers"
        ) from error


def _choose_precision(precision: str, device: torch.device) -> str:
    if precision == "auto":
        return best_precision(device)
    if precision not in PRECISIONS:
        raise OptionError(f"precision must be auto, {', '.join(PRECISIONS)}, got {precision!r}")
    return precision


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence open_clip's log lines and warnings: what matters in them is decided above and raised as an error."""
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
