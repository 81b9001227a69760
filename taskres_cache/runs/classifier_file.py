"""The file `classifier.safetensors`, which carries a digest of its own content.

A task residual stores its base and residual; every other method stores the tensors and settings of its head.

Axes: C classes, D embedding, W width of the text tower.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from taskres_cache.caches.contents import DEFAULT_PROMPTS
from taskres_cache.caches.provenance import DICTIONARIES, Provenance
from taskres_cache.caches.schema import GREATEST_LOGIT_SCALE, GROUP_NAME
from taskres_cache.datasets.sampling import shots_json, shots_of
from taskres_cache.errors import OptionError, RunError
from taskres_cache.heads.kinds import head_of
from taskres_cache.methods.choice import MethodRecord
from taskres_cache.recipe import Recipe
from taskres_cache.runs.classifier import Classifier, MethodClassifier, ResidualClassifier

TENSORS, OPTIONAL_TENSORS = ("base", "residual"), ("image_residual", "projection")
DIGEST, INPUTS = "content_sha256", "inputs_sha256"
LEAST_TEMPERATURE = 1e-30  # logits divided by less than this overflow
COMMON: dict[str, Any] = {  # fields of the metadata, stored as JSON
    "classnames": Annotated[tuple[str, ...], Meta(min_length=1)],
    "templates": tuple[str, ...],
    "shots": Annotated[int, Meta(ge=0)] | Literal["all"],
    "seed": int,
    "class_ids": tuple[str, ...] | None,
    "half": Literal["all", "base", "new"],
    "temperature": Annotated[float, Meta(ge=LEAST_TEMPERATURE)],
    "prompts": Annotated[str, Meta(pattern=f"^{GROUP_NAME.pattern}$")],
}
OF_RESIDUAL: dict[str, Any] = {"alpha": float}
OF_METHOD: dict[str, Any] = {
    "kind": str,
    "settings": dict[str, float | str],
    "record": MethodRecord,
    "method": Annotated[str, Meta(min_length=1, max_length=255)],
}
# Missing in runs of earlier versions, and the last one in all runs of the default set, whose files stay as they were.
DEFAULTS = {"class_ids": "null", "half": '"all"', "temperature": "1.0", "prompts": f'"{DEFAULT_PROMPTS}"'}
REFUSED = (SafetensorError, msgspec.MsgspecError, OptionError, OSError, LookupError, ValueError, TypeError)


@dataclass(frozen=True)
class StoredClassifier:
    """A classifier as read from its file.

    Parameters
    ----------
    classifier : Classifier
        The content.
    content_sha256 : str
        Digest of the content, which was checked; empty in files of earlier versions.
    inputs_sha256 : str
        Digest of the inputs of the fit, as in `metrics.json`; empty in files of earlier versions.
    """

    classifier: Classifier
    content_sha256: str
    inputs_sha256: str


def as_safetensors(classifier: Classifier, inputs_sha256: str) -> tuple[bytes, str]:
    """Return the content of `classifier.safetensors`, and its digest."""
    present = {name: np.ascontiguousarray(tensor) for name, tensor in _tensors_of(classifier).items()}
    metadata = {**_as_metadata(classifier), INPUTS: inputs_sha256}
    digest = _content_digest(present, metadata)
    return save(present, {**metadata, DIGEST: digest}), digest


def read_safetensors(file: Path) -> StoredClassifier:
    """Read a classifier and check its digest.

    Raises
    ------
    RunError
        The file is damaged, was changed, or has a tensor or field that no fit writes.
    """
    try:
        with safe_open(file, framework="numpy") as stored:
            metadata = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        classifier = _from_metadata(tensors, metadata)
        _check_digest(tensors, metadata)
    except (*REFUSED, RecursionError) as error:
        raise RunError(f"{file} is not an intact run ({_reason(error)}); fit it again") from error
    return StoredClassifier(classifier, metadata.get(DIGEST, ""), metadata.get(INPUTS, ""))


def recorded_digest(file: Path) -> str:
    """Return the digest that a classifier file records, without reading its tensors; empty in earlier versions."""
    try:
        with safe_open(file, framework="numpy") as stored:
            return str((stored.metadata() or {}).get(DIGEST, ""))
    except REFUSED as error:
        raise RunError(f"{file} is not an intact run ({_reason(error)}); fit it again") from error


def _content_digest(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 of all tensors and of all metadata but the digest."""
    names = sorted(tensors)
    kinds = [(name, str(tensors[name].dtype), tensors[name].shape) for name in names]
    others = sorted((name, value) for name, value in metadata.items() if name != DIGEST)
    digest = sha256(json.dumps([kinds, others]).encode())
    for name in names:
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()


def _check_digest(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Raise ValueError if the content is not what was written; files of earlier versions have no digest."""
    recorded = metadata.get(DIGEST)
    if recorded is None and INPUTS not in metadata:
        return
    if recorded != _content_digest(tensors, metadata):
        raise ValueError(f"its {DIGEST} is not that of its content: it was changed after it was written")


def _tensors_of(classifier: Classifier) -> dict[str, np.ndarray]:
    """Return the tensors to store, by name."""
    if isinstance(classifier, MethodClassifier):
        return classifier.head.tensors()
    tensors = {name: getattr(classifier, name) for name in (*TENSORS, *OPTIONAL_TENSORS)}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _as_metadata(classifier: Classifier) -> dict[str, str]:
    """Return everything but the tensors as text; `recipe` is that of the run, not of the data set."""
    plain = classifier.provenance.as_plain()
    fields: dict[str, Any] = {name: getattr(classifier, name) for name in COMMON}
    fields["shots"] = shots_json(classifier.shots)
    if isinstance(classifier, MethodClassifier):
        plain |= {"format": "taskres-run", "format_version": "2"}
        fields |= {"kind": classifier.head.kind, "settings": classifier.head.settings()}
        fields |= {"record": asdict(classifier.record), "method": classifier.method}
    else:
        plain |= {"format": "taskres-run", "format_version": "1", "recipe": json.dumps(classifier.recipe.as_dict())}
        fields |= {name: getattr(classifier, name) for name in OF_RESIDUAL}
    if classifier.prompts == DEFAULT_PROMPTS:
        del fields["prompts"]
    plain |= {name: json.dumps(value) for name, value in fields.items()}
    return {name: str(value) for name, value in plain.items()}


def _from_metadata(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> Classifier:
    """Return the classifier; raises one of `REFUSED` for what no fit writes."""
    provenance = Provenance.from_plain(metadata)
    _check_provenance(provenance)
    stored = {**DEFAULTS, **metadata}
    common = {name: _decoded(name, stored[name], kind) for name, kind in COMMON.items()}
    common["shots"] = shots_of(common["shots"])
    if "kind" in metadata:
        return _of_method(tensors, stored, common, provenance)
    values: dict[str, Any] = common | {name: tensors[name] for name in TENSORS}
    values |= {name: tensors.get(name) for name in OPTIONAL_TENSORS}
    values |= {name: _decoded(name, stored[name], kind) for name, kind in OF_RESIDUAL.items()}
    fitted = ResidualClassifier(**values, recipe=recipe_of(provenance.recipe), provenance=provenance)
    _check_tensors(fitted)
    return fitted


def _of_method(
    tensors: dict[str, np.ndarray], stored: Mapping[str, str], common: dict[str, Any], provenance: Provenance
) -> MethodClassifier:
    """Return the classifier of a method other than the task residual."""
    own = {name: _decoded(name, stored[name], kind) for name, kind in OF_METHOD.items()}
    head = head_of(own["kind"], tensors, own["settings"], common.pop("temperature"))
    classes = len(common["classnames"])
    if head.classes != classes or len(common["class_ids"] or common["classnames"]) != classes:
        raise ValueError(f"a head of {head.classes} classes, {classes} class names")
    return MethodClassifier(**common, fitted=head, record=own["record"], method=own["method"], provenance=provenance)


def recipe_of(stored: Mapping[str, Any]) -> Recipe:
    """Return a recipe from plain values; raises ValueError for unknown fields or wrong types."""
    unknown = sorted(set(stored) - set(Recipe.__dataclass_fields__))
    if unknown:
        raise ValueError(f"unknown fields {', '.join(unknown)[:100]} in recipe: it is of a newer version")
    return msgspec.convert(dict(stored), Recipe)


def _decoded(name: str, text: str, kind: Any) -> Any:
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{name}: {error}") from error


def _check_provenance(provenance: Provenance) -> None:
    """Raise ValueError if a field has another type than the format says, or a scale that no model has."""
    for name in ("preprocess", *DICTIONARIES):
        if not isinstance(getattr(provenance, name), dict):
            raise ValueError(f"{name} is a {type(getattr(provenance, name)).__name__}, expected a JSON object")
    if not 0 < provenance.logit_scale <= GREATEST_LOGIT_SCALE:
        raise ValueError(
            f"logit_scale is {provenance.logit_scale:g}, expected more than 0, at most {GREATEST_LOGIT_SCALE:g}"
        )


def _check_tensors(classifier: ResidualClassifier) -> None:
    """Raise ValueError if a tensor has another shape or type than a fit writes, or makes logits NaN."""
    base, residual, classes = classifier.base, classifier.residual, len(classifier.classnames)
    if base.ndim != 2 or not base.shape == residual.shape == (classes, base.shape[-1]) or base.shape[1] == 0:
        raise ValueError(f"base {base.shape}, residual {residual.shape}, {classes} class names")
    if classifier.class_ids is not None and len(classifier.class_ids) != classes:
        raise ValueError(f"{len(classifier.class_ids)} class ids, {classes} class names")
    shift, projection = classifier.image_residual, classifier.projection
    if shift is not None and shift.shape != base.shape[1:]:
        raise ValueError(f"image_residual {shift.shape}, base {base.shape}")
    if projection is not None and (projection.ndim != 2 or projection.shape[1] != base.shape[1]):
        raise ValueError(f"projection {projection.shape}, base {base.shape}")
    for name in (*TENSORS, *OPTIONAL_TENSORS):
        tensor = getattr(classifier, name)
        if tensor is not None and (tensor.dtype != np.float32 or not np.isfinite(tensor).all()):
            what = "NaN or infinite values" if tensor.dtype == np.float32 else f"type {tensor.dtype}, expected float32"
            raise ValueError(f"{name} has {what}")
    with np.errstate(over="ignore", invalid="ignore"):
        alpha = np.float32(classifier.alpha)
        lengths = np.linalg.norm(base + alpha * residual, axis=1)  # (C,)
        of_shift = 0.0 if shift is None else np.linalg.norm(alpha * shift)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise ValueError("base + alpha * residual has a row without direction: zero, or too large for float32")
    if not np.isfinite(of_shift):
        raise ValueError("alpha * image_residual is too large for float32")


def _reason(error: BaseException) -> str:
    """Return an error as one short line."""
    text = f"missing {error}" if isinstance(error, KeyError) else str(error)
    return " ".join(text.split())[:300]
