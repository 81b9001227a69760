"""Export formats that hold tensors: safetensors, and open_clip's zero-shot head.

Axes: N images, C classes, D embedding.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save

from taskres_cache.errors import OptionError
from taskres_cache.exporting.array_heads import ARRAY_HEADS, softmax, unit, usage_lines
from taskres_cache.exporting.form import (
    DIGEST,
    Shapes,
    as_text,
    content_digest,
    cosine_scale,
    metadata,
    refuse_changed,
    unit_weights,
)
from taskres_cache.heads.head import Head
from taskres_cache.heads.kinds import CosineHead, LinearHead
from taskres_cache.runs.classifier import Classifier

TENSOR_TOLERANCE = 1e-5  # weights are rounded to float32, all else is exact: 4e-7 measured


class SafetensorsForm:
    """The tensors of the head, and metadata with its kind, settings and formula.

    A cosine classifier has `weights` (C, D) with rows of length 1, and `image_shift` (D,) if the run has one.
    """

    name = "safetensors"
    tolerance = TENSOR_TOLERANCE

    def files(self, file: Path) -> tuple[Path, ...]:
        """Return the one file."""
        return (file,)

    def write(self, classifier: Classifier, files: Sequence[Path]) -> Shapes:
        """Write tensors and metadata; return the tensors' shapes."""
        tensors = _stored_tensors(classifier.head)
        values = as_text(metadata(classifier, _formula(classifier.head)))
        files[0].write_bytes(save(tensors, {**values, DIGEST: content_digest(tensors, values)}))
        return {name: tensor.shape for name, tensor in tensors.items()}

    def probabilities(self, files: Sequence[Path], inputs: np.ndarray) -> np.ndarray:
        """Return probabilities (N, C) of inputs, by the formula in the metadata."""
        with safe_open(files[0], framework="numpy") as stored:
            values = stored.metadata()
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        refuse_changed(values, content_digest(tensors, values))
        settings = {name: _decoded(value) for name, value in values.items()}
        logits = ARRAY_HEADS[settings.get("kind", "cosine")].logits(inputs, tensors, settings)
        return softmax(logits / settings["temperature"])

    def usage(self, classifier: Classifier, file: Path) -> tuple[str, ...]:
        """Return lines that compute probabilities with torch."""
        head, load = classifier.head, f'head = safetensors.torch.load_file("{file.name}")'
        if not isinstance(head, CosineHead):
            lines = usage_lines(head.kind, head.tensors(), head.settings())
            inputs = f"x = {'image_features' if head.input == 'features' else 'pre_projection'}  # (N, {head.width})"
            end = f"probabilities = (logits / {classifier.temperature!r}).softmax(dim=-1)"
            return ("import torch, safetensors.torch", load, inputs, *lines, end)
        shifted = "image_features" if head.image_shift is None else 'image_features + head["image_shift"]'
        return (
            "import torch, safetensors.torch",
            load,
            f"features = torch.nn.functional.normalize({shifted}, dim=-1)  # (N, {head.width})",
            f'probabilities = ({cosine_scale(classifier)!r} * features @ head["weights"].T).softmax(dim=-1)',
        )


class OpenClipForm:
    """A tensor (D, C) with columns of length 1, as open_clip's `build_zero_shot_classifier` returns it.

    The file holds a bare tensor, not a dictionary, because an evaluation loop multiplies with it. The metadata is in a
    JSON file next to it.
    """

    name = "open_clip"
    tolerance = TENSOR_TOLERANCE

    def files(self, file: Path) -> tuple[Path, ...]:
        """Return the file of the tensor and the JSON file."""
        return file, file.with_name(f"{file.name}.json")

    def write(self, classifier: Classifier, files: Sequence[Path]) -> Shapes:
        """Write tensor and metadata; raises OptionError for a head that is no plain matrix."""
        columns = torch.from_numpy(_plain_matrix(classifier).T.copy())  # (D, C)
        torch.save(columns, files[0])
        formula = (
            "probabilities = softmax(logit_scale / temperature * encode_image(images, normalize=True) @ "
            "torch.load(file, weights_only=True)), in the order of classnames"
        )
        values = metadata(classifier, formula)
        values[DIGEST] = content_digest({"tensor": columns.numpy()}, as_text(values))
        files[1].write_text(json.dumps(values, indent=2, allow_nan=False) + "\n")
        return {"tensor": tuple(columns.shape)}

    def probabilities(self, files: Sequence[Path], inputs: np.ndarray) -> np.ndarray:
        """Return probabilities (N, C) of un-normalised image features (N, D); an evaluation loop normalises them."""
        columns = torch.load(files[0], weights_only=True).numpy()
        values = json.loads(files[1].read_text())
        refuse_changed(values, content_digest({"tensor": columns}, as_text(values)))
        return softmax(values["logit_scale"] / values["temperature"] * unit(inputs) @ columns)

    def usage(self, classifier: Classifier, file: Path) -> tuple[str, ...]:
        """Return the lines of a zero-shot evaluation loop."""
        head = classifier.head
        return (
            "import torch",
            f'classifier = torch.load("{file.name}", weights_only=True)  # ({head.width}, {head.classes})',
            f"logits = {classifier.provenance.logit_scale!r} * model.encode_image(images, normalize=True) @ classifier",
            f"probabilities = (logits / {classifier.temperature!r}).softmax(dim=-1)",
        )


def _stored_tensors(head: Head) -> dict[str, np.ndarray]:
    """Return the tensors of a safetensors file; those of a cosine classifier have rows of length 1."""
    if not isinstance(head, CosineHead):
        return {name: np.ascontiguousarray(tensor) for name, tensor in head.tensors().items()}
    shift = {} if head.image_shift is None else {"image_shift": head.image_shift.float().numpy()}
    return {"weights": unit_weights(head)} | shift


def _plain_matrix(classifier: Classifier) -> np.ndarray:
    """Return the matrix (C, D) that an evaluation loop multiplies with; raises OptionError if there is none."""
    head = classifier.head
    if isinstance(head, CosineHead) and head.image_shift is None:
        return unit_weights(head)
    if isinstance(head, LinearHead) and head.features == "normalised" and not head.bias.any():
        return head.weights.numpy() / np.float32(classifier.provenance.logit_scale)
    reason = {
        "cosine": "this run's image residual, which is added to features before they are normalised",
        "linear": "this run's bias, or its weights for features that are not normalised",
    }.get(head.kind, f"the {head.kind} head of {classifier.method}, which is more than one matrix")
    raise OptionError(f"an open_clip head cannot hold {reason}; export to .safetensors or .onnx")


def _formula(head: Head) -> str:
    """Return how probabilities are computed from a safetensors file."""
    if not isinstance(head, CosineHead):
        what = "image_features as encode_image returns them" if head.input == "features" else "pre-projection features"
        formula = ARRAY_HEADS[head.kind].formula
        return f"probabilities = softmax(logits / temperature); {formula}; x is {what}, un-normalised"
    shifted = "image_features" if head.image_shift is None else "image_features + image_shift"
    return (
        f"probabilities = softmax(logit_scale / temperature * normalise({shifted}) @ weights.T), for image_features as "
        "encode_image(..., normalize=False) returns them"
    )


def _decoded(text: str) -> Any:
    """Return a value of the metadata: JSON, or a plain string."""
    try:
        return json.loads(text)
    except ValueError:
        return text
