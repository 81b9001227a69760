"""How likely labels are wrong: by hand, and on features with flipped labels."""

import numpy as np

from taskres_cache.inspection.label_issues import label_issues, out_of_fold_probabilities, suspects
from taskres_cache.methods.few_shot import Images, Text

BY_HAND = np.array([[0.9, 0.1], [0.7, 0.3], [0.05, 0.95], [0.2, 0.8], [0.4, 0.6]])
LABELS = np.array([0, 0, 0, 1, 1])


def test_issues_are_the_probability_of_any_other_class() -> None:
    np.testing.assert_allclose(label_issues(BY_HAND, LABELS), [0.1, 0.3, 0.95, 0.2, 0.4])


def test_suspects_are_more_probably_wrong_than_right() -> None:
    assert suspects(label_issues(BY_HAND, LABELS)).tolist() == [False, False, True, False, False]


def test_flipped_labels_have_the_highest_issues() -> None:
    draw = np.random.default_rng(0)
    true = np.repeat(np.arange(4), 30)
    features = (4 * np.eye(4, 16)[true] + 0.5 * draw.normal(size=(120, 16))).astype(np.float32)
    labels, flipped = true.copy(), np.array([3, 47, 80, 110])
    labels[flipped] = (true[flipped] + 1) % 4
    probabilities = out_of_fold_probabilities(Images(features, labels), Text.absent(4, 16), 100.0)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert set(np.argsort(-label_issues(probabilities, labels))[:4]) == set(flipped)
    assert np.flatnonzero(suspects(label_issues(probabilities, labels))).tolist() == flipped.tolist()
