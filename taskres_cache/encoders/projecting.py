"""An image tower in two parts: all but its last linear map, and that map. Together they compute the same bits.

ProLIP and P0 train on the input of the map, the pre-projection. It costs nothing: the tower computes it anyway.

Axes: B images of a batch, L tokens, D embedding, I width of the tower (the size of the map's input).
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

_recording = threading.local()  # lanes share a tower, and each records its own batches


@contextmanager
def recorded_inputs() -> Iterator[list[Tensor]]:
    """Record the inputs (B, I) of the last linear map, for every batch that this thread encodes in the meantime."""
    _recording.inputs = []
    try:
        yield _recording.inputs
    finally:
        del _recording.inputs


class ProjectedTower(nn.Module):
    """A tower without its last linear map, and the map.

    Parameters
    ----------
    tower : torch.nn.Module
        From images to pooled features (B, I), or to those and tokens, as CoCa's.
    weight : Tensor of shape (I, D)
        The map of vision transformers, which multiply by it from the right; or of `nn.Linear`, transposed.
    bias : Tensor of shape (D,), optional
        The bias of the map.
    """

    def __init__(self, tower: nn.Module, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.tower = tower
        self.weight = nn.Parameter(weight, requires_grad=False)  # parameters move with the model
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, images: Tensor) -> Any:
        """Return what the whole tower returned."""
        output = self.tower(images)
        pooled, *others = output if isinstance(output, tuple) else (output,)
        inputs = getattr(_recording, "inputs", None)
        if inputs is not None:
            inputs.append(pooled)
        features = pooled @ self.weight if self.bias is None else linear(pooled, self.weight.T, self.bias)
        return (features, *others) if isinstance(output, tuple) else features


class AttentionPool(nn.Module):
    """The attention pooling of CLIP's ResNets without its output projection, for the token that it returns.

    It repeats the steps of `torch.nn.functional.multi_head_attention_forward`, which cannot leave out the projection.
    """

    def __init__(self, pool: Any) -> None:
        super().__init__()
        self.positional_embedding, self.num_heads = pool.positional_embedding, pool.num_heads
        self.q_proj, self.k_proj, self.v_proj = pool.q_proj, pool.k_proj, pool.v_proj

    def forward(self, grid: Tensor) -> Tensor:
        """Return the pooled features (B, I) of a grid (B, I, H, W)."""
        tokens = grid.flatten(2).permute(2, 0, 1)  # (H W, B, I)
        tokens = torch.cat([tokens.mean(dim=0, keepdim=True), tokens], dim=0)  # (L, B, I)
        tokens = tokens + self.positional_embedding[:, None, :].to(tokens.dtype)
        query, key, value = (
            self._heads(one) for one in (self.q_proj(tokens[:1]), self.k_proj(tokens), self.v_proj(tokens))
        )
        attended = scaled_dot_product_attention(query, key, value)  # (B, heads, 1, I / heads)
        return attended.permute(2, 0, 1, 3).flatten(0, 1).flatten(1)

    def _heads(self, tokens: Tensor) -> Tensor:
        """Return tokens (L, B, I) per head, (B, heads, L, I / heads)."""
        length, batch = tokens.shape[0], tokens.shape[1]
        return tokens.view(length, batch, self.num_heads, -1).permute(1, 2, 0, 3)


def split_projection(visual: Any) -> nn.Module:
    """Return an image tower as a `ProjectedTower`, or unchanged if it does not end in a linear map.

    Parameters
    ----------
    visual : torch.nn.Module
        open_clip's tower, in evaluation mode; it loses the map.
    """
    pool, head, trunk = (getattr(visual, name, None) for name in ("attnpool", "head", "trunk"))
    if pool is not None and isinstance(getattr(pool, "c_proj", None), nn.Linear):  # CLIP's ResNets
        visual.attnpool = AttentionPool(pool)
        return ProjectedTower(visual, pool.c_proj.weight.T, pool.c_proj.bias)
    if isinstance(getattr(visual, "proj", None), nn.Parameter):  # open_clip's vision transformers skip a map of None
        weight, visual.proj = visual.proj, None
        return ProjectedTower(visual, weight)
    if trunk is None or not isinstance(head, nn.Sequential):
        return visual  # type: ignore[no-any-return]
    if len(head) > 0:  # timm's towers, with a map that open_clip adds
        return _without_last(visual, head, list(head._modules)[-1])
    return _without_classifier(visual, trunk)


def _without_last(visual: nn.Module, owner: nn.Module, name: str) -> nn.Module:
    """Return a tower split at the linear map `name` of a module in it."""
    last = getattr(owner, name)
    if not isinstance(last, nn.Linear):
        return visual
    setattr(owner, name, nn.Identity())
    return ProjectedTower(visual, last.weight.T, last.bias)


def _without_classifier(visual: Any, trunk: Any) -> nn.Module:
    """Return a tower split at the classifier of timm's model, if that is what the model ends with."""
    classifier = trunk.get_classifier() if hasattr(trunk, "get_classifier") else None
    place = next((name for name, module in trunk.named_modules() if module is classifier), "")
    if not isinstance(classifier, nn.Linear) or not place:
        return visual  # type: ignore[no-any-return]
    example = torch.rand(1, 3, *visual.image_size, generator=torch.Generator().manual_seed(0))
    owner, name = trunk.get_submodule(place.rpartition(".")[0]), place.rpartition(".")[2]
    with torch.no_grad():
        expected = visual(example)
        split = _without_last(visual, owner, name)
        if torch.allclose(split(example), expected, rtol=1e-4, atol=1e-6):
            return split
    setattr(owner, name, classifier)  # its output is not the tower's: two heads, or a layer behind it
    return visual  # type: ignore[no-any-return]
