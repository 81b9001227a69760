"""The kinds of heads: what each holds, and how it gives logits.

Axes: N images, C classes, D embedding, M remembered images, H hidden size of an adapter, W size before the projection,
Q channels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from taskres_cache.heads.formulas import (
    adapted,
    add_residual,
    linear,
    memory,
    normalise,
    projected,
    scaled_cosines,
)
from taskres_cache.heads.head import Axes, Head, Reads

Form = Literal["raw", "normalised"]  # of the image features that a head multiplies with


@dataclass(frozen=True)
class CosineHead(Head):
    """`logit_scale * <f, w>` of normalised features and weights: zero-shot, TaskRes, ZS-LP, CLAP, SS-Text.

    Parameters
    ----------
    weights : Tensor of shape (C, D)
        Un-normalised, one row per class.
    logit_scale : float
        Multiplier of the cosines, `exp(logit_scale)` of the checkpoint; 100 for OpenAI's.
    image_shift : Tensor of shape (D,) or (1, D), optional
        Added to un-normalised image features; None leaves them unchanged.
    temperature : float, default 1
        Divides the logits to calibrate probabilities.

    Examples
    --------
    >>> import torch
    >>> from taskres_cache.heads.kinds import CosineHead
    >>> head = CosineHead(torch.tensor([[2.0, 0.0], [0.0, 0.5]]), logit_scale=100.0)
    >>> head.logits(torch.tensor([[3.0, 4.0]])).round().tolist()
    [[60.0, 80.0]]
    """

    kind: ClassVar[str] = "cosine"
    weights: Annotated[Tensor, Axes("CD")]
    logit_scale: float
    image_shift: Annotated[Tensor | None, Axes("D")] = None

    @classmethod
    def of_arrays(
        cls,
        base: np.ndarray,
        logit_scale: float,
        residual: np.ndarray | None = None,
        image_residual: np.ndarray | None = None,
        alpha: float = 1.0,
        temperature: float = 1.0,
    ) -> "CosineHead":
        """Build the head of a base and its residuals.

        Parameters
        ----------
        base : ndarray of shape (C, D)
            Un-normalised; the head shares its memory if there is no residual.
        logit_scale : float
            Multiplier of the cosines.
        residual : ndarray of shape (C, D), optional
            Residual of the base.
        image_residual : ndarray of shape (D,), optional
            Residual of the image features.
        alpha : float, default 1
            Weight of both residuals.
        temperature : float, default 1
            Divides the logits.
        """
        text = torch.from_numpy(base)
        weights = text if residual is None else add_residual(text, torch.from_numpy(residual), alpha)
        shift = None if image_residual is None else alpha * torch.from_numpy(image_residual)
        return cls(weights, logit_scale, shift, temperature=temperature)

    @property
    def width(self) -> int:
        """D, the size of the embedding."""
        return int(self.weights.shape[1])

    @property
    def scale(self) -> float:
        """The logit scale: `scores` are cosines."""
        return self.logit_scale

    def shifted(self, image_features: Tensor) -> Tensor:
        """Return un-normalised image features (N, D) with the image shift added."""
        return image_features if self.image_shift is None else image_features + self.image_shift

    def scores(self, image_features: Tensor) -> Tensor:
        """Return the cosine (N, C) of un-normalised image features (N, D) with each class."""
        return scaled_cosines(self.shifted(image_features), self.weights, 1.0)

    def logits(self, image_features: Tensor) -> Tensor:
        """Return the logits (N, C) of un-normalised image features (N, D), without the temperature."""
        return scaled_cosines(self.shifted(image_features), self.weights, self.logit_scale)

    def probabilities(self, image_features: Tensor) -> Tensor:
        """Return calibrated probabilities (N, C) of un-normalised image features (N, D)."""
        scale = self.logit_scale / self.temperature
        return scaled_cosines(self.shifted(image_features), self.weights, scale).softmax(dim=-1)


@dataclass(frozen=True)
class LinearHead(Head):
    """`f w + b`: logistic regression, LP++, GDA, TIMO, cross-modal probing, and sums of heads.

    Parameters
    ----------
    weights : Tensor of shape (C, D)
        Used as they are.
    bias : Tensor of shape (C,)
        Zero for a head without bias.
    features : {"raw", "normalised"}
        What is multiplied: the image features as the encoder returns them, or divided by their length.
    """

    kind: ClassVar[str] = "linear"
    weights: Annotated[Tensor, Axes("CD")]
    bias: Annotated[Tensor, Axes("C")]
    features: Form

    @property
    def width(self) -> int:
        """D, the size of the embedding."""
        return int(self.weights.shape[1])

    def logits(self, image_features: Tensor) -> Tensor:
        """Return the logits (N, C) of un-normalised image features (N, D)."""
        return linear(_in_form(image_features, self.features), self.weights, self.bias)


@dataclass(frozen=True)
class MemoryHead(Head):
    """Zero-shot logits plus the labels of similar remembered images: Tip-Adapter, ProKeR, APE.

    `logit_scale * f text + alpha * exp(-beta (1 - <f, keys>)) values`, with f the normalised image features.

    Parameters
    ----------
    text : Tensor of shape (C, D)
        Text classifier, used as it is: rows of length 1, unless it was trained.
    keys : Tensor of shape (M, D), or (M, Q) with channels
        Features of the remembered images, used as they are.
    values : Tensor of shape (M, C)
        Their labels, one-hot, or weights learned in their place.
    logit_scale, alpha, beta : float
        Multiplier of the cosines, weight of the memory, sharpness of the similarity.
    channels : Tensor of shape (Q,), int64, optional
        Channels of the normalised image features that are compared with the keys, divided by their length again; None
        for all.
    """

    kind: ClassVar[str] = "memory"
    text: Annotated[Tensor, Axes("CD")]
    keys: Annotated[Tensor, Axes("MQ")]
    values: Annotated[Tensor, Axes("MC")]
    logit_scale: float
    alpha: float
    beta: float
    channels: Annotated[Tensor | None, Axes("Q")] = None

    @property
    def width(self) -> int:
        """D, the size of the embedding."""
        return int(self.text.shape[1])

    def logits(self, image_features: Tensor) -> Tensor:
        """Return the logits (N, C) of un-normalised image features (N, D)."""
        directions = normalise(image_features)
        compared = directions if self.channels is None else normalise(directions[:, self.channels])  # (N, Q)
        zero_shot = self.logit_scale * directions @ self.text.T  # (N, C)
        return zero_shot + self.alpha * memory(compared, self.keys, self.values, self.beta)


@dataclass(frozen=True)
class AdapterHead(Head):
    """Cosines of image features that a small network has changed: CLIP-Adapter.

    Parameters
    ----------
    down : Tensor of shape (H, D)
        First layer, without bias.
    up : Tensor of shape (D, H)
        Second layer, without bias.
    text : Tensor of shape (C, D)
        Text classifier, un-normalised.
    logit_scale, ratio : float
        Multiplier of the cosines, and the part of the network's output in the sum with its input.
    features : {"raw", "normalised"}
        What the network reads.
    """

    kind: ClassVar[str] = "adapter"
    down: Annotated[Tensor, Axes("HD")]
    up: Annotated[Tensor, Axes("DH")]
    text: Annotated[Tensor, Axes("CD")]
    logit_scale: float
    ratio: float
    features: Form

    @property
    def width(self) -> int:
        """D, the size of the embedding."""
        return int(self.text.shape[1])

    def logits(self, image_features: Tensor) -> Tensor:
        """Return the logits (N, C) of un-normalised image features (N, D)."""
        changed = adapted(_in_form(image_features, self.features), self.down, self.up, self.ratio)  # (N, D)
        return scaled_cosines(changed, self.text, self.logit_scale)

    def with_text(self, text_features: Tensor) -> Head:
        """Return the head for other classes, given by their text features (C, D)."""
        return replace(self, text=text_features)


@dataclass(frozen=True)
class ProjectionHead(Head):
    """Cosines of image features that a tuned projection computes: ProLIP, RLA, P0.

    Parameters
    ----------
    projection : Tensor of shape (W, D)
        The tuned projection; (D, D) if it reads image features.
    text : Tensor of shape (C, D)
        Text classifier, un-normalised.
    logit_scale : float
        Multiplier of the cosines.
    reads : {"features", "pre_projection"}
        What is projected: image features, or the input of the image tower's last projection.
    bias : Tensor of shape (D,), optional
        Added after the projection.
    """

    kind: ClassVar[str] = "projection"
    projection: Annotated[Tensor, Axes("WD")]
    text: Annotated[Tensor, Axes("CD")]
    logit_scale: float
    reads: Reads
    bias: Annotated[Tensor | None, Axes("D")] = None

    @property
    def input(self) -> Reads:
        """What the head reads."""
        return self.reads

    @property
    def width(self) -> int:
        """W, the size of what is projected."""
        return int(self.projection.shape[0])

    def logits(self, image_features: Tensor) -> Tensor:
        """Return the logits (N, C) of the inputs (N, W) of the projection."""
        features = projected(image_features, self.projection, self.bias)  # (N, D)
        return scaled_cosines(features, self.text, self.logit_scale)

    def with_text(self, text_features: Tensor) -> Head:
        """Return the head for other classes, given by their text features (C, D)."""
        return replace(self, text=text_features)


KINDS: Mapping[str, type[Head]] = {
    kind.kind: kind for kind in (CosineHead, LinearHead, MemoryHead, AdapterHead, ProjectionHead)
}
WORDS = {"features": get_args(Form), "reads": get_args(Reads)}


def head_of(
    kind: str, tensors: Mapping[str, np.ndarray], settings: Mapping[str, float | str], temperature: float = 1.0
) -> Head:
    """Return a head from what `tensors` and `settings` of one returned, and check it.

    Parameters
    ----------
    kind : str
        A key of `KINDS`.
    tensors : mapping of str to ndarray
        Its tensors by name.
    settings : mapping of str to float or str
        Its numbers and words by name.
    temperature : float, default 1
        Divides the logits.

    Raises
    ------
    ValueError
        An unknown kind, a missing or unknown name, or tensors whose shapes, types or values do not make a head.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of head {kind!r}, expected one of {', '.join(KINDS)}")
    declared = {one.name: one.default for one in fields(KINDS[kind]) if one.name != "temperature"}
    optional, axes = {name for name, default in declared.items() if default is None}, KINDS[kind].axes()
    given = {**tensors, **settings}
    wrong = sorted((set(declared) - optional - set(given)) | (set(given) - set(declared)))
    if wrong:
        raise ValueError(f"a {kind} head has missing or unknown parts: {', '.join(wrong)[:100]}")
    sizes: dict[str, int] = {}
    for name, tensor in tensors.items():
        _check_tensor(f"{kind} head: {name}", tensor, axes.get(name, ""), sizes)
    for name, value in settings.items():
        _check_setting(f"{kind} head: {name}", name, value, name in axes)
    _check_channels(tensors)
    parts = {name: torch.from_numpy(np.ascontiguousarray(tensor)) for name, tensor in tensors.items()}
    return KINDS[kind](**parts, **settings, temperature=temperature)


def _check_tensor(what: str, tensor: np.ndarray, axes: str, sizes: dict[str, int]) -> None:
    """Raise ValueError if a tensor has wrong axes, another type or values that are not finite; add its sizes."""
    if len(axes) != tensor.ndim or 0 in tensor.shape:
        raise ValueError(f"{what} has shape {tensor.shape}, expected ({', '.join(axes)})")
    for axis, size in zip(axes, tensor.shape, strict=True):
        if sizes.setdefault(axis, size) != size:
            raise ValueError(f"{what} has shape {tensor.shape}, expected {axis} of {sizes[axis]}")
    expected = np.int64 if axes == "Q" else np.float32
    if tensor.dtype != expected or not np.isfinite(tensor).all():
        raise ValueError(f"{what} has type {tensor.dtype} or values that are not finite; expected {expected.__name__}")


def _check_setting(what: str, name: str, value: float | str, is_tensor: bool) -> None:
    """Raise ValueError for a number that is not finite or positive where it must be, or an unknown word."""
    if name in WORDS:
        if value not in WORDS[name]:
            raise ValueError(f"{what} is {value!r}, expected one of {', '.join(WORDS[name])}")
    elif is_tensor or isinstance(value, str | bool) or not np.isfinite(value) or (name == "logit_scale" and value <= 0):
        raise ValueError(f"{what} is {value!r}, expected a finite number")


def _check_channels(tensors: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError if keys do not fit the channels, or channels the embedding."""
    if "keys" not in tensors or "text" not in tensors:
        return
    dim, channels = tensors["text"].shape[1], tensors.get("channels")
    if channels is None and tensors["keys"].shape[1] != dim:
        raise ValueError(f"memory head: keys has shape {tensors['keys'].shape}, expected (M, {dim})")
    if channels is not None and not (channels.min() >= 0 and channels.max() < dim):
        raise ValueError(f"memory head: channels has values outside 0-{dim - 1}")


def _in_form(image_features: Tensor, form: Form) -> Tensor:
    return image_features if form == "raw" else normalise(image_features)
