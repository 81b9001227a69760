"""Whether an exported file says what its run says: asked about the same inputs, compared in probability.

Axes: N inputs, C classes, D embedding, H and W height and width of the model's images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.encoders.backbone import Backbone
from taskres_cache.errors import ExportError, TaskresError
from taskres_cache.exporting.tensors import sharpness
from taskres_cache.runs.run import Classifier, own_cache

Ask = Callable[[Sequence[Path], np.ndarray], np.ndarray]  # of files and inputs, see `tensors.Form.ask`

MOST_ROWS = 4096
TRIAL_IMAGES, BLOTCHES, SIDE = 8, 6, 256
USUAL_SCALE = 100.0  # of cosines; where it is higher, their rounding counts for more
FAINTEST = 1e-30  # of probabilities; float32 ends at 1e-38
FACTOR_FOR_DIFFERENCE = 100  # how much further faint probabilities may be apart, relatively (rounding: 4 at 0.5)
REMEDY = "whatever was there before is kept; export again, or to another format"


@dataclass(frozen=True)
class Trial:
    """Inputs, float32, and what the run says of them.

    Parameters
    ----------
    inputs : (N, D) un-normalised features, or (N, 3, H, W) pixels.
    expected : (N, C) probabilities, float64.
    of : what the inputs are.
    """

    inputs: np.ndarray
    expected: np.ndarray
    of: str


@dataclass(frozen=True)
class Comparison:
    """How an exported file, read again, agreed with the run.

    Parameters
    ----------
    rows, of : how many inputs were compared, and what they were.
    greatest_difference, tolerance : of probabilities, and how much of it is put down to rounding.
    """

    rows: int
    of: str
    greatest_difference: float
    tolerance: float


def head_trial(folder: Path, classifier: Classifier, cache_dir: Path) -> Trial:
    """Return un-normalised features to compare on: of the run's own test images, else seeded ones."""
    features, of = _own_test_features(folder, classifier, cache_dir), "test images of the run's own cache"
    if features is None:
        features, of = _seeded_features(classifier), "seeded random features (the run's own cache is not here)"
    return Trial(features, _expected(classifier, features), of)


def image_trial(classifier: Classifier, backbone: Backbone) -> Trial:
    """Return seeded images to compare on: coloured blotches, framed as the encoder frames every image."""
    rng = np.random.default_rng(0)
    grids = rng.integers(0, 256, (TRIAL_IMAGES, BLOTCHES, BLOTCHES, 3), dtype=np.uint8)
    images = [Image.fromarray(grid).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for grid in grids]
    framed = np.stack([np.asarray(backbone.framing(image)) for image in images])  # (N, H, W, 3)
    features = backbone.encode_images(backbone.on_device(framed))
    pixels = framed.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)  # (N, 3, H, W)
    return Trial(pixels, _expected(classifier, features), "seeded random images")


def tolerance_at(usual: float, classifier: Classifier) -> float:
    """Return how far probabilities may lie apart, given how far they may where cosines are multiplied by 100."""
    return usual * max(1.0, sharpness(classifier) / USUAL_SCALE)


def compared(ask: Ask, written: Sequence[Path], trial: Trial, tolerance: float, file: Path) -> Comparison:
    """Return how what was written agrees with the run.

    Parameters
    ----------
    ask : returns the probabilities (N, C) that files give inputs.
    written : those files.
    trial : inputs, and what is expected.
    tolerance : of probabilities. The best class may be another one only where the run holds both as likely within it;
        and faint probabilities may differ by a factor of no more than 1 + 100 times as much.
    file : what they are to become, for messages.

    Raises
    ------
    ExportError : the files cannot be read, or say something else than the run.
    """
    refused = f"{file} is not exported: what was written"
    try:
        found = ask(written, trial.inputs)
    except Exception as error:  # whatever safetensors, torch or onnxruntime raise for a file that they cannot read
        reason = " ".join(str(error).split())[:200]
        raise ExportError(f"{refused} cannot be read again ({reason}); {REMEDY}") from error
    if found.shape != trial.expected.shape:
        raise ExportError(f"{refused} gives {found.shape}, expected {trial.expected.shape}; {REMEDY}")
    difference, lost, factor = _differences(found, trial.expected)
    # Written so that NaN is refused too. Where one class is all but certain, only the factor tells a wrong tower.
    if not (difference <= tolerance and lost <= tolerance and factor <= 1 + FACTOR_FOR_DIFFERENCE * tolerance):
        raise ExportError(
            f"{refused} differs from the run by {difference:.2g} in probability, and by a factor of {factor:.3g}, on "
            f"{len(found)} {trial.of}; at most {tolerance:.2g} is rounding; {REMEDY}"
        )
    return Comparison(len(found), trial.of, difference, tolerance)


def _differences(found: np.ndarray, expected: np.ndarray) -> tuple[float, float, float]:
    """Return how far apart probabilities (N, C) are: their greatest difference, the best class's loss, their factor.

    The loss is by how much the run holds its own best class more likely than the one that was found; the factor is of
    probabilities that float32 can tell from nothing.
    """
    chosen = np.take_along_axis(expected, found.argmax(axis=1)[:, None], axis=1)[:, 0]  # (N,)
    seen = expected > FAINTEST
    with np.errstate(divide="ignore"):
        ratios = np.abs(np.log(found[seen]) - np.log(expected[seen]))
    lost = (expected.max(axis=1) - chosen).max()
    return float(np.abs(found - expected).max()), float(lost), float(np.exp(ratios.max()))


def _own_test_features(folder: Path, classifier: Classifier, cache_dir: Path) -> np.ndarray | None:
    """Return features (N, D) of test images, spread over the whole part; None where there is no cache that fits."""
    try:
        cache = FeatureCache(own_cache(folder, classifier, cache_dir))
        rows = cache.rows("test")
        if cache.dim != classifier.base.shape[1] or len(rows) == 0:
            return None
        spread = np.linspace(0, len(rows) - 1, min(len(rows), MOST_ROWS)).astype(np.int64)
        return cache.image_features(rows[spread])
    except (TaskresError, KeyError):  # moved away, damaged, or metrics that do not name it
        return None


def _seeded_features(classifier: Classifier) -> np.ndarray:
    """Return features (N, D) that lie as far from their class's weights as images do: mostly elsewhere."""
    head, rng = classifier.head, np.random.default_rng(0)
    own = head.weights.numpy()[np.arange(MOST_ROWS) % len(head.weights)]  # (N, D)
    noise = rng.normal(size=own.shape) / np.sqrt(own.shape[1])
    features: np.ndarray = own + 3.0 * np.linalg.norm(own, axis=1, keepdims=True) * noise
    return (features - (0.0 if head.image_shift is None else head.image_shift.numpy())).astype(np.float32)


def _expected(classifier: Classifier, features: np.ndarray) -> np.ndarray:
    """Return the run's own probabilities (N, C) of un-normalised features (N, D), in float64: free of rounding."""
    exact: np.ndarray = classifier.head.to(torch.float64).probabilities(torch.from_numpy(features).double()).numpy()
    return exact
