"""The content of `metrics.json` as a type: the inputs of a run, its accuracies, losses and times.

Axes: C classes.
"""

import json
from dataclasses import MISSING, asdict, dataclass, field, fields
from hashlib import sha256
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import Meta

from taskres_cache.caches.contents import DEFAULT_PROMPTS
from taskres_cache.datasets.sampling import shots_json, shots_of
from taskres_cache.methods.choice import MethodRecord
from taskres_cache.methods.method import Trial
from taskres_cache.methods.search import Candidate
from taskres_cache.recipe import Recipe

UNCERTAINTY = ("accuracy_interval", "mean_class_accuracy", "mean_class_accuracy_interval", "against_zero_shot")
OMITTED_IF_NONE = ("base_tuning", "base_file", "chosen", "candidates", "record", "settings", "trials", *UNCERTAINTY)
DIGEST = "content_sha256"  # of all other fields of the file

Percent = Annotated[float, Meta(ge=0, le=100.001)]  # a mean of errors may exceed 100 by a rounding
Points = Annotated[float, Meta(ge=-100.001, le=100.001)]
Probability = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0, lt=2**53)]
Shots = Annotated[int, Meta(ge=1)] | Literal["all"]  # as in the file; in memory, `all` is ALL_SHOTS
Epochs = Annotated[int, Meta(ge=0, lt=2**31)]
Duration = Annotated[float, Meta(ge=0)]
Temperature = Annotated[float, Meta(gt=0)]
Sha256 = Annotated[str, Meta(pattern="^([0-9a-f]{64})?$")]  # empty in runs of earlier versions


@dataclass(frozen=True)
class Tuning:
    """How the projection of an enhanced base was tuned.

    Parameters
    ----------
    epoch_losses : tuple of float
        Mean training loss of each epoch.
    kept_epochs : int
        Number of epochs after which the projection was taken.
    """

    epoch_losses: tuple[float, ...]
    kept_epochs: Epochs


@dataclass(frozen=True)
class AgainstZeroShot:
    """A classifier compared with zero-shot on the same test images.

    Parameters
    ----------
    difference : float
        Accuracy above zero-shot in percentage points.
    interval : (float, float)
        Its 95 % interval.
    p_value : float
        Probability of a difference as large or larger by chance; the exact test of McNemar.
    """

    difference: Points
    interval: tuple[Points, Points]
    p_value: Probability


@dataclass(frozen=True)
class ImageCounts:
    """Number of images of each part; None in runs of earlier versions."""

    train: Count | None = None
    val: Count | None = None
    test: Count | None = None


@dataclass(frozen=True)
class Seconds:
    """Wall-clock seconds of each stage of a run; None in runs of earlier versions."""

    base: Duration | None = None
    fit: Duration | None = None
    evaluate: Duration | None = None


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """The metrics of one run, as in `metrics.json`. Accuracies and calibration errors are in percent.

    Fields with a default may be missing in runs of earlier versions.

    Parameters
    ----------
    dataset, backbone, pretrained, weights_sha256 : str
        Data set and checkpoint, as the cache records them.
    shots, seed : int
        The few-shot split.
    classes : {"all", "base", "new"}
        The classes of the data set that were used.
    method : str
        Name of the method; differs between recipes and sets of prompts that differ.
    prompts : str
        The cache's set of prompts whose text features were used, also for zero-shot.
    recipe : Recipe, optional
        How the residual was trained; None for other methods.
    record : MethodRecord, optional
        The method and its options; None for a task residual.
    alpha, epochs : float, int
        The values used, after any choice.
    cache : str
        Path of the cache file, as the user typed it.
    cache_from_run : str
        Path of the cache file relative to the run folder; empty if there is none, as between drives.
    versions : dict of str to str
        Version of each library.
    inputs_sha256 : str
        Digest of the text, training, validation and test features and the labels; equal inputs have equal digests.
    study_sha256 : str
        Digest of the inputs that are not of the few-shot split: classes, prompts, text, test images, checkpoint. Only
        runs with the same digest belong in one table.
    classifier_sha256 : str
        Digest of the content of `classifier.safetensors`.
    zero_shot_accuracy, base_accuracy, test_accuracy : float
        On the test images: the text classifier, the base, and base + residual. Of a cache without text the first is
        None, and the second too unless the base is that of a task residual.
    top5_accuracy, calibration_error, untempered_calibration_error : float
        On the test images, for base + residual; the calibration error with the temperature and without.
    accuracy_interval : (float, float), optional
        95 % interval of `test_accuracy`; None in runs of earlier versions, as the next three.
    mean_class_accuracy, mean_class_accuracy_interval : float, (float, float), optional
        Mean of the accuracies per class on the test images, and its 95 % interval.
    against_zero_shot : AgainstZeroShot, optional
        How much more accurate than zero-shot, and whether that may be chance.
    zero_shot_class_accuracies, class_accuracies : tuple of float or None, of length C
        On the test images of each class; None for a class without test images.
    zero_shot_val_accuracy, base_val_accuracy, val_accuracy : float or None
        On the validation images of the split; None if it has none.
    temperature : float
        Fitted on the validation images; divides the logits.
    base_tuning : Tuning, optional
        How an enhanced base was tuned.
    base_file : str, optional
        File that the base was read from.
    chosen, candidates : Candidate, tuple of Candidate, optional
        The combination chosen by validation accuracy, and everything that was tried.
    settings : dict of str to float, int or str, optional
        Hyper-parameters that another method chose, or computed by a rule.
    trials : tuple of Trial, optional
        What they were chosen from.
    epoch_losses : tuple of float
        Mean training loss of each epoch.
    kept_epochs : int
        Number of epochs after which the residual was taken.
    device : str
        Device of the training.
    images : ImageCounts
        Number of images of each part.
    seconds : Seconds
        Time of each stage.
    """

    dataset: str
    backbone: str
    pretrained: str
    weights_sha256: str = ""
    shots: int
    seed: int
    classes: Literal["all", "base", "new"] = "all"
    method: str
    prompts: str = DEFAULT_PROMPTS
    recipe: Recipe | None = None
    record: MethodRecord | None = None
    alpha: float | None = None
    epochs: Epochs | None = None
    cache: str = ""
    cache_from_run: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    inputs_sha256: Sha256 = ""
    study_sha256: Sha256 = ""
    classifier_sha256: Sha256 = ""
    zero_shot_accuracy: Percent | None
    base_accuracy: Percent | None = None
    test_accuracy: Percent
    accuracy_interval: tuple[Percent, Percent] | None = None
    mean_class_accuracy: Percent | None = None
    mean_class_accuracy_interval: tuple[Percent, Percent] | None = None
    against_zero_shot: AgainstZeroShot | None = None
    top5_accuracy: Percent | None = None
    calibration_error: Percent | None = None
    untempered_calibration_error: Percent | None = None
    zero_shot_class_accuracies: tuple[Percent | None, ...] | None = None
    class_accuracies: tuple[Percent | None, ...] | None = None
    zero_shot_val_accuracy: Percent | None = None
    base_val_accuracy: Percent | None = None
    val_accuracy: Percent | None = None
    temperature: Temperature | None = None
    base_tuning: Tuning | None = None
    base_file: str | None = None
    chosen: Candidate | None = None
    candidates: tuple[Candidate, ...] | None = None
    settings: dict[str, float | int | str] | None = None
    trials: tuple[Trial, ...] | None = None
    epoch_losses: tuple[float, ...] = ()
    kept_epochs: Epochs | None = None
    device: str = ""
    images: ImageCounts = field(default_factory=ImageCounts)
    seconds: Seconds = field(default_factory=Seconds)

    @property
    def base(self) -> str:
        """The kind of base, see `Recipe.base`."""
        return "regular" if self.recipe is None else self.recipe.base

    @property
    def how(self) -> Recipe | MethodRecord | None:
        """How the run was trained; None in runs of versions that did not record it."""
        return self.record if self.recipe is None else self.recipe

    @property
    def own_base_accuracy(self) -> float | None:
        """Test accuracy of the base; in runs of versions that had only the regular base, that of zero-shot."""
        return self.zero_shot_accuracy if self.base_accuracy is None else self.base_accuracy

    @property
    def images_per_class(self) -> float | None:
        """Mean number of training images per class; None in runs of versions that did not record it."""
        images, classes = self.images.train, len(self.class_accuracies or ())
        return images / classes if images is not None and classes else None

    def to_json(self) -> dict[str, Any]:
        """Return the metrics as plain values for JSON, in the order of the file; the last is a digest of the others."""
        values = asdict(self)
        plain = {name: value for name, value in values.items() if value is not None or name not in OMITTED_IF_NONE}
        recipe = None if self.recipe is None else self.recipe.as_dict()
        plain |= {
            "shots": shots_json(self.shots),
            "recipe": recipe,
            "images": _without_none(self.images),
            "seconds": _without_none(self.seconds),
        }
        text = json.dumps(plain, allow_nan=False)
        listed: dict[str, Any] = json.loads(text)  # tuples become lists, as in the file
        return {**listed, DIGEST: _digest(_fields_of(text.encode()))}

    @classmethod
    def from_json(cls, text: bytes) -> "Metrics":
        """Read metrics from the text of a file that holds what `to_json` returns.

        Raises
        ------
        ValueError
            A field is missing, of the wrong type or out of range, the recipe has fields that this version does not
            know, or the file was changed after it was written.
        OptionError
            A recipe that no fit can use.
        """
        raw = _fields_of(text)
        types = get_type_hints(cls, include_extras=True) | {"shots": Shots}
        absent = {name for name in ("images", "seconds") if name in raw and bytes(raw[name]) == b"null"}
        known = {name: types[name] for name in raw if name in types and name not in absent}
        required = {one.name for one in fields(cls) if one.default is MISSING and one.default_factory is MISSING}
        missing = sorted(required - set(raw))
        if missing:
            raise ValueError(f"has a wrong or missing field: no field {', '.join(missing)}")
        if "recipe" in known:
            _refuse_newer_recipe(raw["recipe"])
        values = {name: _decoded(name, raw[name], kind) for name, kind in known.items()}
        metrics = cls(**values | {"shots": shots_of(values["shots"])})
        _check_digest(raw)
        return metrics


def _fields_of(text: bytes) -> dict[str, msgspec.Raw]:
    """Return the fields of a JSON object, each as text: nothing is built before its type is known."""
    try:
        return msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError as error:
        kind = str(error).rpartition("got ")[2].strip("`").replace("array", "list")
        raise ValueError(f"holds a {kind}, expected a JSON object") from error
    except (msgspec.MsgspecError, RecursionError) as error:
        raise json.JSONDecodeError(str(error), "", 0) from error


def _check_digest(raw: dict[str, msgspec.Raw]) -> None:
    """Raise ValueError if the fields are not what was written; files of earlier versions have no digest."""
    others = {name: value for name, value in raw.items() if name != DIGEST}
    if len(others) == len(raw) and "classifier_sha256" not in raw:
        return
    if DIGEST not in raw or bytes(raw[DIGEST]) != f'"{_digest(others)}"'.encode():
        raise ValueError(f"was changed after it was written: its {DIGEST} is not that of its content")


def _digest(raw: dict[str, msgspec.Raw]) -> str:
    """Return the SHA-256 of fields, whatever white space is between them."""
    digest = sha256()
    for name, value in raw.items():
        digest.update(json.dumps(name).encode() + b":" + msgspec.json.format(bytes(value), indent=-1) + b",")
    return digest.hexdigest()


def _decoded(name: str, value: msgspec.Raw, kind: Any) -> Any:
    try:
        return msgspec.json.decode(value, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        reason, _, place = str(error).partition(" - at `$")
        raise ValueError(f"has a wrong or missing field: {reason} - at `$.{name}{place.rstrip('`')}`") from error


def _refuse_newer_recipe(value: msgspec.Raw) -> None:
    """Raise ValueError for a recipe with fields that this version does not know."""
    recipe = _decoded("recipe", value, dict[str, msgspec.Raw] | None) or {}
    unknown = sorted(set(recipe) - {known.name for known in fields(Recipe)})
    if unknown:
        raise ValueError(f"has a recipe of a newer version, with unknown fields {', '.join(unknown)[:200]}")


def _without_none(part: ImageCounts | Seconds) -> dict[str, Any]:
    return {name: value for name, value in asdict(part).items() if value is not None}
