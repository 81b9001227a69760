"""A fitted run on disk: a folder with `classifier.safetensors` and `metrics.json`.

Axes: N images, C classes, D embedding, W width of the text tower.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from html import escape
from json import JSONDecodeError
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from taskres_cache.caches.contents import cache_path
from taskres_cache.datasets.sampling import shots_text
from taskres_cache.errors import OptionError, RunError
from taskres_cache.methods.choice import MethodRecord
from taskres_cache.recipe import Recipe
from taskres_cache.runs.classifier import Classifier
from taskres_cache.runs.classifier_file import as_safetensors, read_safetensors, recorded_digest
from taskres_cache.runs.finding import CLASSIFIER_FILE, METRICS_FILE, find_run
from taskres_cache.runs.metrics import Metrics
from taskres_cache.runs.scores import ImageHits
from taskres_cache.system.files import replaced

if TYPE_CHECKING:
    from taskres_cache.runs.live.pictures import Picture
    from taskres_cache.runs.live.predictions import Predictions
    from taskres_cache.runs.live.predictor import Predictor


@dataclass(frozen=True)
class EncoderChoice:
    """How the encoder of a run is loaded; see `load_encoder`.

    Parameters
    ----------
    pretrained : str, optional
        Path of the checkpoint, for runs made with a local file.
    device, precision : str, optional
        Where and in which precision it computes; chosen automatically by default.
    """

    pretrained: str | None = None
    device: str = "auto"
    precision: str = "auto"


@dataclass(frozen=True)
class Run:
    """A fitted run on disk.

    Parameters
    ----------
    folder : Path
        The run folder.
    metrics : Metrics
        The content of `metrics.json`.
    kept : Path, optional
        Folder of a run of other inputs, which this run would have replaced; set by a fit.
    tested : ImageHits, optional
        Which test images are classified correctly; set by a fit, and not stored.
    encoder : EncoderChoice, optional
        How `predict` and `embed` load the encoder.
    """

    folder: Path
    metrics: Metrics
    kept: Path | None = None
    tested: ImageHits | None = field(default=None, compare=False, repr=False)
    encoder: EncoderChoice = EncoderChoice()
    _lock: Any = field(default_factory=Lock, init=False, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs; it loads its own encoder."""
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_predictor")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=Lock())

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

    @property
    def predictor(self) -> "Predictor":
        """The classifier with its encoder, which is loaded when first used; for any number of threads.

        Raises
        ------
        RunError, OptionError, WeightsError
            The encoder could not be loaded, see `load_encoder`.
        """
        from taskres_cache.runs.encoder import load_encoder  # seconds, for torch's and open_clip's models
        from taskres_cache.runs.live.predictor import Predictor

        with self._lock:
            if "_predictor" not in vars(self):
                choice = self.encoder
                backbone = load_encoder(self.classifier, choice.pretrained, choice.device, choice.precision)
                vars(self)["_predictor"] = Predictor(self.classifier, backbone)
            predictor: Predictor = vars(self)["_predictor"]
            return predictor

    def predict(self, pictures: "Picture | Iterable[Picture]", with_features: bool = False) -> "Predictions":
        """Predict the classes of one picture or many; see `Predictor.predict`."""
        return self.predictor.predict(pictures, with_features)

    def embed(self, pictures: "Picture | Iterable[Picture]") -> np.ndarray:
        """Return the un-normalised image features (N, D) of one picture or many; see `Predictor.embed`."""
        return self.predictor.embed(pictures)

    def _repr_html_(self) -> str:
        """Return what the run is and how good it is, as an HTML table."""
        shown = {
            "run": self.folder,
            "method": self.metrics.method,
            "data set": self.metrics.dataset,
            "encoder": f"{self.metrics.backbone} ({self.metrics.pretrained})",
            "shots, seed": f"{shots_text(self.metrics.shots)}, {self.metrics.seed}",
            "test accuracy": f"{self.metrics.test_accuracy:.2f} %",
            "zero-shot": f"{self.metrics.zero_shot_accuracy:.2f} %",
        }
        rows = (f"<tr><th>{name}</th><td>{escape(str(value))}</td></tr>" for name, value in shown.items())
        return f"<table>{''.join(rows)}</table>"


def load_run(path: str | Path, pretrained: str | None = None, device: str = "auto", precision: str = "auto") -> Run:
    """Load a fitted run.

    Parameters
    ----------
    path : str or Path
        A run folder, its `classifier.safetensors`, or a folder above a single run.
    pretrained, device, precision : str, optional
        How `predict` and `embed` load the run's encoder, see `load_encoder`: the checkpoint file, if the run was made
        with a local one; the device; the precision.

    Returns
    -------
    Run
        The run: `predict` and `embed` for pictures, `classify` and `probabilities` for image features, `metrics`,
        `classifier`.

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
    >>> import numpy as np
    >>> run.predict([np.zeros((8, 8, 3), np.uint8), np.full((20, 10, 3), 255, np.uint8)]).probabilities.shape
    (2, 10)
    """
    folder = find_run(Path(path))
    run = Run(folder, read_metrics(folder), encoder=EncoderChoice(pretrained, device, precision))
    run.classifier  # noqa: B018 # read now, so that a damaged file raises here
    return run


def write_run(folder: Path, classifier: Classifier, metrics: Metrics) -> Metrics:
    """Write a run, each file atomically, and return its metrics with the digest of the classifier.

    A process killed between the two files leaves a pair whose digests differ, which no reader accepts.

    Raises
    ------
    StorageError
        The folder is not writable.
    """
    content, digest = as_safetensors(classifier, metrics.inputs_sha256)
    metrics = replace(metrics, classifier_sha256=digest)
    with replaced(folder / CLASSIFIER_FILE) as temporary:
        temporary.write_bytes(content)
    with replaced(folder / METRICS_FILE) as temporary:
        temporary.write_text(json.dumps(metrics.to_json(), indent=2, allow_nan=False) + "\n")
    return metrics


def read_classifier(folder: Path) -> Classifier:
    """Return the classifier of a run folder or its file.

    Raises
    ------
    RunError
        The file is missing or not intact, or `metrics.json` next to it belongs to another fit.
    """
    file = folder if folder.is_file() else folder / CLASSIFIER_FILE
    if not file.is_file():
        raise RunError(f"{folder} holds no {CLASSIFIER_FILE}; pass a run folder that `taskres fit` wrote")
    stored = read_safetensors(file)
    if file.name == CLASSIFIER_FILE and (metrics := _metrics_if_valid(file.parent)) is not None:
        _refuse_mixture(file.parent, stored.content_sha256, metrics.classifier_sha256)
    return stored.classifier


def read_metrics(folder: Path) -> Metrics:
    """Return the metrics of a run folder.

    Raises
    ------
    RunError
        The file is missing or not valid, or the classifier next to it is damaged or belongs to another fit.
    """
    metrics = _parsed_metrics(folder)
    if (folder / CLASSIFIER_FILE).is_file():
        _refuse_mixture(folder, recorded_digest(folder / CLASSIFIER_FILE), metrics.classifier_sha256)
    return metrics


def _parsed_metrics(folder: Path) -> Metrics:
    """Return the content of `metrics.json`; raises RunError if it is missing or not valid."""
    file = folder / METRICS_FILE
    try:
        return Metrics.from_json(file.read_bytes())
    except (OSError, JSONDecodeError) as error:
        raise RunError(f"could not read {file} ({error}); fit the run again") from error
    except (OptionError, ValueError) as error:
        raise RunError(f"{file} {' '.join(str(error).split())[:300]}; fit the run again") from error


def _metrics_if_valid(folder: Path) -> Metrics | None:
    """Return the metrics of a run folder; None if they are missing or not valid: a classifier is usable alone."""
    try:
        return _parsed_metrics(folder)
    except RunError:
        return None


def _refuse_mixture(folder: Path, of_classifier: str, in_metrics: str) -> None:
    """Raise RunError if the classifier's digest is not the one in `metrics.json`; earlier versions have neither."""
    if of_classifier != in_metrics:
        raise RunError(
            f"{folder / CLASSIFIER_FILE} and {folder / METRICS_FILE} are of different fits (a fit was interrupted, or "
            "one of the files was copied); fit the run again, or remove the folder"
        )


def recorded_inputs(folder: Path) -> list[tuple[str, str | None, Recipe | MethodRecord | None]]:
    """Return the inputs that the files of a run folder record, one entry per intact file.

    Returns
    -------
    list of tuple
        (inputs_sha256, study_sha256, how it was trained). The classifier does not record `study_sha256`, and neither
        file of an earlier version does; files of earlier versions without inputs_sha256 have no entry.
    """
    metrics = _metrics_if_valid(folder)
    found: list[tuple[str, str | None, Recipe | MethodRecord | None]]
    found = [] if metrics is None else [(metrics.inputs_sha256, metrics.study_sha256 or None, metrics.how)]
    try:
        stored = read_safetensors(folder / CLASSIFIER_FILE)
        found.append((stored.inputs_sha256, None, stored.classifier.how))
    except RunError:
        pass
    return [entry for entry in found if entry[0]]


def own_cache(folder: Path, classifier: Classifier, cache_dir: Path) -> Path:
    """Return the cache that a run was fitted on, from any working directory.

    That is the recorded path, relative to the run folder, to the working directory or to a folder above the run; or
    else its default path below `cache_dir`.
    """
    metrics, provenance = read_metrics(folder), classifier.provenance
    found = found_from(folder, metrics.cache_from_run, metrics.cache)
    return found or cache_path(cache_dir, provenance.backbone, provenance.pretrained, provenance.dataset)


def found_from(folder: Path, from_folder: str, as_typed: str) -> Path | None:
    """Return the file or folder that a run or cache records, if it exists.

    Parameters
    ----------
    folder : Path
        Folder of the run or cache.
    from_folder, as_typed : str
        Its path relative to `folder`, and relative to a working directory of the past, which is probably the present
        one or a folder above `folder`; each may be empty.
    """
    typed = Path(as_typed) if as_typed else None
    if from_folder and _exists(folder / from_folder):
        linked = (folder / from_folder).resolve()
        return typed if typed is not None and _exists(typed) and typed.resolve() == linked else linked
    if typed is None:
        return None
    return next(
        (path for path in (typed, *(above / typed for above in folder.resolve().parents)) if _exists(path)), None
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False
