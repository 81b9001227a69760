"""Exports of every kind of head: safetensors and ONNX give the run's probabilities; open_clip where it is a matrix."""

from pathlib import Path

import numpy as np
import pytest
import torch

from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.errors import OptionError
from taskres_cache.exporting.export import export_head
from taskres_cache.runs.fitting.method_study import fit_methods
from taskres_cache.runs.run import Run
from tests.exporting.exported import skip_without_the_extra
from tests.runs.fitting.test_method_study import CPU, KINDS, choice


@pytest.fixture
def cache(cache_file: Path) -> FeatureCache:
    return FeatureCache(cache_file)


def run_of(kind: str, cache: FeatureCache, out: Path) -> Run:
    (run,) = fit_methods(cache, [(4, 1)], [choice(kind=kind)], CPU, out)
    return run


@pytest.mark.parametrize("name", ["head.safetensors", "head.onnx"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_export_gives_the_probabilities_of_the_run(
    kind: str, name: str, cache: FeatureCache, tmp_path: Path
) -> None:
    skip_without_the_extra(name)
    run = run_of(kind, cache, tmp_path / "runs")
    done = export_head(run.folder, tmp_path / name, None, tmp_path)
    assert done.comparison.of == "test images of the run's cache"
    assert done.comparison.greatest_difference <= done.comparison.tolerance


@pytest.mark.parametrize("kind", KINDS)
def test_the_printed_lines_give_the_probabilities_of_the_run(kind: str, cache: FeatureCache, tmp_path: Path) -> None:
    run = run_of(kind, cache, tmp_path / "runs")
    done = export_head(run.folder, tmp_path / "head.safetensors", None, tmp_path)
    features, _ = cache.test()
    lines = "\n".join(done.usage).replace('"head.safetensors"', repr(str(tmp_path / "head.safetensors")))
    names: dict[str, object] = {"image_features": torch.from_numpy(features)}
    exec(lines, names)
    probabilities = names["probabilities"]
    assert isinstance(probabilities, torch.Tensor)
    assert np.allclose(probabilities.numpy(), run.probabilities(features), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_open_clip_takes_a_plain_matrix_only(kind: str, cache: FeatureCache, tmp_path: Path) -> None:
    run = run_of(kind, cache, tmp_path / "runs")
    if kind == "cosine":
        assert export_head(run.folder, tmp_path / "head.pt", None, tmp_path).classes == len(cache.classnames)
        return
    with pytest.raises(OptionError, match="an open_clip head cannot hold .*; export to .safetensors or .onnx"):
        export_head(run.folder, tmp_path / "head.pt", None, tmp_path)
    assert not (tmp_path / "head.pt").exists()
