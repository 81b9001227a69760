"""What a cache's features were made from, and whether two encoders are the same; knows neither HDF5 nor torch."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from taskres_cache.datasets.sampling import VAL_SHOTS_AT_MOST
from taskres_cache.system.names import shown, unsafe_name

UNKNOWN = "unknown"  # fields of imported features for which no value was given

PAPER, OWN = "paper", "own"  # values of `defaults`

NAMES = ("dataset", "backbone", "pretrained")  # fields that become parts of paths
DICTIONARIES = ("views", "recipe", "versions", "corrections")  # JSON fields that may be absent


@dataclass(frozen=True)
class Provenance:
    """What a cache was made from; stored as the attributes of `/`.

    Parameters
    ----------
    dataset, backbone, pretrained : str
        Names of data set, model and checkpoint, which make up the cache's path.
    model_config : str
        The open_clip config that was built; it differs from `backbone` for QuickGELU variants.
    weights_sha256 : str
        Digest of the loaded weights, or UNKNOWN for imported features.
    logit_scale : float
        Multiplier of the cosine similarities, not its logarithm.
    preprocess : dict
        Preprocessing of the images, as plain values.
    precision : str
        Precision in which the image features were computed.
    classnames_form : str
        Form of the class names in prompts, see `prompts.PromptForm`.
    split : str
        How the data set was split into train, val and test.
    views : dict
        How augmented views were made; empty without views.
    recipe : dict
        The data set's own training recipe, as plain values.
    versions : dict of str to str
        Library versions by name.
    images_folder : str
        Absolute path of the folder or archives of the images, or another name with which they are found; empty if
        they came from elsewhere. Earlier caches have the path as the user typed it.
    defaults : {"paper", "own"}
        Which defaults commands use: those of the paper, or those for data of one's own. Earlier caches have "paper".
    val_per_class : str
        Most validation images per class of a few-shot split, or "all". Earlier caches have "4".
    corrections : dict
        Files of corrected labels with their SHA-256, and numbers of corrected images; empty without corrections.
    """

    dataset: str
    backbone: str
    pretrained: str
    model_config: str
    weights_sha256: str
    logit_scale: float
    preprocess: dict[str, Any]
    precision: str
    classnames_form: str
    split: str
    views: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    images_folder: str = ""
    defaults: str = PAPER
    val_per_class: str = str(VAL_SHOTS_AT_MOST)
    corrections: dict[str, Any] = field(default_factory=dict)

    def as_plain(self) -> dict[str, str | float]:
        """Return every field as text or a number, dictionaries as JSON, for HDF5 and safetensors."""
        return {name: json.dumps(value) if isinstance(value, dict) else value for name, value in asdict(self).items()}

    @classmethod
    def from_plain(cls, plain: Mapping[str, str | float]) -> "Provenance":
        """Return the provenance from what `as_plain` returned.

        Fields that are not part of the first list of the format may be absent: other programs leave them out.

        Raises
        ------
        KeyError
            A field is missing.
        ValueError
            A field is not valid JSON, or a name that becomes part of a path is unsafe.
        """
        for name in NAMES:
            fault = unsafe_name(str(plain[name]))
            if fault is not None:
                raise ValueError(f"{name} {shown(str(plain[name]))} {fault}")
        absent = dict.fromkeys(("precision", "classnames_form", "split"), UNKNOWN) | dict.fromkeys(DICTIONARIES, "{}")
        drawn = {"defaults": PAPER, "val_per_class": str(VAL_SHOTS_AT_MOST)}
        complete = {"model_config": plain["backbone"], "images_folder": "", **drawn, **absent, **plain}
        values: dict[str, Any] = {known.name: complete[known.name] for known in fields(cls)}
        values |= {name: json.loads(values[name]) for name in ("preprocess", *DICTIONARIES)}
        values["logit_scale"] = float(values["logit_scale"])
        return cls(**values)


def encoder_differences(one: Provenance, other: Provenance) -> dict[str, tuple[Any, Any]]:
    """Return the fields in which two encoders differ, with both values; empty if their features are comparable.

    `orientation` is ignored: turning images upright depends on the files, not on the encoder. Imported features have
    no known weights, so only the names that the user gave are compared.
    """
    imported = one.weights_sha256 == UNKNOWN
    names = ["backbone", "pretrained"] if imported else ["weights_sha256", "model_config", "preprocess"]
    pairs = {name: (getattr(one, name), getattr(other, name)) for name in names}
    return {
        name: pair for name, pair in pairs.items() if _without_orientation(pair[0]) != _without_orientation(pair[1])
    }


def _without_orientation(value: Any) -> Any:
    return {name: part for name, part in value.items() if name != "orientation"} if isinstance(value, dict) else value
