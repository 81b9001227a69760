"""The content of `metrics.json` as a type: the inputs of a run, its accuracies, losses and times.

Axes: C classes.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import msgspec

from taskres_cache.methods.search import Candidate
from taskres_cache.recipe import Recipe

OMITTED_IF_NONE = ("base_tuning", "base_file", "chosen", "candidates")


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
    kept_epochs: int


@dataclass(frozen=True)
class ImageCounts:
    """Number of images of each part; None in runs of earlier versions."""

    train: int | None = None
    val: int | None = None
    test: int | None = None


@dataclass(frozen=True)
class Seconds:
    """Wall-clock seconds of each stage of a run; None in runs of earlier versions."""

    base: float | None = None
    fit: float | None = None
    evaluate: float | None = None


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
        Name of the method; differs between recipes that differ.
    recipe : Recipe, optional
        How the residual was trained.
    alpha, epochs : float, int
        The values used, after any choice.
    cache : str
        Path of the cache file.
    versions : dict of str to str
        Version of each library.
    inputs_sha256 : str
        Digest of the text, training, validation and test features and the labels; equal inputs have equal digests.
    zero_shot_accuracy, base_accuracy, test_accuracy : float
        On the test images: the text classifier, the base, and base + residual.
    top5_accuracy, calibration_error, untempered_calibration_error : float
        On the test images, for base + residual; the calibration error with the temperature and without.
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
    classes: str = "all"
    method: str
    recipe: Recipe | None = None
    alpha: float | None = None
    epochs: int | None = None
    cache: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    inputs_sha256: str = ""
    zero_shot_accuracy: float
    base_accuracy: float | None = None
    test_accuracy: float
    top5_accuracy: float | None = None
    calibration_error: float | None = None
    untempered_calibration_error: float | None = None
    zero_shot_class_accuracies: tuple[float | None, ...] | None = None
    class_accuracies: tuple[float | None, ...] | None = None
    zero_shot_val_accuracy: float | None = None
    base_val_accuracy: float | None = None
    val_accuracy: float | None = None
    temperature: float | None = None
    base_tuning: Tuning | None = None
    base_file: str | None = None
    chosen: Candidate | None = None
    candidates: tuple[Candidate, ...] | None = None
    epoch_losses: tuple[float, ...] = ()
    kept_epochs: int | None = None
    device: str = ""
    images: ImageCounts = field(default_factory=ImageCounts)
    seconds: Seconds = field(default_factory=Seconds)

    @property
    def base(self) -> str:
        """The kind of base, see `Recipe.base`."""
        return "regular" if self.recipe is None else self.recipe.base

    @property
    def own_base_accuracy(self) -> float:
        """Test accuracy of the base; in runs of versions that had only the regular base, that of zero-shot."""
        return self.zero_shot_accuracy if self.base_accuracy is None else self.base_accuracy

    def to_json(self) -> dict[str, Any]:
        """Return the metrics as plain values for JSON, in the order of the file."""
        values = asdict(self)
        plain = {name: value for name, value in values.items() if value is not None or name not in OMITTED_IF_NONE}
        recipe = None if self.recipe is None else self.recipe.as_dict()
        plain |= {"recipe": recipe, "images": _without_none(self.images), "seconds": _without_none(self.seconds)}
        listed: dict[str, Any] = json.loads(json.dumps(plain))  # tuples become lists, as in the file
        return listed

    @classmethod
    def from_json(cls, stored: object) -> "Metrics":
        """Read metrics from what `to_json` returns.

        Raises
        ------
        ValueError
            A field is missing or of the wrong type, or the recipe has fields that this version does not know.
        """
        if not isinstance(stored, Mapping):
            raise ValueError(f"holds a {type(stored).__name__}, expected a JSON object")
        known = {name: value for name, value in stored.items() if not (value is None and name in ("images", "seconds"))}
        try:
            metrics = msgspec.convert(known, cls)
        except msgspec.ValidationError as error:
            raise ValueError(f"has a wrong or missing field: {error}") from error
        unknown = sorted(set(known.get("recipe") or ()) - {field.name for field in fields(Recipe)})
        if unknown:
            raise ValueError(f"has a recipe of a newer version, with unknown fields {', '.join(unknown)}")
        return metrics


def _without_none(part: ImageCounts | Seconds) -> dict[str, Any]:
    return {name: value for name, value in asdict(part).items() if value is not None}
