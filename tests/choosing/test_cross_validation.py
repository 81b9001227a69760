"""Cross-validated accuracy and its intervals."""

import numpy as np
import pytest
from scipy.stats import binomtest

from taskres_cache.choosing.cross_validation import (
    cross_validated,
    paired_difference,
    stratified_folds,
    wilson_interval,
)
from taskres_cache.methods.few_shot import Images, Text

CLASSES, PER_CLASS, DIM = 5, 12, 200


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(CLASSES * PER_CLASS, DIM)).astype(np.float32)


LABELS = np.repeat(np.arange(CLASSES), PER_CLASS)
CENTRES = 3 * np.random.default_rng(9).normal(size=(CLASSES, DIM)).astype(np.float32)
UNRELATED = Text.from_templates(np.random.default_rng(8).normal(size=(CLASSES, 1, DIM)).astype(np.float32))


def test_images_are_not_classified_by_a_head_that_has_seen_them() -> None:
    """GDA fits 60 images of noise in 200 dimensions without error; held-out noise is classified by chance."""
    correct = cross_validated(Images(noise(0), LABELS), UNRELATED, 100.0)
    assert correct.adapted.mean() < 0.45


def test_images_help_where_text_does_not() -> None:
    correct = cross_validated(Images(CENTRES[LABELS] + noise(0), LABELS), UNRELATED, 100.0)
    assert correct.adapted.mean() == 1
    assert correct.zero_shot.mean() < 0.6


def test_text_helps_where_images_do_not() -> None:
    text = Text.from_templates(CENTRES[:, None])
    weak = Images(0.3 * CENTRES[LABELS] + 3 * noise(0), LABELS)
    correct = cross_validated(weak, text, 100.0)
    assert correct.zero_shot.mean() > 0.9
    assert correct.adapted.mean() >= correct.zero_shot.mean() - 0.05


def test_a_class_with_one_image_is_no_error() -> None:
    labels = np.concatenate([LABELS, [CLASSES]])
    images = Images(np.concatenate([CENTRES[LABELS] + noise(0), noise(1)[:1]]), labels)
    text = Text.from_templates(np.random.default_rng(8).normal(size=(CLASSES + 1, 1, DIM)).astype(np.float32))
    assert cross_validated(images, text, 100.0).adapted.shape == (61,)


def test_folds_have_their_share_of_every_class() -> None:
    labels = np.repeat([0, 1, 2], [7, 5, 13])
    folds = stratified_folds(labels, 5, seed=1)
    for label in range(3):
        counts = np.bincount(folds[labels == label], minlength=5)
        assert counts.max() - counts.min() <= 1
    assert np.bincount(folds).tolist() == [5] * 5
    assert (stratified_folds(labels, 5, seed=1) == folds).all()
    assert (stratified_folds(labels, 5, seed=2) != folds).any()


@pytest.mark.parametrize(("correct", "images"), [(8, 10), (0, 20), (20, 20), (351, 500)])
def test_wilson_interval_is_scipys(correct: int, images: int) -> None:
    expected = binomtest(correct, images).proportion_ci(0.95, method="wilson")
    assert wilson_interval(correct, images) == pytest.approx((100 * expected.low, 100 * expected.high))


def test_paired_difference_by_hand() -> None:
    """Differences 1, 1, 0, -1, 0, 0, 0, 0: mean 1/8, sample variance (3 - 1/8) / 7."""
    one, other = np.array([1, 1, 0, 0, 1, 1, 1, 1], bool), np.array([0, 0, 0, 1, 1, 1, 1, 1], bool)
    mean, half = paired_difference(one, other)
    assert mean == pytest.approx(12.5)
    assert half == pytest.approx(100 * 1.959964 * ((3 - 1 / 8) / 7 / 8) ** 0.5, rel=1e-6)
    assert paired_difference(other, one)[0] == -mean
    assert paired_difference(one, one) == (0, 0)
