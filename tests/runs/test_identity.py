"""A run's identity: what two runs must share to be one, and what a reader notices of a change."""

import json
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from taskres_cache.caches.contents import CacheContents, TextBases
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.hdf5 import write_cache
from taskres_cache.errors import RunError
from taskres_cache.reporting.studies import gather_studies
from taskres_cache.runs.finding import find_runs
from taskres_cache.runs.fitting.study import finished_runs, fit_each
from taskres_cache.runs.run import Run, load_run, read_classifier, read_metrics, write_run
from tests.conftest import Taskres, make_earlier, one_line
from tests.runs.conftest import CPU, RECIPE


def fitted(path: Path, contents: CacheContents, out: Path, seed: int = 1) -> Run:
    write_cache(path, contents)
    (run,) = fit_each(FeatureCache(path), [(4, seed)], [RECIPE], CPU, out)
    return run


def with_prompts(contents: CacheContents, *templates: str) -> CacheContents:
    embeddings = contents.text.embeddings[:, : len(templates)] + np.float32(0.01)
    return replace(contents, text=TextBases(templates, embeddings))


def test_a_fit_of_other_inputs_keeps_the_first(cache_file: Path, contents: CacheContents, tmp_path: Path) -> None:
    first = fitted(cache_file, contents, tmp_path / "runs")
    before = {file.name: file.read_bytes() for file in first.folder.iterdir()}
    other = fitted(cache_file, with_prompts(contents, "one {}."), tmp_path / "runs")
    assert {file.name: file.read_bytes() for file in first.folder.iterdir()} == before
    assert (first.kept, other.kept) == (None, first.folder)
    assert other.folder.name == f"seed_1-{other.metrics.inputs_sha256[:8]}"
    again = fitted(cache_file, with_prompts(contents, "one {}."), tmp_path / "runs")
    assert (again.folder, again.kept) == (other.folder, first.folder)  # the same result is replaced
    assert sorted(path.name for path in first.folder.parent.iterdir()) == sorted([first.folder.name, other.folder.name])
    assert finished_runs(FeatureCache(cache_file), [(4, 1)], RECIPE, tmp_path / "runs")[4, 1].folder == other.folder
    write_cache(cache_file, contents)
    assert finished_runs(FeatureCache(cache_file), [(4, 1)], RECIPE, tmp_path / "runs")[4, 1].folder == first.folder


def test_classes_that_differ_only_in_their_ids_are_other_inputs(
    cache_file: Path, contents: CacheContents, tmp_path: Path
) -> None:
    runs = [
        fitted(cache_file, replace(contents, class_ids=ids), tmp_path / "runs")
        for ids in (("n1", "n2", "n3"), ("n3", "n2", "n1"))
    ]
    assert len({run.folder for run in runs}) == 2
    assert len({run.metrics.study_sha256 for run in runs}) == 2


def test_all_methods_and_splits_of_a_cache_are_of_one_study(cache_file: Path, tmp_path: Path) -> None:
    recipes = [RECIPE, RECIPE.changed(base="enhanced"), RECIPE.changed(residual="image")]
    runs = list(fit_each(FeatureCache(cache_file), [(1, 1), (1, 2), (4, 1)], recipes, CPU, tmp_path / "runs"))
    assert len({run.metrics.study_sha256 for run in runs}) == 1
    assert len({run.metrics.inputs_sha256 for run in runs}) == 6  # by split, and with the inputs of the projection


@pytest.mark.parametrize("name", ["classifier.safetensors", "metrics.json"])
def test_an_unreadable_result_is_kept_unless_the_other_file_tells_its_inputs(
    cache_file: Path, contents: CacheContents, tmp_path: Path, name: str
) -> None:
    first = fitted(cache_file, contents, tmp_path / "runs")
    (first.folder / name).write_bytes(b"torn")
    assert fitted(cache_file, contents, tmp_path / "runs").folder == first.folder
    assert load_run(first.folder).metrics.test_accuracy == first.metrics.test_accuracy
    for file in first.folder.iterdir():
        file.write_bytes(b"torn")
    second = fitted(cache_file, contents, tmp_path / "runs")
    assert second.kept == first.folder
    assert {file.read_bytes() for file in first.folder.iterdir()} == {b"torn"}


def test_runs_of_earlier_versions_are_read_and_replaced_by_the_same_result(
    cache_file: Path, contents: CacheContents, tmp_path: Path
) -> None:
    first = fitted(cache_file, contents, tmp_path / "runs")
    make_earlier(first.folder)
    assert load_run(first.folder).metrics.test_accuracy == first.metrics.test_accuracy
    assert list(finished_runs(FeatureCache(cache_file), [(4, 1)], RECIPE, tmp_path / "runs")) == [(4, 1)]
    assert fitted(cache_file, contents, tmp_path / "runs").folder == first.folder
    make_earlier(first.folder, "inputs_sha256")  # of a version that did not record its inputs: it may be any fit
    assert fitted(cache_file, contents, tmp_path / "runs").kept == first.folder


@pytest.mark.parametrize("name", ["classifier.safetensors", "metrics.json"])
def test_files_of_two_fits_are_refused(cache_file: Path, contents: CacheContents, tmp_path: Path, name: str) -> None:
    first = fitted(cache_file, contents, tmp_path / "runs")
    other = fitted(cache_file, with_prompts(contents, "one {}."), tmp_path / "others")
    shutil.copy(other.folder / name, first.folder / name)
    message = r"seed_1/classifier.safetensors and .*seed_1/metrics.json are of different fits .*; fit the run again"
    for read in (load_run, read_classifier, read_metrics):
        with pytest.raises(RunError, match=message):
            read(first.folder)
    make_earlier(other.folder)
    shutil.copy(other.folder / name, first.folder / name)  # new and old
    with pytest.raises(RunError, match=message):
        load_run(first.folder)


@pytest.mark.parametrize("name", ["classifier.safetensors", "metrics.json"])
def test_a_flipped_bit_is_found(cache_file: Path, contents: CacheContents, tmp_path: Path, name: str) -> None:
    run = fitted(cache_file, contents, tmp_path / "runs")
    file, rng = run.folder / name, random.Random(5)
    whole = file.read_bytes()
    for _ in range(100):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        try:
            again = load_run(run.folder)
        except RunError as error:
            assert len(str(error).splitlines()) == 1
            continue
        assert again.metrics == run.metrics  # the bit was in white space
        assert np.array_equal(again.classifier.head.weights, read_classifier(run.folder).head.weights)


def test_a_run_half_written_is_not_found(cache_file: Path, contents: CacheContents, tmp_path: Path) -> None:
    run = fitted(cache_file, contents, tmp_path / "runs")
    left = run.folder.with_name(".seed_2.0123.tmp")
    write_run(left, run.classifier, run.metrics)
    assert find_runs(tmp_path / "runs") == [run.folder]
    fitted(cache_file, contents, tmp_path / "runs")
    assert left.exists()  # another process may be writing it
    os.utime(left, (0, 0))
    fitted(cache_file, contents, tmp_path / "runs")
    assert not left.exists()


def test_a_report_never_averages_over_unlike_inputs(cache_file: Path, contents: CacheContents, tmp_path: Path) -> None:
    more = with_prompts(contents, "one {}.", "two {}.")
    for seed in (1, 2):
        fitted(cache_file, contents, tmp_path / "runs", seed)
        fitted(cache_file, more, tmp_path / "runs", seed)
    studies = gather_studies([tmp_path / "runs"], Path("nowhere"), CPU)
    assert [study.title for study in studies] == [
        "toy, prompts a photo of a {}. | art of the {}.",
        "toy, prompts one {}. | two {}.",
    ]
    assert [study.summaries[0].seeds for study in studies] == [(1, 2), (1, 2)]
    drawn_otherwise = {**more.splits, (4, 1): more.splits[4, 2]}
    fitted(cache_file, replace(more, splits=drawn_otherwise), tmp_path / "runs")
    titles = [study.title for study in gather_studies([tmp_path / "runs"], Path("nowhere"), CPU)]
    assert len(set(titles)) == 3
    assert sum("inputs" in title for title in titles) == 2


def test_the_commands_say_what_is_kept(cache_file: Path, contents: CacheContents, here: Path, taskres: Taskres) -> None:
    def fit(made_from: CacheContents, *options: object) -> str:
        write_cache(cache_file, made_from)
        arguments = ("fit", cache_file, "--shots", 4, "--seeds", "1,2", "--epochs", 3, "--device", "cpu", *options)
        outcome = taskres(*arguments)
        assert outcome.status == 0, outcome.err
        return outcome.err

    assert "is kept" not in fit(contents)
    assert (
        fit(with_prompts(contents, "one {}.")).count("holds a run of other inputs and is kept; the new run is in") == 2
    )
    outcome = taskres("eval", here / "runs", "--device", "cpu")
    assert outcome.status == 0, outcome.err
    assert outcome.out.count("prompts one {}.") == 1
    assert outcome.out.count("test data: toy") == 2
    torch.set_num_threads(1)
    records = json.loads(taskres("eval", here / "runs", "--device", "cpu", "--json").out)
    assert len({record["run"] for record in records}) == 4


def test_eval_goes_on_after_a_run_of_other_classes(
    cache_file: Path, contents: CacheContents, here: Path, taskres: Taskres
) -> None:
    first = fitted(cache_file, contents, here / "runs")
    renamed = replace(contents, classnames=("black_cat", "dog", "zebra"))
    second = fitted(cache_file, renamed, here / "runs")
    outcome = taskres("eval", "runs", "--device", "cpu", "--json")
    assert outcome.status == 0, outcome.err
    assert [record["run"] for record in json.loads(outcome.out)] == [str(second.folder.relative_to(here))]
    assert f"note: {first.folder.relative_to(here)} is left out: " in outcome.err
    assert "1 of 3 classes that the run does not know" in one_line(taskres("eval", first.folder, "--device", "cpu"))
