"""What every export format has: how it is written, read and used, and the metadata that goes with it.

Axes: N inputs, C classes, D embedding.
"""

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from taskres_cache.datasets.sampling import shots_json
from taskres_cache.heads.head import Head
from taskres_cache.heads.kinds import CosineHead
from taskres_cache.runs.classifier import Classifier
from taskres_cache.system.version import __version__

FORMAT, FORMAT_VERSION = "taskres-head", 1
DIGEST = "content_sha256"  # in the metadata, of all that the files hold

Shapes = dict[str, tuple[int | str, ...]]  # name of a tensor, input or output -> shape; a letter for a free size


class Form(Protocol):
    """One export format."""

    @property
    def name(self) -> str:
        """Name of the format, as the user types it."""

    @property
    def tolerance(self) -> float:
        """Largest rounding error of its probabilities for a scale of 100, see `comparison.tolerance_at`."""

    def files(self, file: Path) -> tuple[Path, ...]:
        """Return all files that the format writes for `file`, which comes first."""

    def write(self, classifier: Classifier, files: Sequence[Path]) -> Shapes:
        """Write the files and return their shapes; raises OptionError if the format cannot express the classifier."""

    def probabilities(self, files: Sequence[Path], inputs: np.ndarray) -> np.ndarray:
        """Return probabilities (N, C) of inputs, computed from nothing but the files."""

    def usage(self, classifier: Classifier, file: Path) -> tuple[str, ...]:
        """Return lines of Python that use the file."""


def unit_weights(head: CosineHead) -> np.ndarray:
    """Return the weights (C, D) of a head, float32, each row of length 1."""
    exact = head.weights.numpy().astype(np.float64)
    unit: np.ndarray = exact / np.linalg.norm(exact, axis=1, keepdims=True)
    return unit.astype(np.float32)


def cosine_scale(classifier: Classifier) -> float:
    """Return the factor of the cosines in the softmax: logit scale / temperature."""
    return classifier.provenance.logit_scale / classifier.temperature


def metadata(classifier: Classifier, how_to_use: str) -> dict[str, Any]:
    """Return what is stored with every export: class names, scale, temperature, provenance and a line on how to use it.

    Parameters
    ----------
    classifier : Classifier
        The classifier of the run.
    how_to_use : str
        The formula from inputs to probabilities.
    """
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
        **_of_kind(classifier.head),
        "dataset": source.dataset,
        "backbone": source.backbone,
        "pretrained": source.pretrained,
        "model_config": source.model_config,
        "weights_sha256": source.weights_sha256,
        "preprocess": source.preprocess,
        "method": classifier.method,
        "shots": shots_json(classifier.shots),
        "seed": classifier.seed,
        "how_to_use": how_to_use,
    }


def _of_kind(head: Head) -> dict[str, Any]:
    """Return the kind and settings of a head that is no cosine classifier, which every reader of format 1 expects."""
    return {} if isinstance(head, CosineHead) else {"kind": head.kind, **head.settings()}


def as_text(values: dict[str, Any]) -> dict[str, str]:
    """Return metadata as safetensors and ONNX store it: strings unchanged, everything else as JSON."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}


def content_digest(tensors: Mapping[str, np.ndarray], values: Mapping[str, str]) -> str:
    """Return the SHA-256 of tensors and of all metadata but the digest."""
    kinds = [(name, str(tensors[name].dtype), tensors[name].shape) for name in sorted(tensors)]
    digest = sha256(json.dumps([kinds, sorted(pair for pair in values.items() if pair[0] != DIGEST)]).encode())
    for name in sorted(tensors):
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return digest.hexdigest()


def refuse_changed(values: Mapping[str, Any], digest: str) -> None:
    """Raise ValueError if the digest in the metadata of an export is not `digest`, that of what the file holds."""
    if values.get(DIGEST) != digest:
        raise ValueError(f"its {DIGEST} is not that of its content: it was changed after it was written")
