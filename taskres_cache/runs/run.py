"""What a fit leaves: a folder with `classifier.safetensors` and `metrics.json`.

Axes: C classes, D embedding, W width of the text tower.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from taskres_cache.caches.contents import cache_path
from taskres_cache.caches.provenance import Provenance
from taskres_cache.errors import OptionError, RunError
from taskres_cache.recipe import Recipe
from taskres_cache.system.files import replaced

CLASSIFIER_FILE = "classifier.safetensors"
METRICS_FILE = "metrics.json"
JSON_FIELDS = ("classnames", "templates", "alpha", "shots", "seed", "class_ids", "half", "temperature")  # of metadata
TENSORS, OPTIONAL_TENSORS = ("base", "residual"), ("image_residual", "projection")
UNSAID = {"class_ids": "null", "half": '"all"', "temperature": "1.0"}  # what runs of earlier versions do not say


@dataclass(frozen=True)
class Head:
    """A classifier as it is used: logits are `logit_scale / temperature * <f/|f|, w/|w|>`.

    Parameters
    ----------
    weights : (C, D) un-normalised.
    image_shift : (D,) what is added to un-normalised image features, if anything.
    temperature : that makes probabilities believable; it changes no rank.
    """

    weights: np.ndarray
    image_shift: np.ndarray | None = None
    temperature: float = 1.0


@dataclass(frozen=True)
class Classifier:
    """A fitted task residual with all that is needed to use it.

    Parameters
    ----------
    base, residual : (C, D) float32, un-normalised; a residual of the image side alone leaves zeros here.
    classnames : (C,) in the rows' order.
    templates : (T,) prompts that the base was made from.
    alpha : the weights are `base + alpha * residual`; the logits `provenance.logit_scale * cosine`.
    recipe : how it was trained.
    shots, seed : the few-shot split.
    provenance : where the features came from.
    class_ids : (C,) what classes go by across data sets; None when that is their names.
    half : of the data set's classes that it was fitted on: all, base or new.
    image_residual : (D,) float32; `alpha * image_residual` is added to every image feature before it is normalised;
        None where the image side is left alone.
    projection : (W, D) float32, the text projection that the base was made with; None where that is the checkpoint's.
    temperature : of the logits, fitted on the split's val images; 1 where it has none.
    """

    base: np.ndarray
    residual: np.ndarray
    classnames: tuple[str, ...]
    templates: tuple[str, ...]
    alpha: float
    recipe: Recipe
    shots: int
    seed: int
    provenance: Provenance
    class_ids: tuple[str, ...] | None = None
    half: str = "all"
    image_residual: np.ndarray | None = None
    projection: np.ndarray | None = None
    temperature: float = 1.0

    @property
    def head(self) -> Head:
        """The classifier as it is used: `base + alpha * residual`, what it adds to image features, its temperature."""
        shift = None if self.image_residual is None else self.alpha * self.image_residual
        return Head(self.base + self.alpha * self.residual, shift, self.temperature)


def run_folder(out: Path, source: Provenance, recipe: Recipe, half: str, shots: int, seed: int) -> Path:
    """Return the folder of a run; everything that tells fits of one cache apart is in its name."""
    method = recipe.method_name() + ("" if half == "all" else f"-{half}-classes")
    fits = checkpoint_folder(out, source) / source.dataset / method
    return fits / f"shots_{shots}" / f"seed_{seed}"


def checkpoint_folder(above: Path, source: Provenance) -> Path:
    """Return the folder for one checkpoint below that of all runs, or of all caches."""
    return above / f"{source.backbone}-{source.pretrained}"


def write_run(folder: Path, classifier: Classifier, metrics: dict[str, Any]) -> None:
    """Write a run, each file whole or not at all; raises StorageError when the folder cannot be written."""
    with replaced(folder / CLASSIFIER_FILE) as temporary:
        tensors = {name: getattr(classifier, name) for name in (*TENSORS, *OPTIONAL_TENSORS)}
        present = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items() if tensor is not None}
        temporary.write_bytes(save(present, _as_metadata(classifier)))
    with replaced(folder / METRICS_FILE) as temporary:
        temporary.write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n")


def read_classifier(folder: Path) -> Classifier:
    """Return the classifier of a run folder (or of its file); raises RunError when it is missing or not one of ours."""
    file = folder if folder.is_file() else folder / CLASSIFIER_FILE
    if not file.is_file():
        raise RunError(f"{folder} holds no {CLASSIFIER_FILE}; pass a run folder that `taskres fit` wrote")
    try:
        with safe_open(file, framework="numpy") as stored:
            optional = [name for name in OPTIONAL_TENSORS if name in stored.keys()]  # noqa: SIM118
            tensors = {name: stored.get_tensor(name) for name in (*TENSORS, *optional)}
            return _from_metadata(tensors, stored.metadata() or {})
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise RunError(f"{file} is not an intact run ({' '.join(str(error).split())}); fit it again") from error


def read_metrics(folder: Path) -> dict[str, Any]:
    """Return the metrics of a run folder; raises RunError when they are missing or not what a fit leaves."""
    file = folder / METRICS_FILE
    try:
        metrics = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read ({error}); fit the run again") from error
    if not isinstance(metrics, dict):
        raise RunError(f"{file} holds a {type(metrics).__name__}, expected a JSON object; fit the run again")
    return metrics


def own_cache(folder: Path, classifier: Classifier, cache_dir: Path) -> Path:
    """Return the cache that a run was fitted on: where its metrics say, else where it belongs below `cache_dir`."""
    recorded = Path(str(read_metrics(folder).get("cache", "")))
    source = classifier.provenance
    return recorded if recorded.is_file() else cache_path(cache_dir, source.backbone, source.pretrained, source.dataset)


def find_runs(path: Path) -> list[Path]:
    """Return the run folders at or below a path, by shots, then seed; raises RunError when there is none."""
    if path.is_file():
        return [path.parent]
    found = {file.parent for file in path.rglob(CLASSIFIER_FILE)}
    if not found:
        raise RunError(f"no {CLASSIFIER_FILE} at or below {path}; pass a run folder that `taskres fit` wrote")
    return sorted(found, key=lambda folder: [_as_number(part) for part in folder.parts])


def find_run(path: Path) -> Path:
    """Return the one run that a path means: its folder, its classifier's file, or a folder above it.

    Raises
    ------
    OptionError : there are several.
    RunError : there is none.
    """
    if path.is_file() or (path / CLASSIFIER_FILE).is_file():
        return path.parent if path.name == CLASSIFIER_FILE else path
    folders = find_runs(path)
    if len(folders) > 1:
        raise OptionError(f"{path} holds {len(folders)} runs; pass one of them, such as {folders[-1]}")
    return folders[0]


def _as_number(part: str) -> tuple[str, int]:
    """Return a folder's name so that `shots_16` comes after `shots_8`."""
    word, _, number = part.rpartition("_")
    return (word, int(number)) if number.isdigit() else (part, 0)


def _as_metadata(classifier: Classifier) -> dict[str, str]:
    """Return all but the tensors as text; the provenance's recipe, the data set's own, gives way to the run's."""
    plain = classifier.provenance.as_plain()
    plain |= {"format": "taskres-run", "format_version": "1", "recipe": json.dumps(classifier.recipe.as_dict())}
    plain |= {name: json.dumps(getattr(classifier, name)) for name in JSON_FIELDS}
    return {name: str(value) for name, value in plain.items()}


def _from_metadata(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> Classifier:
    provenance = Provenance.from_plain(metadata)
    said = {**UNSAID, **metadata}
    classnames, templates, alpha, shots, seed, class_ids, half, temperature = (
        json.loads(said[name]) for name in JSON_FIELDS
    )
    base, residual = tensors["base"], tensors["residual"]
    if not base.shape == residual.shape == (len(classnames), base.shape[-1]):
        raise ValueError(f"base {base.shape}, residual {residual.shape}, {len(classnames)} class names")
    image_residual, projection = (tensors.get(name) for name in OPTIONAL_TENSORS)
    if image_residual is not None and image_residual.shape != base.shape[1:]:
        raise ValueError(f"image_residual {image_residual.shape}, base {base.shape}")
    recipe = Recipe(**provenance.recipe)
    class_ids = None if class_ids is None else tuple(class_ids)
    names = tuple(classnames), tuple(templates)
    fitted = Classifier(base, residual, *names, alpha, recipe, shots, seed, provenance, class_ids, half)
    return replace(fitted, image_residual=image_residual, projection=projection, temperature=temperature)
