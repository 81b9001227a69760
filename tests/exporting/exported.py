"""Runs to export and their expected probabilities, for the tests of exports."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.runs.fitting.study import fit_each, recipe_of
from taskres_cache.runs.run import read_classifier, read_metrics, write_run
from tests.by_hand import probabilities

NO_CACHE = Path("nowhere")
CPU = torch.device("cpu")


def session_of(file: Path) -> Any:
    """Open a graph with onnxruntime; skip the test if it is not installed."""
    onnxruntime = pytest.importorskip("onnxruntime")
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def skip_without_the_extra(name: str) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime") if name == "head.onnx" else ():
        pytest.importorskip(package)


def fitted(cache: FeatureCache, out: Path, **choices: Any) -> Path:
    """Fit one run on the first split of a cache, with a temperature of 1.7."""
    recipe = recipe_of(cache, **{"epochs": 5, "lr": 0.02, **choices})
    (run,) = fit_each(cache, [next(iter(cache.splits))], [recipe], CPU, out)
    classifier = replace(read_classifier(run.folder), temperature=1.7)
    write_run(run.folder, classifier, read_metrics(run.folder))
    return run.folder


def by_hand(run: Path, image_features: np.ndarray) -> np.ndarray:
    """Return the probabilities (N, C) of a run, computed from its file in float64 without the library."""
    stored = load_file(run / "classifier.safetensors")
    with safe_open(run / "classifier.safetensors", framework="numpy") as file:
        alpha, scale, temperature = (float(file.metadata()[name]) for name in ("alpha", "logit_scale", "temperature"))
    weights = stored["base"].astype(np.float64) + alpha * stored["residual"]
    shift = alpha * stored.get("image_residual", np.float64(0))
    return probabilities(image_features, weights, scale, shift, temperature)


def random_features(count: int, width: int = 8) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, width)).astype(np.float32)
