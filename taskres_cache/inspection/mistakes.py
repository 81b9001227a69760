"""Each image of a run's cache with its label, its prediction, and how likely the label is wrong.

Axes: N images, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.datasets import PARTITIONS
from taskres_cache.errors import RunError
from taskres_cache.inspection.label_issues import label_issues, out_of_fold_probabilities, suspects
from taskres_cache.methods.few_shot import Images, Text
from taskres_cache.runs.class_matching import heads_on, with_text_of
from taskres_cache.runs.classifier import Classifier
from taskres_cache.runs.evaluation import predictions_of

COLUMNS = ("rank", "path", "label", "prediction", "confidence", "label_issue", "suspect", "part")


@dataclass(frozen=True)
class Inspected:
    """An image, what the run predicts for it, and how likely its label is wrong.

    Parameters
    ----------
    path, label, prediction : str
        Path in the cache, name of its class, and name of the predicted class.
    confidence : float
        Calibrated probability of the prediction, 0 to 1. Too high for images that the run was fitted on.
    label_issue : float
        Probability that the label is wrong, 0 to 1, by heads that were not fitted on the image.
    suspect : bool
        True if the label is more probably wrong than right.
    part : {"train", "val", "test"}
        Partition of the image.
    """

    path: str
    label: str
    prediction: str
    confidence: float
    label_issue: float
    suspect: bool
    part: str


def inspected_images(
    classifier: Classifier, cache: FeatureCache, parts: Sequence[str], device: torch.device
) -> list[Inspected]:
    """Return the images of some partitions, the most probably wrong label first.

    Parameters
    ----------
    classifier : Classifier
        The classifier of the run.
    cache : FeatureCache
        The run's cache.
    parts : sequence of {"train", "val", "test"}
        Partitions; labels are cross-validated over all of them together.
    device : torch.device
        Where the run's classifier predicts.

    Raises
    ------
    RunError
        The cache has no images of these partitions.
    """
    cache = with_text_of(classifier, cache)
    rows = np.sort(np.concatenate([cache.rows(part) for part in parts]))
    found = predictions_of(cache, rows, [heads_on(classifier, cache)[1]], device)
    if found is None:
        raise RunError(f"{cache.path} has no {' or '.join(parts)} images; pass another --part")
    images = Images(cache.image_features(rows), found[0].labels)
    probabilities = out_of_fold_probabilities(images, _text(cache), cache.provenance.logit_scale)
    issues = label_issues(probabilities, images.labels)
    suspected = suspects(issues)
    files, names = cache.files(), cache.classnames
    return [
        Inspected(
            path=files[rows[place]][0],
            label=names[images.labels[place]],
            prediction=names[found[0].classes[place]],
            confidence=float(found[0].confidences[place]),
            label_issue=float(issues[place]),
            suspect=bool(suspected[place]),
            part=PARTITIONS[cache.partitions[rows[place]]],
        )
        for place in np.argsort(-issues, kind="stable")
    ]


def as_rows(images: Sequence[Inspected]) -> list[tuple[str | float, ...]]:
    """Return a header and a row per image, for a CSV file that `taskres extract --labels` accepts."""
    numbered = enumerate(images, 1)
    return [
        COLUMNS,
        *(
            (
                rank,
                one.path,
                one.label,
                one.prediction,
                round(one.confidence, 4),
                round(one.label_issue, 4),
                "yes" if one.suspect else "no",
                one.part,
            )
            for rank, one in numbered
        ),
    ]


def _text(cache: FeatureCache) -> Text:
    """Return the prompts of a cache, or absent text."""
    if not cache.has_text:
        return Text.absent(len(cache.classnames), cache.dim)
    used = cache.text()
    return Text(used.embeddings, used.labels)
