"""Every kind of head: hand-computed logits, storage, and refusals of what makes no head.

Axes: N images, C classes, D embedding.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from taskres_cache.heads.formulas import normalise
from taskres_cache.heads.head import Head, share_correct
from taskres_cache.heads.kinds import (
    KINDS,
    AdapterHead,
    CosineHead,
    LinearHead,
    MemoryHead,
    ProjectionHead,
    head_of,
)

IMAGES = torch.tensor([[3.0, 4.0], [0.0, 2.0]])  # directions (0.6, 0.8) and (0, 1)
EYE = torch.eye(2)

HEADS: dict[str, Head] = {
    "cosine": CosineHead(torch.tensor([[2.0, 0.0], [0.0, 0.5]]), 10.0, torch.tensor([0.0, 1.0])),
    "linear": LinearHead(torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([1.0, -1.0]), "normalised"),
    "memory": MemoryHead(EYE, EYE, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), 10.0, alpha=2.0, beta=1.0),
    "adapter": AdapterHead(torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0], [0.0]]), EYE, 10.0, 0.5, "raw"),
    "projection": ProjectionHead(2 * EYE, EYE, 10.0, "pre_projection", torch.tensor([0.0, 1.0])),
}


def expected(kind: str) -> list[list[float]]:
    """Return the logits of `IMAGES`, computed by hand."""
    if kind == "cosine":  # (3, 5) and (0, 3)
        return [[30 / math.sqrt(34), 50 / math.sqrt(34)], [0.0, 10.0]]
    if kind == "linear":
        return [[2 * 0.6 + 1, 3 * 0.8 - 1], [1.0, 2.0]]
    if kind == "memory":
        near = [[2 * math.exp(-0.4), 2 * math.exp(-0.2)], [2 * math.exp(-1), 2.0]]
        return [[6 + near[0][0], 8 + near[0][1]], [near[1][0], 10 + near[1][1]]]
    if kind == "adapter":  # the hidden unit max(f_1 - f_2, 0) is 0 for both: half of the features is left
        return [[6.0, 8.0], [0.0, 10.0]]
    return [[60 / math.sqrt(117), 90 / math.sqrt(117)], [0.0, 10.0]]  # (6, 9) and (0, 5)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_computed_by_hand(kind: str) -> None:
    logits = HEADS[kind].logits(IMAGES)
    assert torch.allclose(logits, torch.tensor(expected(kind)), atol=1e-5)
    assert torch.allclose(HEADS[kind].scores(IMAGES) * HEADS[kind].scale, logits, atol=1e-5)


def test_an_adapter_adds_what_its_network_finds() -> None:
    head = replace(HEADS["adapter"], ratio=0.5)
    changed = torch.tensor([[0.5 * 2 * 2 + 0.5 * 3, 0.5 * 1]])  # hidden unit 3 - 1 = 2, up (2, 0)
    assert torch.allclose(head.logits(torch.tensor([[3.0, 1.0]])), 10 * normalise(changed))


def test_a_memory_of_some_channels_compares_these_alone() -> None:
    head = MemoryHead(EYE, torch.tensor([[1.0]]), torch.tensor([[0.0, 1.0]]), 10.0, 1.0, 5.0, torch.tensor([1]))
    assert torch.allclose(head.logits(IMAGES), torch.tensor([[6.0, 9.0], [0.0, 11.0]]))  # similarity is 1 for both


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_is_the_same_after_storage(kind: str) -> None:
    head = HEADS[kind]
    again = head_of(kind, head.tensors(), head.settings(), temperature=2.0)
    assert torch.equal(again.logits(IMAGES), head.logits(IMAGES))
    assert torch.allclose(again.probabilities(IMAGES), (head.logits(IMAGES) / 2).softmax(dim=-1))


@pytest.mark.parametrize("kind", KINDS)
def test_classes_can_be_chosen(kind: str) -> None:
    head = HEADS[kind].of_classes(np.array([1, 0, 1]))
    assert head.classes == 3
    assert HEADS[kind].classes == HEADS[kind].width == 2
    assert torch.equal(head.logits(IMAGES), HEADS[kind].logits(IMAGES)[:, [1, 0, 1]])


@pytest.mark.parametrize("kind", KINDS)
def test_all_floating_tensors_change_their_type(kind: str) -> None:
    exact = HEADS[kind].to(torch.float64)
    assert {tensor.dtype for tensor in exact.tensors().values()} == {np.dtype(np.float64)}
    assert torch.allclose(exact.logits(IMAGES.double()).float(), HEADS[kind].logits(IMAGES), atol=1e-5)


def test_channels_keep_their_type() -> None:
    head = MemoryHead(EYE, EYE, EYE, 10.0, 1.0, 1.0, torch.tensor([1, 0]))
    assert head.to(torch.float64).channels is not None
    assert head.to(torch.float64).tensors()["channels"].dtype == np.int64


def test_image_side_heads_take_the_text_of_other_classes() -> None:
    others = torch.tensor([[1.0, 1.0], [1.0, -1.0], [0.0, 1.0]])
    for kind in ("adapter", "projection"):
        changed = HEADS[kind].with_text(others)
        assert changed is not None
        assert changed.classes == 3
        first = HEADS[kind].with_text(EYE)
        assert first is not None
        assert torch.equal(first.logits(IMAGES), HEADS[kind].logits(IMAGES))
    assert all(HEADS[kind].with_text(others) is None for kind in ("cosine", "linear", "memory"))


def test_heads_that_share_tensors_share_a_key() -> None:
    head = HEADS["linear"]
    assert head.shared_key() == replace(head).shared_key()
    assert head.shared_key() != replace(head, temperature=2.0).shared_key()
    assert head.shared_key() != replace(head, features="raw").shared_key()
    assert head.shared_key() != replace(head, bias=torch.tensor([1.0, -1.0])).shared_key()


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("linear", {"bias": None}, "missing or unknown parts: bias"),
        ("linear", {"extra": np.zeros(2, np.float32)}, "missing or unknown parts: extra"),
        ("linear", {"bias": np.zeros(3, np.float32)}, "shape (3,), expected C of 2"),
        ("linear", {"weights": np.zeros(2, np.float32)}, "shape (2,), expected (C, D)"),
        ("linear", {"weights": np.zeros((2, 0), np.float32)}, "shape (2, 0), expected (C, D)"),
        ("linear", {"weights": np.zeros((2, 2))}, "type float64"),
        ("linear", {"weights": np.full((2, 2), np.nan, np.float32)}, "not finite"),
        ("linear", {"features": "scaled"}, "expected one of raw, normalised"),
        ("linear", {"weights": "text"}, "expected a finite number"),
        ("cosine", {"logit_scale": 0.0}, "logit_scale is 0.0, expected a finite number"),
        ("cosine", {"logit_scale": True}, "expected a finite number"),
        ("memory", {"beta": float("inf")}, "beta is inf"),
        ("memory", {"keys": np.zeros((2, 3), np.float32)}, "keys has shape (2, 3), expected (M, 2)"),
        ("memory", {"channels": np.array([0, 5])}, "channels has values outside 0-1"),
        ("memory", {"channels": np.array([0.0, 1.0], np.float32)}, "expected int64"),
        ("projection", {"reads": "pixels"}, "expected one of features, pre_projection"),
    ],
)
def test_what_makes_no_head_is_refused(kind: str, changes: dict[str, Any], message: str) -> None:
    parts = {**HEADS[kind].tensors(), **HEADS[kind].settings()} | changes
    present = {name: value for name, value in parts.items() if value is not None}
    tensors = {name: value for name, value in present.items() if isinstance(value, np.ndarray)}
    settings = {name: value for name, value in present.items() if not isinstance(value, np.ndarray)}
    with pytest.raises(ValueError, match=".*") as caught:
        head_of(kind, tensors, settings)
    assert message in str(caught.value)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown kind of head 'tree', expected one of cosine, linear, memory"):
        head_of("tree", {}, {})


def test_the_share_of_correct_predictions_has_the_bits_of_a_mean_in_float64() -> None:
    logits, labels = torch.randn(1003, 7), torch.arange(1003) % 7
    expected = (logits.argmax(dim=1) == labels).double().mean().item()
    assert share_correct(logits, labels) == expected
    assert 0 < expected < 1
