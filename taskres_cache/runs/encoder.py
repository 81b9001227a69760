"""The encoder that a run's features come from, loaded again, and no other."""

from dataclasses import replace
from typing import Any

import torch

from taskres_cache.caches.provenance import UNKNOWN, Provenance, encoder_differences
from taskres_cache.encoders.backbone import Backbone
from taskres_cache.encoders.loading import has_tag, load_backbone
from taskres_cache.errors import OptionError, RunError
from taskres_cache.runs.run import Classifier
from taskres_cache.system.devices import has_fast_bfloat16

DIGITS_OF_DIGEST = 12  # enough to tell checkpoints apart, and what people compare by eye


def load_encoder(
    classifier: Classifier, pretrained: str | None = None, device: str = "auto", precision: str = "auto"
) -> Backbone:
    """Load the encoder that a run's features come from, and see that it is that one.

    Parameters
    ----------
    classifier : of the run.
    pretrained : path of the checkpoint, for runs that were made with a local file: they know its stem only.
    device : see `backbones.load_backbone`.
    precision : likewise; auto is what the run's features were computed in, where the device is good at it.

    Raises
    ------
    RunError : the run's features were imported, so that nobody knows their encoder; or the weights or the
        preprocessing are not those that the run was made with.
    OptionError : the run was made with a local checkpoint, whose path was not given.
    WeightsError : the weights cannot be downloaded, read, or do not fit the model.
    """
    source = classifier.provenance
    if source.weights_sha256 == UNKNOWN:
        raise RunError(
            f"the run was fitted on imported features of {source.dataset!r}, whose encoder is not known here, so that "
            "it cannot see images; in Python, TaskResClassifier.from_run classifies features of that encoder"
        )
    if pretrained is None and not has_tag(source.backbone, source.pretrained):
        raise OptionError(
            f"the run was made with weights called {source.pretrained!r}, which is no tag of {source.backbone}; "
            "pass --pretrained PATH of the file that the run was made with"
        )
    # A file does not say which activation it wants: the run does.
    name = source.backbone if pretrained is None else source.model_config
    backbone = load_backbone(name, pretrained or source.pretrained, device, precision)
    _refuse_other_encoder(source, backbone)
    return replace(backbone, precision=_adapted_precision(source, backbone)) if backbone.adapts else backbone


def _refuse_other_encoder(source: Provenance, backbone: Backbone) -> None:
    """Raise RunError when a backbone is not the one that a run's features come from."""
    loaded = {name: getattr(backbone, name) for name in ("weights_sha256", "model_config", "preprocess")}
    differing = encoder_differences(source, replace(source, **loaded))
    if not differing:
        return
    told = "; ".join(f"{name}: {_told(own, other)}" for name, (own, other) in differing.items())
    release = source.versions.get("open_clip_torch", UNKNOWN)
    remedy = (
        "pass --pretrained PATH of the file that the run was made with"
        if "weights_sha256" in differing
        else f"use the release of open_clip that the run was made with ({release})"
    )
    raise RunError(
        f"the weights {backbone.pretrained!r} of {backbone.name} are not the run's encoder: {told}; {remedy}"
    )


def _told(own: Any, other: Any) -> str:
    """Return how two values differ: of digests the beginning, of preprocessing the parts that do."""
    if isinstance(own, dict):
        names = [name for name in {**own, **other} if name != "orientation" and own.get(name) != other.get(name)]
        return ", ".join(f"{name}: {_told(own.get(name), other.get(name))}" for name in names)
    own, other = (value[:DIGITS_OF_DIGEST] if len(str(value)) == 64 else value for value in (own, other))
    return f"the run has {own}, these {other}"


def _adapted_precision(source: Provenance, backbone: Backbone) -> str:
    """Return what the run's features were computed in where the device is good at it, else what that is best at."""
    is_cuda = backbone.device.type == "cuda"
    fast_bfloat16 = is_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    good_at = {"fp32": True, "fp16": is_cuda, "bf16": fast_bfloat16 or has_fast_bfloat16(backbone.device)}
    return source.precision if good_at.get(source.precision, False) else backbone.precision
