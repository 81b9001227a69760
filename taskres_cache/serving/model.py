"""Which model a service predicts with, as the page and every answer show it."""

from dataclasses import dataclass
from pathlib import Path

from taskres_cache.datasets.sampling import shots_text
from taskres_cache.runs.classifier_file import recorded_digest
from taskres_cache.runs.finding import CLASSIFIER_FILE
from taskres_cache.runs.several.ensemble import Ensemble


@dataclass(frozen=True)
class ModelCard:
    """The served model.

    Parameters
    ----------
    runs : tuple of str
        Its runs; several are an ensemble.
    dataset, backbone, pretrained : str
        What they were fitted on.
    methods : tuple of str
        Method, shots and seed of each run.
    weights_sha256 : str
        Digest of the encoder.
    classifier_sha256 : tuple of str
        Digest of each run's classifier; empty if a run of an earlier version has none.
    classes : int
        Number of classes.
    """

    runs: tuple[str, ...]
    dataset: str
    backbone: str
    pretrained: str
    methods: tuple[str, ...]
    weights_sha256: str
    classifier_sha256: tuple[str, ...]
    classes: int


def card_of(folders: list[Path], ensemble: Ensemble) -> ModelCard:
    """Return the card of runs that are served together."""
    source = ensemble.provenance
    return ModelCard(
        runs=tuple(map(str, folders)),
        dataset=source.dataset,
        backbone=source.backbone,
        pretrained=source.pretrained,
        methods=tuple(f"{one.method}, {shots_text(one.shots)} shots, seed {one.seed}" for one in ensemble.members),
        weights_sha256=source.weights_sha256,
        classifier_sha256=tuple(recorded_digest(folder / CLASSIFIER_FILE) for folder in folders),
        classes=len(ensemble.classnames),
    )
