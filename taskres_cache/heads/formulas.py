"""The model on one page: every formula from image features to logits, as pure functions of tensors.

    f = image_features + alpha * image_residual          # image side, usually left alone
    w = base + alpha * residual                          # text side: the task residual
    logits = logit_scale * <f / |f|, w / |w|>
    probabilities = softmax(logits / temperature)

The other functions are the heads of rival methods. All features enter un-normalised, as the encoders return them. All
code that needs logits uses this module, except training steps that compute the same in place and their gradient in
closed form, such as `methods/task_residual/step.py`.

Axes: N images, C classes, D embedding, M remembered images, H hidden size of an adapter, W size before the projection.
"""

from torch import Tensor


def normalise(features: Tensor) -> Tensor:
    """Return features (..., D) divided by their length."""
    return directions_and_lengths(features)[0]


def directions_and_lengths(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return features (..., D) divided by their length, and the lengths (...,)."""
    lengths: Tensor = features.norm(dim=-1)
    return features / lengths[..., None], lengths


def add_residual(base: Tensor, residual: Tensor, alpha: float | Tensor) -> Tensor:
    """Return the un-normalised weights `base + alpha * residual` (C, D); a zero residual gives exactly the base."""
    return base + alpha * residual


def scaled_cosines(image_features: Tensor, weights: Tensor, scale: float) -> Tensor:
    """Return `scale * cosine` (N, C) of un-normalised features (N, D) and weights (C, D)."""
    return scale * normalise(image_features) @ normalise(weights).T  # (N, C)


def linear(image_features: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
    """Return `f w + b` (N, C) of features (N, D), weights (C, D) and bias (C,); nothing is normalised."""
    return image_features @ weights.T + bias  # (N, C)


def memory(directions: Tensor, keys: Tensor, values: Tensor, beta: float) -> Tensor:
    """Return `exp(-beta (1 - <f, k>)) values` (N, C) of normalised features (N, D), keys (M, D) and values (M, C).

    Keys are used as they are: of length 1, unless they were trained.
    """
    affinity = directions @ keys.T  # (N, M)
    return (affinity - 1).mul(beta).exp() @ values  # (N, C)


def adapted(image_features: Tensor, down: Tensor, up: Tensor, ratio: float) -> Tensor:
    """Return `ratio * mlp(f) + (1 - ratio) * f` (N, D), with a ReLU after both layers, down (H, D) and up (D, H)."""
    hidden = (image_features @ down.T).relu()  # (N, H)
    return ratio * (hidden @ up.T).relu() + (1 - ratio) * image_features  # (N, D)


def projected(inputs: Tensor, projection: Tensor, bias: Tensor | None) -> Tensor:
    """Return un-normalised image features (N, D) of the projection's inputs (N, W), with projection (W, D)."""
    features = inputs @ projection  # (N, D)
    return features if bias is None else features + bias
