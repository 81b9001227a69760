"""A fitted run on disk: a folder with `classifier.safetensors` and `metrics.json`.

Axes: N images, C classes, D embedding, W width of the text tower.
"""

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from taskres_cache.caches.contents import cache_path
from taskres_cache.caches.provenance import Provenance
from taskres_cache.errors import OptionError, RunError
from taskres_cache.heads import Head
from taskres_cache.recipe import Recipe
from taskres_cache.runs.finding import CLASSIFIER_FILE, METRICS_FILE, find_run
from taskres_cache.runs.metrics import Metrics
from taskres_cache.system.files import replaced

JSON_FIELDS = ("classnames", "templates", "alpha", "shots", "seed", "class_ids", "half", "temperature")  # of metadata
TENSORS, OPTIONAL_TENSORS = ("base", "residual"), ("image_residual", "projection")
DEFAULTS = {"class_ids": "null", "half": '"all"', "temperature": "1.0"}  # missing in runs of earlier versions


@dataclass(frozen=True)
class Classifier:
    """A fitted task residual with everything needed to use it.

    Parameters
    ----------
    base, residual : ndarray of shape (C, D), float32
        Un-normalised. The residual is zero if only the image side was trained.
    classnames : tuple of str
        One per row.
    templates : tuple of str
        Prompt templates of the base.
    alpha : float
        The weights are `base + alpha * residual`.
    recipe : Recipe
        How the residual was trained.
    shots, seed : int
        The few-shot split.
    provenance : Provenance
        Where the features came from; its `logit_scale` multiplies the cosines.
    class_ids : tuple of str, optional
        Identifiers that match classes across data sets; None to match by name.
    half : {"all", "base", "new"}
        The classes of the data set that were used.
    image_residual : ndarray of shape (D,), float32, optional
        `alpha * image_residual` is added to every image feature before normalising; None if not trained.
    projection : ndarray of shape (W, D), float32, optional
        The tuned text projection of the base; None if it is the checkpoint's.
    temperature : float, default 1
        Divides the logits; fitted on the validation images of the split.
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
        """The model: weights, image shift, logit scale and temperature."""
        scale = self.provenance.logit_scale
        return Head.of_arrays(self.base, scale, self.residual, self.image_residual, self.alpha, self.temperature)


@dataclass(frozen=True)
class Run:
    """A fitted run on disk.

    Parameters
    ----------
    folder : Path
        The run folder.
    metrics : Metrics
        The content of `metrics.json`.
    """

    folder: Path
    metrics: Metrics

    @cached_property
    def classifier(self) -> Classifier:
        """The classifier, read when first used; raises RunError if its file is not intact."""
        return read_classifier(self.folder)

    def probabilities(self, image_features: np.ndarray) -> np.ndarray:
        """Return calibrated probabilities (N, C), float32, of un-normalised image features (N, D)."""
        features = torch.from_numpy(np.ascontiguousarray(image_features, np.float32))
        probabilities: np.ndarray = self.classifier.head.probabilities(features).numpy()
        return probabilities

    def classify(self, image_features: np.ndarray) -> list[str]:
        """Return the predicted class name of each un-normalised image feature (N, D)."""
        return [self.classifier.classnames[row] for row in self.probabilities(image_features).argmax(axis=1)]


def load_run(path: str | Path) -> Run:
    """Load a fitted run.

    Parameters
    ----------
    path : str or Path
        A run folder, its `classifier.safetensors`, or a folder above a single run.

    Returns
    -------
    Run
        The run, with `metrics`, `classifier`, and `classify` and `probabilities` for image features.

    Raises
    ------
    RunError
        There is no run at the path, or one of its files is damaged.
    OptionError
        There are several runs below the path.

    Examples
    --------
    >>> from taskres_cache import FeatureCache, load_run
    >>> run = load_run("runs/glyph-clip-bundled/digits/taskres-regular-alpha2/shots_16/seed_1")
    >>> run.metrics.shots, round(run.metrics.test_accuracy, 2)
    (16, 98.05)
    >>> image_features, labels = FeatureCache("cache/glyph-clip-bundled/digits.h5").test()
    >>> run.classify(image_features[:3])
    ['0', '0', '0']
    >>> run.probabilities(image_features).shape
    (359, 10)
    """
    folder = find_run(Path(path))
    run = Run(folder, read_metrics(folder))
    run.classifier  # noqa: B018 # read now, so that a damaged file raises here
    return run


def write_run(folder: Path, classifier: Classifier, metrics: Metrics) -> None:
    """Write a run, each file atomically; raise StorageError if the folder is not writable."""
    with replaced(folder / CLASSIFIER_FILE) as temporary:
        tensors = {name: getattr(classifier, name) for name in (*TENSORS, *OPTIONAL_TENSORS)}
        present = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items() if tensor is not None}
        temporary.write_bytes(save(present, _as_metadata(classifier)))
    with replaced(folder / METRICS_FILE) as temporary:
        temporary.write_text(json.dumps(metrics.to_json(), indent=2, allow_nan=False) + "\n")


def read_classifier(folder: Path) -> Classifier:
    """Return the classifier of a run folder or its file; raise RunError if it is missing or not intact."""
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


def read_metrics(folder: Path) -> Metrics:
    """Return the metrics of a run folder; raise RunError if the file is missing or not valid."""
    file = folder / METRICS_FILE
    try:
        stored = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"could not read {file} ({error}); fit the run again") from error
    try:
        return Metrics.from_json(stored)
    except (OptionError, TypeError, ValueError) as error:
        raise RunError(f"{file} {error}; fit the run again") from error


def own_cache(folder: Path, classifier: Classifier, cache_dir: Path) -> Path:
    """Return the cache that a run was fitted on: the recorded path, or else its default path below `cache_dir`."""
    recorded, provenance = Path(read_metrics(folder).cache), classifier.provenance
    if recorded.is_file():
        return recorded
    return cache_path(cache_dir, provenance.backbone, provenance.pretrained, provenance.dataset)


def _as_metadata(classifier: Classifier) -> dict[str, str]:
    """Return everything but the tensors as text; `recipe` is that of the run, not of the data set."""
    plain = classifier.provenance.as_plain()
    plain |= {"format": "taskres-run", "format_version": "1", "recipe": json.dumps(classifier.recipe.as_dict())}
    plain |= {name: json.dumps(getattr(classifier, name)) for name in JSON_FIELDS}
    return {name: str(value) for name, value in plain.items()}


def _from_metadata(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> Classifier:
    provenance = Provenance.from_plain(metadata)
    stored = {**DEFAULTS, **metadata}
    classnames, templates, alpha, shots, seed, class_ids, half, temperature = (
        json.loads(stored[name]) for name in JSON_FIELDS
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
