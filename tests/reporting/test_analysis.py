"""Studies and their analysis, compared with numbers worked out from the features of the cache."""

import json
from collections import Counter
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from taskres_cache.caches.contents import CacheContents
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.hdf5 import write_cache
from taskres_cache.errors import OptionError, RunError
from taskres_cache.recipe import Recipe
from taskres_cache.reporting.page import as_page
from taskres_cache.reporting.report import as_markdown
from taskres_cache.reporting.studies import Study, gather_studies
from taskres_cache.runs.fitting.study import fit_each
from taskres_cache.runs.run import read_classifier
from tests.by_hand import probabilities
from tests.conftest import make_earlier

CPU = torch.device("cpu")
PLAIN = Recipe(epochs=30, lr=0.02)


@pytest.fixture
def many(contents: CacheContents, tmp_path: Path) -> FeatureCache:
    """The toy cache with 60 test images that are hard to classify, so that there are errors."""
    rng = np.random.default_rng(3)
    labels = np.concatenate([contents.labels[:15], rng.integers(0, 3, 60).astype(np.int32)])
    rows = contents.image_features[:15]
    centres = np.stack([rows[contents.labels[:15] == label].mean(axis=0) for label in range(3)])
    hard = centres[labels[15:]] + rng.normal(scale=1.6, size=(60, 8))
    harder = replace(
        contents,
        paths=tuple(f"{row}.png" for row in range(75)),
        stamps=tuple(f"10-{row}" for row in range(75)),
        labels=labels,
        partitions=np.concatenate([contents.partitions[:15], np.full(60, 2, np.uint8)]),
        image_features=np.concatenate([rows, hard]).astype(np.float32),
    )
    path = tmp_path / "cache" / "tower-random" / "toy.h5"
    write_cache(path, harder)
    return FeatureCache(path)


def study_of(cache: FeatureCache, recipes: list[Recipe], out: Path) -> Study:
    list(fit_each(cache, [(1, 1), (4, 1), (4, 2)], recipes, CPU, out))
    (study,) = gather_studies([out], Path("nowhere"), CPU)
    return study


def test_an_analysis_by_hand(many: FeatureCache, tmp_path: Path) -> None:
    study = study_of(many, [PLAIN], tmp_path / "runs")
    analysis = study.analysis
    assert analysis is not None
    assert (analysis.seeds, analysis.images, analysis.classifier.shots) == ((1, 2), 60, 4)
    rows = many.rows("test")
    features, labels = many.image_features(rows), many.labels[rows]
    fits = [read_classifier(run.folder) for run in study.runs if run.metrics.shots == 4]
    predicted, confidences = [], []
    for fit in fits:
        weights = fit.base + 0.5 * fit.residual
        likelihoods = probabilities(features, weights, 100.0, temperature=fit.temperature)
        predicted.append(likelihoods.argmax(axis=1))
        confidences.append(likelihoods.max(axis=1).astype(np.float32))  # ties as in the library
    expected = Counter((int(label), int(one)) for fit in predicted for label, one in zip(labels, fit, strict=True))
    assert {cell: analysis.confusion[cell] for cell in np.ndindex(3, 3)} == {
        cell: expected[cell] / 2 for cell in np.ndindex(3, 3)
    }
    errors = [np.flatnonzero(fit != labels) for fit in predicted]
    wrong = [{place: float(confidences[fit][place]) for place in errors[fit]} for fit in (0, 1)]
    summed = {place: sum(one.get(place, 0.0) for one in wrong) for place in wrong[0].keys() | wrong[1].keys()}
    surest = max(summed, key=lambda place: summed[place])
    first = analysis.errors[0]
    assert first.path == f"{15 + surest}.png"
    assert first.fits == sum(surest in one for one in wrong)
    assert first.confidence == pytest.approx(100 * summed[surest] / first.fits, rel=1e-4)
    assert first.true_class == many.classnames[labels[surest]]
    assert len(analysis.errors) == min(24, len(summed))
    for label, gain in enumerate(analysis.gains):
        own = labels == label
        assert gain.images == own.sum()
        assert gain.adapted == pytest.approx(np.mean([100 * (fit[own] == label).mean() for fit in predicted]))
    most = max((cell for cell in expected if cell[0] != cell[1]), key=lambda cell: expected[cell])
    assert analysis.pairs[0].images == expected[most] / 2
    assert analysis.pairs[0].share == pytest.approx(
        50 * expected[most] / (labels == many.classnames.index(analysis.pairs[0].true_class)).sum()
    )
    assert analysis.tempered.counts.sum() == analysis.untempered.counts.sum() == 120
    mean_confidence = np.average(analysis.tempered.confidences, weights=analysis.tempered.counts)
    assert mean_confidence == pytest.approx(np.mean(confidences))
    assert analysis.temperatures == tuple(fit.temperature for fit in fits)
    assert all(temperature != 1.0 for temperature in analysis.temperatures)


def test_the_analysed_method_is_chosen_by_validation_accuracy(many: FeatureCache, tmp_path: Path) -> None:
    study = study_of(many, [PLAIN, PLAIN.changed(base="enhanced"), PLAIN.changed(lr=1e-5)], tmp_path / "runs")
    assert study.analysis is not None
    assert study.analysis.chosen_by == "the method with the best validation accuracy at the most shots"
    vals = {
        method: summaries[-1].mean_val_accuracy
        for method, summaries in study.methods.items()
        if summaries[-1].shots == 4
    }
    assert vals[study.analysis.classifier.recipe.method_name()] == max(one or 0.0 for one in vals.values())
    assert next(iter(study.methods)).startswith("taskres-regular")  # the paper's method comes first


def test_without_its_cache_a_study_has_no_analysis(many: FeatureCache, tmp_path: Path) -> None:
    study_of(many, [PLAIN], tmp_path / "runs")
    many.path.unlink()
    (study,) = gather_studies([tmp_path / "runs"], tmp_path / "cache", CPU)
    assert study.analysis is None
    assert "does not exist" in study.analysis_error
    assert [summary.shots for summary in study.summaries] == [1, 4]


def test_a_changed_cache_is_noted(many: FeatureCache, tmp_path: Path) -> None:
    study = study_of(many, [PLAIN], tmp_path / "runs")
    assert study.analysis is not None
    assert study.analysis.notes == ()
    stored = many.contents()
    write_cache(many.path, replace(stored, image_features=-np.asarray(stored.image_features)))
    (study,) = gather_studies([tmp_path / "runs"], tmp_path / "cache", CPU)
    assert study.analysis is not None
    assert "has changed since the runs of seeds 1, 2 were measured" in study.analysis.notes[0]


def test_what_the_accuracies_leave_out_is_noted(many: FeatureCache, tmp_path: Path) -> None:
    stored = many.contents()
    partitions = stored.partitions.copy()
    partitions[(partitions == 2) & (stored.labels == 1)] = 0  # no test image of "dog"
    splits = {name: replace(split, val=np.zeros(0, np.int64)) for name, split in stored.splits.items()}
    skipped = {"dog/1.png": "truncated", "dog/2.png": "truncated"}
    write_cache(many.path, replace(stored, partitions=partitions, splits=splits, skipped=skipped))
    study = study_of(FeatureCache(many.path), [PLAIN], tmp_path / "runs")
    assert study.analysis is not None
    images, classes, temperature = study.analysis.notes
    assert images.endswith("2 images were unreadable and skipped when the cache was made")
    assert classes.endswith("1 class has no test image and does not count: 'dog'")
    assert "have no validation images: their temperature is 1" in temperature
    for text in (as_page([study], "t", None, datetime(2026, 1, 1)), as_markdown([study], "t")):
        assert "2 images were unreadable" in text
        assert "their temperature is 1" in text


def test_runs_are_grouped_and_counted_once(many: FeatureCache, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    study_of(many, [PLAIN], out)
    other = tmp_path / "cache" / "tower-random" / "other.h5"
    stored = many.contents()
    write_cache(other, replace(stored, provenance=replace(stored.provenance, dataset="other")))
    list(fit_each(FeatureCache(other), [(4, 1)], [PLAIN], CPU, out))
    studies = gather_studies([out, out / "tower-random" / "toy", out], Path("nowhere"), CPU)
    assert sorted((study.dataset, len(study.runs)) for study in studies) == [("other", 1), ("toy", 3)]


def test_a_seed_is_never_counted_twice(many: FeatureCache, tmp_path: Path) -> None:
    for out in ("one", "two"):
        list(fit_each(many, [(4, 1)], [PLAIN], CPU, tmp_path / out))
    with pytest.raises(OptionError, match=r"one/.*seed_1 and .*two/.*seed_1 are the same fit; pass the folder of one"):
        gather_studies([tmp_path / "one", tmp_path / "two"], Path("nowhere"), CPU)
    stored = many.contents()
    other = replace(stored.provenance, weights_sha256="cd" * 32)  # same name, different weights
    write_cache(many.path, replace(stored, provenance=other))
    list(fit_each(FeatureCache(many.path), [(4, 1)], [PLAIN], CPU, tmp_path / "three"))
    studies = gather_studies([tmp_path / "one", tmp_path / "three"], Path("nowhere"), CPU)
    assert [len(study.runs) for study in studies] == [1, 1]
    assert "another checkpoint" in studies[0].analysis_error  # its features are gone
    assert studies[1].analysis is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"shots": None},
            r"has a wrong or missing field: .*int \| str`, got `null` - at `\$\.shots`; fit the run again",
        ),
        ({"test_accuracy": "high"}, r"has a wrong or missing field: .*`float`, got `str` - at `\$\.test_accuracy`"),
        (None, "holds a list, expected a JSON object"),
    ],
)
def test_damaged_metrics_are_named(
    many: FeatureCache, tmp_path: Path, change: dict[str, Any] | None, message: str
) -> None:
    study = study_of(many, [PLAIN], tmp_path / "runs")
    file = study.runs[0].folder / "metrics.json"
    file.write_text(json.dumps([1] if change is None else {**json.loads(file.read_text()), **change}))
    with pytest.raises(RunError, match=rf"metrics\.json {message}"):
        gather_studies([tmp_path / "runs"], Path("nowhere"), CPU)


def test_a_report_of_runs_of_earlier_versions(many: FeatureCache, tmp_path: Path) -> None:
    study = study_of(many, [PLAIN], tmp_path / "runs")
    for run in study.runs:
        make_earlier(run.folder, "cache", "top5_accuracy", "images", seconds=None)
    (study,) = gather_studies([tmp_path / "runs"], tmp_path / "cache", CPU)
    assert study.analysis is not None  # the cache is in its default place
    assert study.summaries[0].mean_fit_seconds is None
    assert "taskres-regular" in as_page([study], "t", None, datetime(2026, 1, 1))


def test_a_report_begins_with_what_was_gained(many: FeatureCache, tmp_path: Path) -> None:
    study = study_of(many, [PLAIN], tmp_path / "runs")
    runs = [run.metrics for run in study.runs if run.metrics.shots == 4]
    mean = np.mean([metrics.test_accuracy for metrics in runs])
    by = abs(mean - runs[0].zero_shot_accuracy)
    page, text = as_page([study], "Toy", None, datetime(2026, 1, 1)), as_markdown([study], "Toy")
    first_line = next(line for line in text.splitlines()[1:] if line)
    for found in (page.partition("<strong>")[2].partition("</strong>")[0], first_line):
        assert f"with 4 shots: {mean:.1f} % (" in found
        assert f"{by:.1f} points" in found
    assert page.index("<strong>") < page.index('<dl class="facts">')
    without = replace(study, analysis=None, analysis_error="no cache")
    assert "with 4 shots: " not in as_markdown([without], "Toy") + as_page([without], "Toy", None, datetime(2026, 1, 1))
