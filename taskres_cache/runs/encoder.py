"""Load the encoder that a run's features come from, and refuse any other."""

from dataclasses import replace
from typing import Any

import torch

from taskres_cache.caches.provenance import UNKNOWN, Provenance, encoder_differences
from taskres_cache.encoders.backbone import Backbone
from taskres_cache.encoders.catalogue import has_own_config, has_tag
from taskres_cache.encoders.loading import load_backbone, load_recorded
from taskres_cache.errors import OptionError, RunError
from taskres_cache.runs.classifier import Classifier
from taskres_cache.system.devices import has_fast_bfloat16

DIGITS_OF_DIGEST = 12  # enough to tell checkpoints apart, few enough to compare by eye


def load_encoder(
    classifier: Classifier, pretrained: str | None = None, device: str = "auto", precision: str = "auto"
) -> Backbone:
    """Load the encoder that a run's features come from, and check that it is the same one.

    Parameters
    ----------
    classifier : Classifier
        The classifier of a run.
    pretrained : str, optional
        Path of the checkpoint, for runs made with a local file: they record only its stem. The run's config and
        preprocessing are used.
    device : str, optional
        See `load_backbone`.
    precision : str, optional
        See `load_backbone`. `auto` is the precision of the run's features if the device is fast in it, else the
        device's best.

    Returns
    -------
    Backbone
        The run's encoder.

    Raises
    ------
    RunError
        The run's features were imported, so that their encoder is unknown; or the weights or the preprocessing differ
        from those of the run.
    OptionError
        The run was made with a local checkpoint and `pretrained` is missing.
    WeightsError
        The weights could not be downloaded or read, or do not fit the model.
    """
    source = classifier.provenance
    if source.weights_sha256 == UNKNOWN:
        raise RunError(
            f"the run was fitted on imported features of {source.dataset!r}, whose encoder is unknown, so it cannot "
            "predict images; in Python, TaskResClassifier.from_run classifies features of that encoder"
        )
    if pretrained is not None:  # a file does not record its settings: the run does
        recorded = source.backbone, source.model_config, pretrained, source.preprocess
        backbone = load_recorded(*recorded, device, precision)
    elif has_own_config(source.model_config):
        backbone = load_backbone(source.model_config, None, device, precision)
    elif has_tag(source.backbone, source.pretrained):
        backbone = load_backbone(source.backbone, source.pretrained, device, precision)
    else:
        raise OptionError(
            f"the run was made with a local checkpoint {source.pretrained!r}, which is not a tag of {source.backbone}; "
            "pass that file: --pretrained PATH"
        )
    _refuse_other_encoder(source, backbone)
    return replace(backbone, precision=_adapted_precision(source, backbone)) if backbone.adapts else backbone


def _refuse_other_encoder(source: Provenance, backbone: Backbone) -> None:
    """Raise RunError if a backbone is not the one that a run's features come from."""
    loaded = {name: getattr(backbone, name) for name in ("weights_sha256", "model_config", "preprocess")}
    if has_own_config(source.model_config):  # a path, and the folder may have moved
        loaded["model_config"] = source.model_config
    differing = encoder_differences(source, replace(source, **loaded))
    if not differing:
        return
    listed = "; ".join(f"{name}: {_difference(own, other)}" for name, (own, other) in differing.items())
    release = source.versions.get("open_clip_torch", UNKNOWN)
    remedy = (
        "pass the file that the run was made with: --pretrained PATH"
        if "weights_sha256" in differing
        else f"install the release of open_clip that the run was made with ({release})"
    )
    raise RunError(
        f"the weights {backbone.pretrained!r} of {backbone.name} are not the run's encoder: {listed}; {remedy}"
    )


def _difference(own: Any, other: Any) -> str:
    """Return how two values differ: the first digits of digests, the differing parts of preprocessing."""
    if isinstance(own, dict):
        names = [name for name in {**own, **other} if name != "orientation" and own.get(name) != other.get(name)]
        return ", ".join(f"{name}: {_difference(own.get(name), other.get(name))}" for name in names)
    own, other = (value[:DIGITS_OF_DIGEST] if len(str(value)) == 64 else value for value in (own, other))
    return f"the run has {own}, these weights {other}"


def _adapted_precision(source: Provenance, backbone: Backbone) -> str:
    """Return the precision of the run's features if the device is fast in it, else the device's best."""
    is_cuda = backbone.device.type == "cuda"
    fast_bfloat16 = is_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    is_fast = {"fp32": True, "fp16": is_cuda, "bf16": fast_bfloat16 or has_fast_bfloat16(backbone.device)}
    return source.precision if is_fast.get(source.precision, False) else backbone.precision
