"""What a cache's features were made from, and whether two encoders are the same; knows neither HDF5 nor torch."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

UNKNOWN = "unknown"  # stands in the provenance of imported features for what nobody said

DICTIONARIES = ("views", "recipe", "versions")  # fields that a cache by another program may leave out


@dataclass(frozen=True)
class Provenance:
    """What a cache was made from; stored as the attributes of `/`.

    Parameters
    ----------
    dataset, backbone, pretrained : the names that the cache's path is made of.
    model_config : the open_clip config that was built (QuickGELU variants differ from `backbone`).
    weights_sha256 : digest of the loaded weights, or UNKNOWN for imported features.
    logit_scale : the multiplier s of the logits.
    preprocess : of the images, as plain values.
    precision : that image features were computed in.
    classnames_form : how class names stand in prompts, see `prompts.PromptForm`.
    split : how the data set came by its train, val and test part.
    views : what augmented views were made by; empty where there are none.
    recipe : the data set's own training recipe as plain values.
    versions : library name -> version.
    images_folder : where the images lay, in the words in which it was said; empty where that was no folder.
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

    def as_plain(self) -> dict[str, str | float]:
        """Return every field as text or a number, dictionaries as JSON; what HDF5 and safetensors can hold."""
        return {name: json.dumps(value) if isinstance(value, dict) else value for name, value in asdict(self).items()}

    @classmethod
    def from_plain(cls, plain: Mapping[str, str | float]) -> "Provenance":
        """Return what `as_plain` was made from; raises KeyError or ValueError when something lacks or is no JSON.

        Caches by other programs may lack what goes beyond the list that the format began with.
        """
        unsaid = dict.fromkeys(("precision", "classnames_form", "split"), UNKNOWN) | dict.fromkeys(DICTIONARIES, "{}")
        said = {"model_config": plain["backbone"], "images_folder": "", **unsaid, **plain}
        values: dict[str, Any] = {known.name: said[known.name] for known in fields(cls)}
        values |= {name: json.loads(values[name]) for name in ("preprocess", *DICTIONARIES)}
        values["logit_scale"] = float(values["logit_scale"])
        return cls(**values)


def encoder_differences(one: Provenance, other: Provenance) -> dict[str, tuple[Any, Any]]:
    """Return field -> (of the one, of the other) where two encoders differ; nothing where their features compare.

    Whether images are turned upright concerns the files and not the encoder. Imported features, of which nobody knows
    the weights, are known by the names alone that were given to them.
    """
    imported = one.weights_sha256 == UNKNOWN
    names = ["backbone", "pretrained"] if imported else ["weights_sha256", "model_config", "preprocess"]
    pairs = {name: (getattr(one, name), getattr(other, name)) for name in names}
    return {name: pair for name, pair in pairs.items() if _as_encoded(pair[0]) != _as_encoded(pair[1])}


def _as_encoded(value: Any) -> Any:
    return {name: part for name, part in value.items() if name != "orientation"} if isinstance(value, dict) else value
