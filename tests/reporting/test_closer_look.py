"""What a report tells, against numbers worked out by hand from the cache's own features."""

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
from taskres_cache.reporting.published_results import FILE, published_figures, read_figures
from taskres_cache.reporting.studies import Study, gather_studies
from taskres_cache.runs.run import read_classifier
from taskres_cache.runs.study import fit_each

CPU = torch.device("cpu")
PLAIN = Recipe(epochs=30, lr=0.02)


@pytest.fixture
def many(contents: CacheContents, tmp_path: Path) -> FeatureCache:
    """The toy cache with 60 test images that are hard to tell apart, so that there are mistakes."""
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


def test_a_closer_look_by_hand(many: FeatureCache, tmp_path: Path) -> None:
    study = study_of(many, [PLAIN], tmp_path / "runs")
    closer = study.closer
    assert closer is not None
    assert (closer.seeds, closer.images, closer.classifier.shots) == ((1, 2), 60, 4)
    rows = many.rows("test")
    features, labels = many.image_features(rows), many.labels[rows]
    fits = [read_classifier(run.folder) for run in study.runs if run.metrics.shots == 4]
    taken, sure = [], []
    for fit in fits:
        weights = fit.base + 0.5 * fit.residual
        cosines = features @ weights.T / np.linalg.norm(features, axis=1)[:, None] / np.linalg.norm(weights, axis=1)
        likelihoods = np.exp(100.0 * (cosines - cosines.max(axis=1, keepdims=True)) / fit.temperature)
        likelihoods /= likelihoods.sum(axis=1, keepdims=True)
        taken.append(cosines.argmax(axis=1))
        sure.append(likelihoods.max(axis=1))
    expected = Counter((int(label), int(one)) for fit in taken for label, one in zip(labels, fit, strict=True))
    assert {cell: closer.confusion[cell] for cell in np.ndindex(3, 3)} == {
        cell: expected[cell] / 2 for cell in np.ndindex(3, 3)
    }
    wrong = [{place: float(sure[fit][place]) for place in np.flatnonzero(taken[fit] != labels)} for fit in (0, 1)]
    certainty = {place: sum(one.get(place, 0.0) for one in wrong) for place in wrong[0].keys() | wrong[1].keys()}
    surest = max(certainty, key=lambda place: certainty[place])
    first = closer.mistakes[0]
    assert first.path == f"{15 + surest}.png"
    assert first.fits == sum(surest in one for one in wrong)
    assert first.confidence == pytest.approx(100 * certainty[surest] / first.fits, rel=1e-4)
    assert first.name == many.classnames[labels[surest]]
    assert len(closer.mistakes) == min(24, len(certainty))
    for label, gain in enumerate(closer.gains):
        own = labels == label
        assert gain.images == own.sum()
        assert gain.adapted == pytest.approx(np.mean([100 * (fit[own] == label).mean() for fit in taken]))
    most = max((cell for cell in expected if cell[0] != cell[1]), key=lambda cell: expected[cell])
    assert closer.pairs[0].images == expected[most] / 2
    assert closer.pairs[0].share == pytest.approx(
        50 * expected[most] / (labels == many.classnames.index(closer.pairs[0].name)).sum()
    )
    assert closer.tempered.counts.sum() == closer.untempered.counts.sum() == 120
    assert np.average(closer.tempered.confidences, weights=closer.tempered.counts) == pytest.approx(np.mean(sure))
    assert closer.temperatures == tuple(fit.temperature for fit in fits)
    assert all(temperature != 1.0 for temperature in closer.temperatures)


def test_the_method_to_look_at_is_chosen_by_val(many: FeatureCache, tmp_path: Path) -> None:
    study = study_of(many, [PLAIN, PLAIN.changed(base="enhanced"), PLAIN.changed(lr=1e-5)], tmp_path / "runs")
    assert study.closer is not None
    assert study.closer.chosen_by == "the best by val accuracy"
    vals = {
        method: summaries[-1].mean_val_accuracy
        for method, summaries in study.methods.items()
        if summaries[-1].shots == 4
    }
    assert vals[study.closer.classifier.recipe.method_name()] == max(one or 0.0 for one in vals.values())
    assert next(iter(study.methods)).startswith("taskres-regular")  # the paper's own comes first


def test_without_its_cache_a_study_has_no_closer_look(many: FeatureCache, tmp_path: Path) -> None:
    study_of(many, [PLAIN], tmp_path / "runs")
    many.path.unlink()
    (study,) = gather_studies([tmp_path / "runs"], tmp_path / "cache", CPU)
    assert study.closer is None
    assert "does not exist" in study.unseen
    assert [summary.shots for summary in study.summaries] == [1, 4]


def test_a_changed_cache_is_told(many: FeatureCache, tmp_path: Path) -> None:
    study = study_of(many, [PLAIN], tmp_path / "runs")
    assert study.closer is not None
    assert study.closer.notes == ()
    held = many.contents()
    write_cache(many.path, replace(held, image_features=-np.asarray(held.image_features)))
    (study,) = gather_studies([tmp_path / "runs"], tmp_path / "cache", CPU)
    assert study.closer is not None
    assert "has changed since the runs of seed 1, 2" in study.closer.notes[0]


def test_runs_are_grouped_and_count_once(many: FeatureCache, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    study_of(many, [PLAIN], out)
    other = tmp_path / "cache" / "tower-random" / "other.h5"
    held = many.contents()
    write_cache(other, replace(held, provenance=replace(held.provenance, dataset="other")))
    list(fit_each(FeatureCache(other), [(4, 1)], [PLAIN], CPU, out))
    studies = gather_studies([out, out / "tower-random" / "toy", out], Path("nowhere"), CPU)
    assert sorted((study.dataset, len(study.runs)) for study in studies) == [("other", 1), ("toy", 3)]


def test_a_seed_never_counts_twice(many: FeatureCache, tmp_path: Path) -> None:
    for out in ("one", "two"):
        list(fit_each(many, [(4, 1)], [PLAIN], CPU, tmp_path / out))
    with pytest.raises(OptionError, match=r"one/.*seed_1 and .*two/.*seed_1 are the same fit; pass the folder of one"):
        gather_studies([tmp_path / "one", tmp_path / "two"], Path("nowhere"), CPU)
    held = many.contents()
    other = replace(held.provenance, weights_sha256="cd" * 32)  # weights of the same name are other weights
    write_cache(many.path, replace(held, provenance=other))
    list(fit_each(FeatureCache(many.path), [(4, 1)], [PLAIN], CPU, tmp_path / "three"))
    studies = gather_studies([tmp_path / "one", tmp_path / "three"], Path("nowhere"), CPU)
    assert [len(study.runs) for study in studies] == [1, 1]
    assert "another checkpoint" in studies[0].unseen  # whose features are no longer there
    assert studies[1].closer is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shots": None}, r"has a wrong or missing field: .*`int`, got `null` - at `\$\.shots`; fit the run again"),
        ({"test_accuracy": "high"}, r"has a wrong or missing field: .*`float`, got `str` - at `\$\.test_accuracy`"),
        (None, "holds a list, expected a JSON object"),
    ],
)
def test_metrics_that_are_none_are_named(
    many: FeatureCache, tmp_path: Path, change: dict[str, Any] | None, message: str
) -> None:
    study = study_of(many, [PLAIN], tmp_path / "runs")
    file = study.runs[0].folder / "metrics.json"
    file.write_text(json.dumps([1] if change is None else {**json.loads(file.read_text()), **change}))
    with pytest.raises(RunError, match=rf"metrics\.json {message}"):
        gather_studies([tmp_path / "runs"], Path("nowhere"), CPU)


def test_what_a_report_can_do_without_may_lack(many: FeatureCache, tmp_path: Path) -> None:
    study = study_of(many, [PLAIN], tmp_path / "runs")
    for run in study.runs:
        stored = run.metrics.to_json()
        for name in ("cache", "top5_accuracy", "images"):
            del stored[name]
        (run.folder / "metrics.json").write_text(json.dumps({**stored, "seconds": None}))
    (study,) = gather_studies([tmp_path / "runs"], tmp_path / "cache", CPU)
    assert study.closer is not None  # the cache lies where it belongs
    assert study.summaries[0].mean_fit_seconds is None
    assert "taskres-regular" in as_page([study], "t", None, datetime(2026, 1, 1))


def test_every_published_number_has_its_source() -> None:
    found = read_figures(FILE)
    assert len(found) == 10
    for _, figures in found:
        assert figures.source.title
        assert figures.source.url.startswith("https://")
        assert figures.source.where
        assert figures.setting
        assert all(0 < accuracy < 100 for accuracy in figures.accuracy.values())
    (figures,) = published_figures("dtd", "ViT-B-16", "openai")
    assert (figures.method, figures.accuracy) == ("TaskRes", {16: 71.5})
    assert published_figures("dtd", "ViT-B-16", "laion2b_s34b_b88k") == []


def test_a_published_number_without_a_source_is_refused(tmp_path: Path) -> None:
    from taskres_cache.errors import CacheError

    file = tmp_path / "figures.json"
    stored = json.loads(FILE.read_text())
    del stored["tables"][0]["where"]
    file.write_text(json.dumps(stored))
    with pytest.raises(CacheError, match="lacks its source"):
        read_figures(file)
    stored = json.loads(FILE.read_text())
    stored["tables"][0]["accuracy"]["dtd"].append(1.0)
    file.write_text(json.dumps(stored))
    read_figures.cache_clear()
    with pytest.raises(CacheError, match="2 numbers, expected 1"):
        read_figures(file)
