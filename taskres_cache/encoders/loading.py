"""Loading a frozen CLIP; `catalogue` says which weights a name stands for."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import nn
from torchvision.transforms import Normalize, ToTensor

from taskres_cache.encoders.backbone import PRECISIONS, Backbone, Framing, Tokenizer
from taskres_cache.encoders.catalogue import Weights, find_weights, recorded_weights
from taskres_cache.encoders.checkpoints import digest_of_weights, is_torchscript, torchscript_weights
from taskres_cache.encoders.hub import offline_if_unreachable
from taskres_cache.encoders.projecting import ProjectedTower, split_projection
from taskres_cache.encoders.streamlining import streamlined
from taskres_cache.errors import OptionError, WeightsError
from taskres_cache.system.devices import best_precision, choose_device

logging.getLogger("open_clip").setLevel(logging.ERROR)


def load_backbone(
    name: str,
    pretrained: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    pretrained_like: str | None = None,
) -> Backbone:
    """Load a frozen CLIP with pretrained weights.

    Parameters
    ----------
    name : str
        An open_clip model, such as `RN50` or `ViT-B-32` (`ViT-B/32` works too), `hf-hub:OWNER/MODEL`,
        `local-dir:FOLDER`, or the bundled `glyph-clip`.
    pretrained : str, optional
        A tag of the model, such as `openai`, or the path of a local checkpoint: a .safetensors, .pt or .bin file of
        open_clip, or a TorchScript archive of OpenAI. The bundled model has the tag `bundled`. Defaults to `openai` if
        the model has it, else to the last of its general tags.
    device : str, optional
        `auto`, `cpu`, `cuda`, `cuda:1` or `mps`. `auto` prefers CUDA, then MPS, then the CPU.
    precision : str, optional
        What the image tower computes in: `fp32`, `bf16`, `fp16` or `auto`. `auto` is fp16 on CUDA, bf16 on CPUs with
        bfloat16 instructions, else fp32. The text tower always computes in fp32.
    pretrained_like : str, optional
        For a checkpoint file: the tag of the model, or MODEL:TAG, with whose preprocessing and activation it was
        trained. Defaults to `open_clip_config.json` next to the file, else to what all tags of the model agree in.

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
    return _loaded(find_weights(name, pretrained, pretrained_like), device, precision)


def load_recorded(
    name: str, config: str, file: str, preprocess: Mapping[str, Any], device: str = "auto", precision: str = "auto"
) -> Backbone:
    """Load a checkpoint with the config and the preprocessing that a cache or run has recorded for its weights.

    Parameters
    ----------
    name, config : str
        The backbone and its open_clip config.
    file : str
        The checkpoint file; a tag; or, for a model from a folder or the hub, a folder with its `open_clip_config.json`.
    preprocess : mapping of str to object
        The recorded preprocessing.
    device, precision : str, optional
        See `load_backbone`.
    """
    return _loaded(recorded_weights(name, config, file, preprocess), device, precision)


def _loaded(weights: Weights, device: str, precision: str) -> Backbone:
    """Return the backbone of some weights on a device."""
    target = choose_device(device)
    chosen = _choose_precision(precision, target)
    with offline_if_unreachable() if _needs_hub(weights) else nullcontext():
        model, tokenizer = _build(weights).eval().requires_grad_(False), _tokenizer(weights.config)
    preprocess, framing, sha256 = plain_preprocess(model), _framing(model), digest_of_weights(model)
    model.visual = _streamlined_in_parts(model.visual)  # type: ignore[arg-type]
    return Backbone(
        name=weights.name,
        pretrained=weights.label,
        model_config=weights.config,
        weights_sha256=sha256,
        logit_scale=float(model.state_dict()["logit_scale"].exp()),
        preprocess=preprocess,
        precision=chosen,
        adapts=precision == "auto",
        device=target,
        model=model.to(target, memory_format=torch.channels_last),  # type: ignore[call-overload]
        framing=framing,
        tokenizer=tokenizer,
        notes=weights.notes,
    )


def _streamlined_in_parts(visual: nn.Module) -> nn.Module:
    """Return a faster tower that can tell the input of its last linear map, if it has one."""
    split = split_projection(visual)
    if not isinstance(split, ProjectedTower):
        return streamlined(split)
    split.tower = streamlined(split.tower)
    return split.eval()


def untrained_model(config_name: str, seed: int) -> tuple[nn.Module, Tokenizer]:
    """Return a model of an open_clip config with random weights drawn from `seed`, and its tokenizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with _quiet():
            model = open_clip.create_model(config_name, pretrained=None, pretrained_text=False)
    return model, _tokenizer(config_name)


def model_without_values(config_name: str, **replaced: Any) -> nn.Module:
    """Return a model of an open_clip config that has shapes but no values; `replaced` are parts of the config."""
    with torch.device("meta"), _quiet():
        model: nn.Module = open_clip.create_model(config_name, None, device="meta", pretrained_text=False, **replaced)
    return model


def plain_preprocess(model: nn.Module) -> dict[str, Any]:
    """Return the model's preprocessing as plain JSON values."""
    preprocess = open_clip.get_model_preprocess_cfg(model)
    return {key: list(value) if isinstance(value, tuple | list) else value for key, value in sorted(preprocess.items())}


def _build(weights: Weights) -> nn.Module:
    """Return the model with its weights, in fp32 on the CPU, and with its preprocessing."""
    try:
        with _quiet():
            if weights.is_file and is_torchscript(Path(str(weights.source))):
                return _build_from_torchscript(weights)
            model: nn.Module = open_clip.create_model(
                weights.config,
                weights.source,
                precision="fp32",
                require_pretrained=True,
                force_preprocess_cfg=weights.preprocess,
            )
            return model
    except Exception as error:  # open_clip, torch, safetensors and the hub raise anything from OSError to KeyError
        reason = _one_line(error)
        if weights.is_file:
            raise WeightsError(f"checkpoint {weights.source} does not load into {weights.config}: {reason}") from error
        raise WeightsError(
            f"could not load the weights {weights.source or weights.label!r} of {weights.config} ({reason}); on a "
            "machine without network access pass a local checkpoint file: --pretrained PATH"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _needs_hub(weights: Weights) -> bool:
    """Return True if weights, text tower or tokenizer come from the hub or its cache."""
    if not weights.is_file:
        return True
    text: dict[str, Any] = (open_clip.get_model_config(weights.config) or {}).get("text_cfg", {})
    return any(text.get(name) for name in ("hf_model_name", "hf_tokenizer_name"))


def _build_from_torchscript(weights: Weights) -> nn.Module:
    state = torchscript_weights(Path(str(weights.source)))
    model: nn.Module = open_clip.create_model(weights.config, force_preprocess_cfg=weights.preprocess)
    model.load_state_dict(state, strict=True)
    return model


def _framing(model: nn.Module) -> Framing:
    """Return open_clip's preprocessing up to the conversion to numbers, which `encode_images` does on the device."""
    preprocess = PreprocessCfg(**open_clip.get_model_preprocess_cfg(model))
    transform, size = image_transform_v2(preprocess, is_train=False), preprocess.size
    steps = list(transform.transforms)
    numbers = next((place for place, step in enumerate(steps) if isinstance(step, ToTensor)), len(steps))
    if [type(step) for step in steps[numbers + 1 :]] != [Normalize]:
        raise WeightsError(f"this model's preprocessing is not supported: {transform}; install open_clip 3")
    height, width = (size, size) if isinstance(size, int) else size
    return Framing(tuple(steps[:numbers]), (height, width))


def _tokenizer(config: str) -> Tokenizer:
    """Return the tokenizer of an open_clip config.

    Raises
    ------
    WeightsError
        It needs a package that is not installed, or a download that failed.
    """
    try:
        return open_clip.get_tokenizer(config)  # type: ignore[no-any-return]
    except ImportError as error:  # open_clip requires only the packages that its own tokenizers need
        reason = " ".join(str(error).split())
        raise WeightsError(
            f"the tokenizer of {config} needs a package that is not installed ({reason}); pip install transformers"
        ) from error
    except Exception as error:  # the hub, transformers and tokenizers raise anything from OSError to KeyError
        raise WeightsError(
            f"could not load the tokenizer of {config} ({_one_line(error)}); it comes from the Hugging Face hub: run "
            "once with network access, or copy the hub's cache from another machine"
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
