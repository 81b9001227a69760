"""What classifiers say of a cache's images, and zero-shot in the forms that the field reports, by hand."""

from pathlib import Path

import numpy as np
import torch

from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.heads import Head
from taskres_cache.runs.evaluation import percent_correct, predictions_of, zero_shot_weights


def test_forms_of_zero_shot_by_hand() -> None:
    # One class, two templates of length 2 and 4: only the ensemble lets both count alike.
    weights = zero_shot_weights(np.array([[[2.0, 0.0], [0.0, 4.0]]]))
    assert {form: rows.tolist() for form, rows in weights.items()} == {
        "single prompt": [[2.0, 0.0]],
        "prompt ensemble": [[0.5, 0.5]],
        "residual base": [[1.0, 2.0]],
    }


def test_what_is_said_of_images_by_hand(cache_file: Path) -> None:
    cache = FeatureCache(cache_file)
    rows = cache.rows("test")[::-1].copy()  # rows in any order, read in pieces
    rng = np.random.default_rng(0)
    weights, shift = (rng.normal(size=size).astype(np.float32) for size in ((7, 8), 8))
    heads = [Head(torch.from_numpy(weights), 100.0, temperature=t) for t in (1.0, 3.0)]
    heads += [Head(torch.from_numpy(weights), 100.0, torch.from_numpy(shift), 3.0)]
    said = predictions_of(cache, rows, heads, torch.device("cpu"))
    assert said is not None
    for head, found in zip(heads, said, strict=True):
        features = cache.image_features(rows) + (0.0 if head.image_shift is None else head.image_shift.numpy())
        lengths = np.linalg.norm(features, axis=1)[:, None] * np.linalg.norm(weights, axis=1)
        logits = 100.0 * features @ weights.T / lengths
        ranks = np.argsort(-logits, axis=1)
        assert np.array_equal(found.labels, cache.labels[rows])
        assert np.array_equal(found.classes, ranks[:, 0])
        assert found.in_top5.tolist() == [
            label in best for label, best in zip(found.labels, ranks[:, :5].tolist(), strict=True)
        ]
        for confidences, temperature in ((found.confidences, head.temperature), (found.untempered, 1.0)):
            exponentials = np.exp(logits / temperature)
            assert np.allclose(confidences, exponentials.max(1) / exponentials.sum(1), atol=1e-5)
    assert not all(found.in_top5.all() for found in said)
    assert percent_correct(cache, rows, heads, torch.device("cpu")) == [found.accuracy for found in said]
    assert predictions_of(cache, rows[:0], heads, torch.device("cpu")) is None
