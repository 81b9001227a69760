"""Evaluation on the images of a cache: predictions, forms of zero-shot, and matching of classes."""

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from taskres_cache.caches.class_halves import open_cache
from taskres_cache.caches.contents import CacheContents, Split, TextBases
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.hdf5 import write_cache
from taskres_cache.errors import RunError
from taskres_cache.heads.kinds import CosineHead
from taskres_cache.runs.class_matching import class_rows
from taskres_cache.runs.evaluation import evaluate_run, percent_correct, predictions_of, zero_shot_weights
from taskres_cache.runs.fitting.study import fit_each
from taskres_cache.runs.run import Run, read_classifier
from tests.by_hand import accuracy, logits, softmax
from tests.runs.conftest import CPU, RECIPE


def test_forms_of_zero_shot_by_hand() -> None:
    # One class, two templates of length 2 and 4: only in the ensemble do both have the same weight.
    weights = zero_shot_weights(np.array([[[2.0, 0.0], [0.0, 4.0]]]))
    assert {form: rows.tolist() for form, rows in weights.items()} == {
        "single prompt": [[2.0, 0.0]],
        "prompt ensemble": [[0.5, 0.5]],
        "residual base": [[1.0, 2.0]],
    }


def test_predictions_equal_the_second_implementation(cache: FeatureCache) -> None:
    rows = cache.rows("test")[::-1].copy()  # not ascending, and read in pieces
    rng = np.random.default_rng(0)
    weights, shift = (rng.normal(size=size).astype(np.float32) for size in ((7, 8), 8))
    heads = [CosineHead(torch.from_numpy(weights), 100.0, temperature=t) for t in (1.0, 3.0)]
    heads += [CosineHead(torch.from_numpy(weights), 100.0, torch.from_numpy(shift), temperature=3.0)]
    predictions = predictions_of(cache, rows, heads, CPU)
    assert predictions is not None
    for head, predicted in zip(heads, predictions, strict=True):
        image_shift = 0.0 if head.image_shift is None else head.image_shift.numpy()
        expected = logits(cache.image_features(rows), weights, 100.0, image_shift)
        ranks = np.argsort(-expected, axis=1)
        assert np.array_equal(predicted.labels, cache.labels[rows])
        assert np.array_equal(predicted.classes, ranks[:, 0])
        assert predicted.in_top5.tolist() == [
            label in top for label, top in zip(predicted.labels, ranks[:, :5].tolist(), strict=True)
        ]
        for confidences, temperature in ((predicted.confidences, head.temperature), (predicted.untempered, 1.0)):
            assert np.allclose(confidences, softmax(expected / temperature).max(axis=1), atol=1e-5)
    assert not all(predicted.in_top5.all() for predicted in predictions)
    assert percent_correct(cache, rows, heads, CPU) == [predicted.accuracy for predicted in predictions]
    assert predictions_of(cache, rows[:0], heads, CPU) is None


def test_a_device_is_waited_for_once_per_head(cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = cache.rows("test")
    heads = [CosineHead(torch.randn(7, 8), 100.0) for _ in range(3)]
    whole = predictions_of(cache, rows, heads, CPU)
    pieces = [(places, cache.image_features(rows[places])) for places in np.array_split(np.arange(len(rows)), 5)]
    copied: list[tuple[int, ...]] = []
    to_host = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: copied.append(tuple(tensor.shape)) or to_host(tensor))
    monkeypatch.setattr(FeatureCache, "pieces", lambda *_: iter(pieces))
    predictions = predictions_of(cache, rows, heads, CPU)
    assert whole is not None
    assert predictions is not None
    assert copied == [(len(rows),)] * 4 * len(heads)  # not per piece
    for one, other in zip(predictions, whole, strict=True):
        assert np.array_equal(one.classes, other.classes)
        assert np.allclose(one.confidences, other.confidences)


def test_evaluating_a_run_again_gives_the_same_accuracy(study: list[Run], cache: FeatureCache) -> None:
    for run in study:
        evaluation = evaluate_run(read_classifier(run.folder), cache, CPU)
        assert evaluation.test_accuracy == run.metrics.test_accuracy
        assert (evaluation.images, evaluation.classes) == (9, 3)


def test_a_residual_of_zero_is_exactly_zero_shot(cache: FeatureCache, study: list[Run]) -> None:
    classifier = read_classifier(study[0].folder)
    without = replace(classifier, residual=np.zeros_like(classifier.residual))
    assert np.array_equal(without.head.weights, classifier.base)
    evaluation = evaluate_run(without, cache, CPU)
    assert evaluation.test_accuracy == evaluation.zero_shot_accuracy == study[0].metrics.zero_shot_accuracy


def test_a_cache_may_have_fewer_classes_in_another_order(
    study: list[Run], contents: CacheContents, tmp_path: Path
) -> None:
    keep = np.isin(contents.labels, [0, 2])
    some = replace(
        contents,
        classnames=("été", "black_cat"),
        paths=tuple(path for path, kept in zip(contents.paths, keep, strict=True) if kept),
        stamps=tuple(stamp for stamp, kept in zip(contents.stamps, keep, strict=True) if kept),
        labels=np.array([1, -1, 0])[contents.labels[keep]],
        partitions=contents.partitions[keep],
        image_features=contents.image_features[keep],
        text=TextBases(contents.text.templates, contents.text.embeddings[[2, 0]]),
        splits={},
    )
    write_cache(tmp_path / "some.h5", some)
    classifier = read_classifier(study[3].folder)
    evaluation = evaluate_run(classifier, FeatureCache(tmp_path / "some.h5"), CPU)
    test = some.partitions == 2
    weights = classifier.head.weights.numpy()[[2, 0]]
    assert evaluation.test_accuracy == pytest.approx(accuracy(some.image_features[test], weights, some.labels[test]))
    assert (evaluation.images, evaluation.classes) == (6, 2)


def test_other_checkpoints_and_unknown_classes_raise(study: list[Run], contents: CacheContents, tmp_path: Path) -> None:
    classifier = read_classifier(study[0].folder)
    other = replace(contents, provenance=replace(contents.provenance, weights_sha256="ff" * 32))
    write_cache(tmp_path / "other.h5", other)
    with pytest.raises(RunError, match="another checkpoint than the run: weights_sha256"):
        evaluate_run(classifier, FeatureCache(tmp_path / "other.h5"), CPU)
    write_cache(tmp_path / "new.h5", replace(contents, classnames=("black_cat", "dog", "zebra")))
    with pytest.raises(RunError, match="1 of 3 classes that the run does not know .'zebra'."):
        evaluate_run(classifier, FeatureCache(tmp_path / "new.h5"), CPU)


def test_classes_with_equal_names_are_matched_by_identifier(contents: CacheContents, tmp_path: Path) -> None:
    names, ids = ("missile", "dog", "missile"), ("n3", "n5", "n4")
    write_cache(tmp_path / "twins.h5", replace(contents, classnames=names, class_ids=ids))
    (run,) = fit_each(FeatureCache(tmp_path / "twins.h5"), [(4, 1)], [RECIPE], CPU, tmp_path / "runs")
    classifier = read_classifier(run.folder)
    assert classifier.class_ids == ids

    def rows(classnames: tuple[str, ...], class_ids: tuple[str, ...] | None) -> list[int]:
        labels = contents.labels % len(classnames)
        text = TextBases(contents.text.templates, contents.text.embeddings[: len(classnames)])
        some = replace(contents, classnames=classnames, class_ids=class_ids, labels=labels, text=text, splits={})
        write_cache(tmp_path / "some.h5", some)
        return class_rows(classifier, FeatureCache(tmp_path / "some.h5")).tolist()

    assert rows(("missile", "missile"), ("n4", "n3")) == [2, 0]
    assert rows(("other words", "missile"), ("n5", "n4")) == [1, 2]
    assert rows(names, None) == [0, 1, 2]  # without identifiers, equal lists of names match
    with pytest.raises(RunError, match="several classes with the same name"):
        rows(("dog", "missile"), None)
    with pytest.raises(RunError, match="1 of 2 classes that the run does not know .'dog'"):
        rows(("missile", "dog"), ("n3", "n6"))


def test_orientation_does_not_distinguish_encoders(contents: CacheContents, study: list[Run], tmp_path: Path) -> None:
    preprocess = {**contents.provenance.preprocess, "orientation": "stored"}
    write_cache(
        tmp_path / "stored.h5", replace(contents, provenance=replace(contents.provenance, preprocess=preprocess))
    )
    evaluation = evaluate_run(read_classifier(study[0].folder), FeatureCache(tmp_path / "stored.h5"), CPU)
    assert evaluation.test_accuracy == study[0].metrics.test_accuracy


def halves_of(contents: CacheContents, path: Path) -> Path:
    """Write a cache of four classes, two per half; its text projection is not the identity."""
    rng = np.random.default_rng(3)
    centres, labels = rng.normal(size=(4, 8)), np.tile(np.arange(4, dtype=np.int32), 6)
    text = (centres[:, None] + rng.normal(scale=1.5, size=(4, 2, 8))).astype(np.float32)
    projection = rng.normal(size=(8, 8)).astype(np.float32)
    pre_projection = text @ np.linalg.inv(projection)
    rows = np.arange(12)
    write_cache(
        path,
        replace(
            contents,
            classnames=("a", "b", "c", "d"),
            labels=labels,
            partitions=np.repeat([0, 1, 2], [12, 4, 8]).astype(np.uint8),
            image_features=(centres[labels] + rng.normal(scale=1.2, size=(24, 8))).astype(np.float32),
            text=TextBases(contents.text.templates, text, pre_projection.astype(np.float32), projection),
            splits={(4, 1): Split(rows, np.arange(12, 16))},
        ),
    )
    return path


@pytest.mark.parametrize(
    "choices", [{"residual": "image"}, {"base": "enhanced-only"}, {"base": "enhanced", "residual": "image"}]
)
def test_runs_without_a_residual_per_class_apply_to_new_classes(
    contents: CacheContents, tmp_path: Path, choices: dict[str, Any]
) -> None:
    path = halves_of(contents, tmp_path / "halves.h5")
    recipe = RECIPE.changed(lr=0.2, **choices)
    (run,) = fit_each(open_cache(path, "base"), [(4, 1)], [recipe], CPU, tmp_path / "runs")
    classifier, new = run.classifier, open_cache(path, "new")
    text = new.text_bases()
    base = text.embeddings.mean(axis=1)
    if classifier.projection is not None:
        base = text.pre_projection.mean(axis=1) @ classifier.projection
    shift = 0.0 if classifier.image_residual is None else classifier.alpha * classifier.image_residual
    features, labels = new.test()
    found = evaluate_run(classifier, new, CPU)
    assert found.test_accuracy == pytest.approx(accuracy(features + shift, base, labels))
    assert (found.images, found.classes) == (4, 2)
    assert found.base_half_accuracy == run.metrics.test_accuracy
    both = (found.test_accuracy, run.metrics.test_accuracy)
    assert found.harmonic_mean == pytest.approx(statistics.harmonic_mean(both))
    everything = evaluate_run(classifier, open_cache(path), CPU)  # known and unknown classes: all from one text
    assert (everything.classes, everything.harmonic_mean) == (4, None)


def test_runs_with_a_residual_per_class_do_not(contents: CacheContents, tmp_path: Path) -> None:
    path = halves_of(contents, tmp_path / "halves.h5")
    base = open_cache(path, "base")
    for recipe in (RECIPE, RECIPE.changed(base="enhanced"), RECIPE.changed(residual="both")):
        (run,) = fit_each(base, [(4, 1)], [recipe], CPU, tmp_path / "runs")
        with pytest.raises(RunError, match="2 of 2 classes that the run does not know .'c', 'd'.*has no residual"):
            evaluate_run(run.classifier, open_cache(path, "new"), CPU)
    (run,) = fit_each(base, [(4, 1)], [RECIPE.changed(base="enhanced-only")], CPU, tmp_path / "runs")
    other = FeatureCache(path).contents()
    without = replace(other, text=TextBases(other.text.templates, other.text.embeddings))
    write_cache(path, without)
    with pytest.raises(RunError, match="no text/pre_projection of width 8 to apply the run's text projection to"):
        evaluate_run(run.classifier, open_cache(path, "new"), CPU)
