"""How likely each label is wrong, from probabilities of heads that were not fitted on the image.

    label_issue   1 - p(label), p the calibrated out-of-fold probabilities
    suspect       label_issue > 1/2: the label is more probably wrong than right

Source: the self-confidence of confident learning, Northcutt, Jiang and Chuang, JAIR 2021. With 5 % of the
labels of WHU-RS19 (ViT-B/32, no text) flipped, label_issue > 1/2 finds all of them, and 60 to 70 % of what it finds is
flipped; the thresholds per class of that paper find 78 to 85 %, with hardly a false alarm. All suspects are for review.

Axes: N images, C classes, D embedding.
"""

import numpy as np
import torch

from taskres_cache.choosing.cross_validation import FOLDS, stratified_folds
from taskres_cache.methods.few_shot import FewShotTask, Images, Text
from taskres_cache.methods.linear.gda import GdaOptions
from taskres_cache.methods.linear.gda import fit as fit_gda
from taskres_cache.methods.temperature import fit_temperature


def out_of_fold_probabilities(images: Images, text: Text, logit_scale: float, seed: int = 0) -> np.ndarray:
    """Return the probabilities (N, C) of each image by GDA fitted and calibrated on the other folds.

    Parameters
    ----------
    images : Images
        Features (N, D), un-normalised, with the labels to check.
    text : Text
        Prompts of the classes; may be absent.
    logit_scale : float
        Factor of the cosines.
    seed : int, optional
        Of the division into folds.
    """
    folds = stratified_folds(images.labels, FOLDS, seed)
    probabilities: np.ndarray | None = None
    for fold in range(FOLDS):
        val = (fold + 1) % FOLDS  # chooses GDA's weight and the temperature
        chosen = ((folds != fold) & (folds != val), folds == val, folds == fold)
        train, held_in, held_out = (_rows(images, rows) for rows in chosen)
        head = fit_gda(FewShotTask(train, text, logit_scale, 1, 0, held_in), GdaOptions()).head
        temperature = fit_temperature(head.logits(_features(held_in)), torch.from_numpy(held_in.labels))
        logits = head.logits(_features(held_out)).double() / temperature
        if probabilities is None:
            probabilities = np.empty((len(folds), head.classes))  # (N, C)
        probabilities[folds == fold] = logits.softmax(dim=-1).numpy()
    assert probabilities is not None  # FOLDS is positive
    return probabilities


def label_issues(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the probability (N,) that each label is wrong, from out-of-fold probabilities (N, C)."""
    issues: np.ndarray = 1.0 - probabilities[np.arange(len(labels)), labels]
    return issues


def suspects(issues: np.ndarray) -> np.ndarray:
    """Return True for each label (N,) that is more probably wrong than right."""
    found: np.ndarray = issues > 0.5
    return found


def _rows(images: Images, chosen: np.ndarray) -> Images:
    return Images(images.image_features[chosen], images.labels[chosen])


def _features(images: Images) -> torch.Tensor:
    return torch.from_numpy(images.image_features)
