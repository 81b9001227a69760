"""Export formats that hold tensors: safetensors, and open_clip's zero-shot head.

Axes: N images, C classes, D embedding.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save

from taskres_cache.errors import OptionError
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
from taskres_cache.heads.kinds import CosineHead
from taskres_cache.runs.classifier import Classifier

TENSOR_TOLERANCE = 1e-5  # weights are rounded to float32, all else is exact: 4e-7 measured


class SafetensorsForm:
    """`weights` (C, D) with rows of length 1, `image_shift` (D,) if the run has one, and metadata."""

    name = "safetensors"
    tolerance = TENSOR_TOLERANCE

    def files(self, file: Path) -> tuple[Path, ...]:
        """Return the one file."""
        return (file,)

    def write(self, classifier: Classifier, files: Sequence[Path]) -> Shapes:
        """Write weights, shift and metadata; return their shapes."""
        head = classifier.head
        tensors = {"weights": unit_weights(head)}
        if head.image_shift is not None:
            tensors["image_shift"] = head.image_shift.float().numpy()
        values = as_text(metadata(classifier, _formula(head)))
        files[0].write_bytes(save(tensors, {**values, DIGEST: content_digest(tensors, values)}))
        return {name: tensor.shape for name, tensor in tensors.items()}

    def probabilities(self, files: Sequence[Path], inputs: np.ndarray) -> np.ndarray:
        """Return probabilities (N, C) of un-normalised image features (N, D), by the formula in the metadata."""
        with safe_open(files[0], framework="numpy") as stored:
            values = stored.metadata()
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        refuse_changed(values, content_digest(tensors, values))
        weights, shift = tensors["weights"], tensors.get("image_shift", 0.0)
        scale = json.loads(values["logit_scale"]) / json.loads(values["temperature"])
        return _softmax(inputs + shift, weights.T, scale)

    def usage(self, classifier: Classifier, file: Path) -> tuple[str, ...]:
        """Return lines that compute probabilities with torch."""
        shifted = "image_features" if classifier.head.image_shift is None else 'image_features + head["image_shift"]'
        return (
            "import torch, safetensors.torch",
            f'head = safetensors.torch.load_file("{file.name}")',
            f"features = torch.nn.functional.normalize({shifted}, dim=-1)  # (N, {classifier.base.shape[1]})",
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
        """Write tensor and metadata; raises OptionError for a run with a residual on the image side."""
        head = classifier.head
        if head.image_shift is not None:
            raise OptionError(
                "an open_clip head cannot hold this run's image residual, which is added to features before they are "
                "normalised; export to .safetensors or .onnx"
            )
        columns = torch.from_numpy(unit_weights(head)).T.contiguous()  # (D, C)
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
        return _softmax(inputs, columns, values["logit_scale"] / values["temperature"])

    def usage(self, classifier: Classifier, file: Path) -> tuple[str, ...]:
        """Return the lines of a zero-shot evaluation loop."""
        return (
            "import torch",
            f'classifier = torch.load("{file.name}", weights_only=True)  # {tuple(reversed(classifier.base.shape))}',
            f"logits = {classifier.provenance.logit_scale!r} * model.encode_image(images, normalize=True) @ classifier",
            f"probabilities = (logits / {classifier.temperature!r}).softmax(dim=-1)",
        )


def _formula(head: CosineHead) -> str:
    """Return how probabilities are computed from a safetensors head."""
    shifted = "image_features" if head.image_shift is None else "image_features + image_shift"
    return (
        f"probabilities = softmax(logit_scale / temperature * normalise({shifted}) @ weights.T), for image_features as "
        "encode_image(..., normalize=False) returns them"
    )


def _softmax(features: np.ndarray, columns: np.ndarray, scale: float) -> np.ndarray:
    """Return softmax(scale * <f/|f|, w>) (N, C) of features (N, D) and columns (D, C), in float64."""
    exact = features.astype(np.float64)
    logits = scale * (exact / np.linalg.norm(exact, axis=1, keepdims=True)) @ columns
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    softmax: np.ndarray = exponentials / exponentials.sum(axis=1, keepdims=True)
    return softmax
