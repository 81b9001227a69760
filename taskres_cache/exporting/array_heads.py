"""Every kind of head in NumPy: the formula that an export's metadata states, computed from the file alone.

`heads/` computes the same in torch; an export is compared with the run by both.

Axes: N inputs, C classes, D embedding, M remembered images, W size before the projection.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray]
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class ArrayHead:
    """One kind of head for readers of an exported file.

    Parameters
    ----------
    logits : callable
        Logits (N, C) of inputs (N, D or W), tensors and settings, in float64.
    formula : str
        The same in words.
    lines : tuple of str
        The same as lines of torch, with `head` the tensors and `x` the inputs.
    """

    logits: Callable[[np.ndarray, Arrays, Settings], np.ndarray]
    formula: str
    lines: tuple[str, ...]


def unit(features: np.ndarray) -> np.ndarray:
    """Return features (N, D) divided by their length, in float64."""
    exact = features.astype(np.float64)
    directions: np.ndarray = exact / np.linalg.norm(exact, axis=1, keepdims=True)
    return directions


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities (N, C) of logits (N, C)."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: np.ndarray = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities


def _cosine(inputs: np.ndarray, tensors: Arrays, settings: Settings) -> np.ndarray:
    logits: np.ndarray = settings["logit_scale"] * unit(inputs + tensors.get("image_shift", 0.0)) @ tensors["weights"].T
    return logits


def _linear(inputs: np.ndarray, tensors: Arrays, settings: Settings) -> np.ndarray:
    features = unit(inputs) if settings["features"] == "normalised" else inputs.astype(np.float64)
    logits: np.ndarray = features @ tensors["weights"].T + tensors["bias"]
    return logits


def _memory(inputs: np.ndarray, tensors: Arrays, settings: Settings) -> np.ndarray:
    directions = unit(inputs)
    compared = unit(directions[:, tensors["channels"]]) if "channels" in tensors else directions
    similar = np.exp(-settings["beta"] * (1 - compared @ tensors["keys"].T))  # (N, M)
    zero_shot = settings["logit_scale"] * directions @ tensors["text"].T
    logits: np.ndarray = zero_shot + settings["alpha"] * similar @ tensors["values"]
    return logits


def _adapter(inputs: np.ndarray, tensors: Arrays, settings: Settings) -> np.ndarray:
    features = unit(inputs) if settings["features"] == "normalised" else inputs.astype(np.float64)
    hidden = np.maximum(features @ tensors["down"].T, 0)
    changed = settings["ratio"] * np.maximum(hidden @ tensors["up"].T, 0) + (1 - settings["ratio"]) * features
    logits: np.ndarray = settings["logit_scale"] * unit(changed) @ unit(tensors["text"]).T
    return logits


def _projection(inputs: np.ndarray, tensors: Arrays, settings: Settings) -> np.ndarray:
    features = inputs.astype(np.float64) @ tensors["projection"] + tensors.get("bias", 0.0)
    logits: np.ndarray = settings["logit_scale"] * unit(features) @ unit(tensors["text"]).T
    return logits


ARRAY_HEADS: Mapping[str, ArrayHead] = MappingProxyType(
    {
        "cosine": ArrayHead(
            _cosine,
            "logits = logit_scale * unit(x + image_shift) @ weights.T, without image_shift if there is none",
            ("logits = {logit_scale} * unit(x) @ head['weights'].T",),
        ),
        "linear": ArrayHead(
            _linear,
            "logits = f @ weights.T + bias, with f = unit(x) if features is 'normalised', else x",
            ("logits = {f} @ head['weights'].T + head['bias']",),
        ),
        "memory": ArrayHead(
            _memory,
            "logits = logit_scale * unit(x) @ text.T + alpha * exp(-beta * (1 - q @ keys.T)) @ values, with "
            "q = unit(x), or unit(unit(x)[:, channels]) if there are channels",
            (
                "q = {q}",
                "near = (-{beta} * (1 - q @ head['keys'].T)).exp() @ head['values']",
                "logits = {logit_scale} * unit(x) @ head['text'].T + {alpha} * near",
            ),
        ),
        "adapter": ArrayHead(
            _adapter,
            "logits = logit_scale * unit(ratio * relu(relu(f @ down.T) @ up.T) + (1 - ratio) * f) @ unit(text).T, with "
            "f = unit(x) if features is 'normalised', else x",
            (
                "mlp = (({f} @ head['down'].T).relu() @ head['up'].T).relu()",
                "changed = {ratio} * mlp + (1 - {ratio}) * {f}",
                "logits = {logit_scale} * unit(changed) @ unit(head['text']).T",
            ),
        ),
        "projection": ArrayHead(
            _projection,
            "logits = logit_scale * unit(x @ projection + bias) @ unit(text).T, without bias if there is none; x is "
            "what reads says: image features, or the input of the image tower's last projection",
            ("logits = {logit_scale} * unit(x @ head['projection']{bias}) @ unit(head['text']).T",),
        ),
    }
)


def usage_lines(kind: str, tensors: Arrays, settings: Settings) -> tuple[str, ...]:
    """Return lines of torch that compute `logits` of inputs `x` from the tensors `head` of a file."""
    filled = {name: repr(value) for name, value in settings.items()}
    filled |= {
        "f": "unit(x)" if settings.get("features") == "normalised" else "x",
        "q": "unit(unit(x)[:, head['channels']])" if "channels" in tensors else "unit(x)",
        "bias": " + head['bias']" if "bias" in tensors else "",
    }
    lines = (line.format(**filled) for line in ARRAY_HEADS[kind].lines)
    return ("unit = lambda x: torch.nn.functional.normalize(x, dim=-1)", *lines)
