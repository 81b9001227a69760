"""What a fit leaves: a folder with `classifier.safetensors` and `metrics.json`.

Axes: C classes, D embedding.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from taskres_cache.errors import RunError
from taskres_cache.files import replaced
from taskres_cache.recipe import Recipe

CLASSIFIER_FILE = "classifier.safetensors"
METRICS_FILE = "metrics.json"


@dataclass(frozen=True)
class Classifier:
    """A fitted task residual with all that is needed to use it.

    Parameters
    ----------
    base, residual : (C, D) float32, un-normalised.
    classnames : (C,) in the rows' order.
    alpha, logit_scale : the weights are `base + alpha * residual`, the logits `logit_scale * cosine`.
    dataset, backbone, pretrained, model_config, weights_sha256, precision, classnames_form, templates, preprocess :
        where the features came from, as in the cache's provenance.
    recipe : how it was trained.
    shots, seed : the few-shot split.
    """

    base: np.ndarray
    residual: np.ndarray
    classnames: tuple[str, ...]
    alpha: float
    logit_scale: float
    dataset: str
    backbone: str
    pretrained: str
    model_config: str
    weights_sha256: str
    precision: str
    classnames_form: str
    templates: tuple[str, ...]
    preprocess: dict[str, Any]
    recipe: Recipe
    shots: int
    seed: int

    @property
    def weights(self) -> np.ndarray:
        """The un-normalised classifier `base + alpha * residual` (C, D)."""
        return self.base + self.alpha * self.residual


def run_folder(out: Path, classifier: Classifier) -> Path:
    """Return the folder of a run; everything that tells fits of one cache apart is in its name."""
    checkpoint = f"{classifier.backbone}-{classifier.pretrained}"
    split = Path(f"shots_{classifier.shots}") / f"seed_{classifier.seed}"
    return out / checkpoint / classifier.dataset / classifier.recipe.method_name() / split


def write_run(folder: Path, classifier: Classifier, metrics: dict[str, Any]) -> None:
    """Write a run, each file whole or not at all; raises StorageError when the folder cannot be written."""
    metadata = {
        name: value if isinstance(value, str) else json.dumps(value) for name, value in _plain(classifier).items()
    }
    with replaced(folder / CLASSIFIER_FILE) as temporary:
        temporary.write_bytes(save({"base": classifier.base, "residual": classifier.residual}, metadata))
    with replaced(folder / METRICS_FILE) as temporary:
        temporary.write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n")


def read_classifier(folder: Path) -> Classifier:
    """Return the classifier of a run folder (or of its file); raises RunError when it is missing or not one of ours."""
    file = folder if folder.is_file() else folder / CLASSIFIER_FILE
    if not file.is_file():
        raise RunError(f"{folder} holds no {CLASSIFIER_FILE}; pass a run folder that `taskres fit` wrote")
    try:
        with safe_open(file, framework="numpy") as stored:
            tensors = {name: stored.get_tensor(name) for name in ("base", "residual")}
            return _from_metadata(tensors, stored.metadata() or {})
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise RunError(f"{file} is not an intact run ({' '.join(str(error).split())}); fit it again") from error


def read_metrics(folder: Path) -> dict[str, Any]:
    """Return the metrics of a run folder; raises RunError when they are missing or no JSON."""
    file = folder / METRICS_FILE
    try:
        metrics: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read ({error}); fit the run again") from error
    return metrics


def own_cache(folder: Path) -> Path:
    """Return the cache that a run was fitted on, as its metrics name it."""
    return Path(read_metrics(folder)["cache"])


def find_runs(path: Path) -> list[Path]:
    """Return the run folders at or below a path, by shots, then seed; raises RunError when there is none."""
    if path.is_file():
        return [path.parent]
    found = {file.parent for file in path.rglob(CLASSIFIER_FILE)}
    if not found:
        raise RunError(f"no {CLASSIFIER_FILE} at or below {path}; pass a run folder that `taskres fit` wrote")
    return sorted(found, key=lambda folder: [_as_number(part) for part in folder.parts])


def _as_number(part: str) -> tuple[str, int]:
    """Return a folder's name so that `shots_16` comes after `shots_8`."""
    word, _, number = part.rpartition("_")
    return (word, int(number)) if number.isdigit() else (part, 0)


def _plain(classifier: Classifier) -> dict[str, Any]:
    """Return all but the tensors as plain values."""
    values = {name: value for name, value in vars(classifier).items() if name not in ("base", "residual")}
    return {**values, "recipe": classifier.recipe.as_dict(), "format": "taskres-run", "format_version": "1"}


def _from_metadata(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> Classifier:
    text = ("dataset", "backbone", "pretrained", "model_config", "weights_sha256", "precision", "classnames_form")
    values: dict[str, Any] = {name: metadata[name] for name in text}
    values |= {name: json.loads(metadata[name]) for name in ("alpha", "logit_scale", "shots", "seed", "preprocess")}
    values |= {name: tuple(json.loads(metadata[name])) for name in ("classnames", "templates")}
    base, residual, classes = tensors["base"], tensors["residual"], len(values["classnames"])
    if not base.shape == residual.shape == (classes, base.shape[-1]):
        raise ValueError(f"base {base.shape}, residual {residual.shape}, {classes} class names")
    return Classifier(base=base, residual=residual, **values, recipe=Recipe(**json.loads(metadata["recipe"])))
