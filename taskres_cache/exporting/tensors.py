"""Forms that a head leaves the house in, to be used without taskres-cache: safetensors, and open_clip's zero-shot head.

Axes: N images, C classes, D embedding.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save

from taskres_cache.errors import OptionError
from taskres_cache.heads import Head
from taskres_cache.runs.run import Classifier
from taskres_cache.system.version import __version__

FORMAT, FORMAT_VERSION = "taskres-head", 1
TENSOR_TOLERANCE = 1e-5  # weights in float32, all else exact: 4e-7 measured

Shapes = dict[
    str, tuple[int | str, ...]
]  # of tensors, inputs or outputs by their names; a number that varies is a letter


class Form(Protocol):
    """One form of an exported classifier: how it is written, and what the written files say all by themselves."""

    @property
    def name(self) -> str:
        """What users call it."""

    @property
    def tolerance(self) -> float:
        """How far its probabilities may lie from exact ones, by rounding, where cosines are multiplied by 100."""

    def files(self, file: Path) -> tuple[Path, ...]:
        """Return all files of the form, the one that was asked for first."""

    def write(self, classifier: Classifier, files: Sequence[Path]) -> Shapes:
        """Write the files; return what is in them. Raises OptionError for a classifier that the form cannot express."""

    def ask(self, files: Sequence[Path], inputs: np.ndarray) -> np.ndarray:
        """Return probabilities (N, C) of inputs as the form takes them, by nothing but what the files hold."""

    def usage(self, classifier: Classifier, file: Path) -> tuple[str, ...]:
        """Return the lines of Python that use the file."""


def directions(head: Head) -> np.ndarray:
    """Return a head's weights (C, D), float32, each row of length 1."""
    exact = head.weights.numpy().astype(np.float64)
    unit: np.ndarray = exact / np.linalg.norm(exact, axis=1, keepdims=True)
    return unit.astype(np.float32)


def sharpness(classifier: Classifier) -> float:
    """Return by what cosines are multiplied before the softmax: logit scale over temperature."""
    return classifier.provenance.logit_scale / classifier.temperature


def facts(classifier: Classifier, how_to_use: str) -> dict[str, Any]:
    """Return what goes with every export: class names, scale, temperature, where all of it came from, how to use it."""
    source = classifier.provenance
    known = {} if classifier.class_ids is None else {"class_ids": list(classifier.class_ids)}
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "created_by": f"taskres-cache {__version__}",
        "classnames": list(classifier.classnames),
        **known,
        "logit_scale": source.logit_scale,
        "temperature": classifier.temperature,
        "dataset": source.dataset,
        "backbone": source.backbone,
        "pretrained": source.pretrained,
        "model_config": source.model_config,
        "weights_sha256": source.weights_sha256,
        "preprocess": source.preprocess,
        "method": classifier.recipe.method_name(),
        "shots": classifier.shots,
        "seed": classifier.seed,
        "how_to_use": how_to_use,
    }


def as_text(said: dict[str, Any]) -> dict[str, str]:
    """Return facts as safetensors and ONNX can hold them: words as they are, all else as JSON."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in said.items()}


class SafetensorsForm:
    """`weights` (C, D), rows of length 1, where there is one `image_shift` (D,), and the facts as metadata."""

    name = "safetensors"
    tolerance = TENSOR_TOLERANCE

    def files(self, file: Path) -> tuple[Path, ...]:
        """Return the one file."""
        return (file,)

    def write(self, classifier: Classifier, files: Sequence[Path]) -> Shapes:
        """Write weights, shift and metadata."""
        head = classifier.head
        tensors = {"weights": directions(head)}
        if head.image_shift is not None:
            tensors["image_shift"] = head.image_shift.float().numpy()
        files[0].write_bytes(save(tensors, as_text(facts(classifier, _sentence(head)))))
        return {name: tensor.shape for name, tensor in tensors.items()}

    def ask(self, files: Sequence[Path], inputs: np.ndarray) -> np.ndarray:
        """Return probabilities (N, C) of un-normalised image features (N, D), as the metadata says to compute them."""
        with safe_open(files[0], framework="numpy") as stored:
            said = stored.metadata()
            weights = stored.get_tensor("weights")
            shift = stored.get_tensor("image_shift") if "image_shift" in stored.keys() else 0.0  # noqa: SIM118
        return _softmax(inputs + shift, weights.T, json.loads(said["logit_scale"]) / json.loads(said["temperature"]))

    def usage(self, classifier: Classifier, file: Path) -> tuple[str, ...]:
        """Return how to compute probabilities with torch."""
        moved = "image_features" if classifier.head.image_shift is None else 'image_features + head["image_shift"]'
        return (
            "import torch, safetensors.torch",
            f'head = safetensors.torch.load_file("{file.name}")',
            f"features = torch.nn.functional.normalize({moved}, dim=-1)  # (N, {classifier.base.shape[1]})",
            f'probabilities = ({sharpness(classifier)!r} * features @ head["weights"].T).softmax(dim=-1)',
        )


class OpenClipForm:
    """A bare tensor (D, C), columns of length 1, as open_clip's `build_zero_shot_classifier` returns it.

    A tensor and not a dictionary, because that is what an evaluation loop multiplies with; class names, scale and all
    else stand in a JSON file beside it.
    """

    name = "open_clip"
    tolerance = TENSOR_TOLERANCE

    def files(self, file: Path) -> tuple[Path, ...]:
        """Return the tensor's file and the JSON file beside it."""
        return file, file.with_name(f"{file.name}.json")

    def write(self, classifier: Classifier, files: Sequence[Path]) -> Shapes:
        """Write the tensor and what it stands for."""
        head = classifier.head
        if head.image_shift is not None:
            raise OptionError(
                "an open_clip head multiplies normalised features and so cannot hold this run's residual of the image "
                "side, which is added before they are normalised; export to .safetensors or .onnx"
            )
        columns = torch.from_numpy(directions(head)).T.contiguous()  # (D, C)
        torch.save(columns, files[0])
        sentence = (
            "probabilities = softmax(logit_scale / temperature * encode_image(images, normalize=True) @ "
            "torch.load(file, weights_only=True)), in the order of classnames"
        )
        files[1].write_text(json.dumps(facts(classifier, sentence), indent=2, allow_nan=False) + "\n")
        return {"tensor": tuple(columns.shape)}

    def ask(self, files: Sequence[Path], inputs: np.ndarray) -> np.ndarray:
        """Return probabilities (N, C) of un-normalised image features (N, D); normalising them is the loop's part."""
        columns = torch.load(files[0], weights_only=True).numpy()
        said = json.loads(files[1].read_text())
        return _softmax(inputs, columns, said["logit_scale"] / said["temperature"])

    def usage(self, classifier: Classifier, file: Path) -> tuple[str, ...]:
        """Return the loop of zero-shot evaluation."""
        return (
            "import torch",
            f'classifier = torch.load("{file.name}", weights_only=True)  # {tuple(reversed(classifier.base.shape))}',
            f"logits = {classifier.provenance.logit_scale!r} * model.encode_image(images, normalize=True) @ classifier",
            f"probabilities = (logits / {classifier.temperature!r}).softmax(dim=-1)",
        )


def _sentence(head: Head) -> str:
    """Return how a safetensors head is used."""
    moved = "image_features" if head.image_shift is None else "image_features + image_shift"
    return (
        f"probabilities = softmax(logit_scale / temperature * normalise({moved}) @ weights.T), of image_features as "
        "encode_image returns them, un-normalised"
    )


def _softmax(features: np.ndarray, columns: np.ndarray, scale: float) -> np.ndarray:
    """Return softmax(scale * <f/|f|, w>) (N, C) of features (N, D) and columns (D, C), exactly: in float64."""
    exact = features.astype(np.float64)
    logits = scale * (exact / np.linalg.norm(exact, axis=1, keepdims=True)) @ columns
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    found: np.ndarray = exponentials / exponentials.sum(axis=1, keepdims=True)
    return found
