"""Compare an exported file with its run: same inputs, difference in probabilities.

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
from taskres_cache.exporting.form import cosine_scale
from taskres_cache.heads.kinds import CosineHead
from taskres_cache.runs.classifier import Classifier
from taskres_cache.runs.evaluation import inputs_of
from taskres_cache.runs.run import own_cache

Predict = Callable[[Sequence[Path], np.ndarray], np.ndarray]  # see `form.Form.probabilities`

MAX_ROWS = 4096
RANDOM_IMAGES, BLOTCHES, SIDE = 8, 6, 256
BATCH = 16  # pictures that are encoded together
REFERENCE_SCALE = 100.0  # of cosines; tolerances are for this scale, rounding errors grow with it
SMALLEST_PROBABILITY = 1e-30  # that is compared; float32 ends at 1e-38
RATIO_TOLERANCE = 100  # tolerance of ratios / tolerance of differences (rounding: 4 at probability 0.5)
REMEDY = "existing files are unchanged; export again, or to another format"


@dataclass(frozen=True)
class Reference:
    """Inputs and what the run predicts for them.

    Parameters
    ----------
    inputs : ndarray of shape (N, D) or (N, 3, H, W), float32
        Un-normalised features, or pixels.
    expected : ndarray of shape (N, C), float64
        Probabilities.
    of : str
        Where the inputs came from, as in "test images of the run's cache".
    """

    inputs: np.ndarray
    expected: np.ndarray
    of: str


@dataclass(frozen=True)
class Comparison:
    """How closely an exported file agrees with the run.

    Parameters
    ----------
    rows : int
        Number of inputs.
    of : str
        Where the inputs came from.
    greatest_difference : float
        Largest difference of a probability.
    tolerance : float
        Largest difference that counts as rounding.
    """

    rows: int
    of: str
    greatest_difference: float
    tolerance: float


def head_reference(folder: Path, classifier: Classifier, cache_dir: Path) -> Reference:
    """Return features to compare on: test images of the run's cache, or random ones if that is not available.

    Parameters
    ----------
    folder : Path
        The run folder.
    classifier : Classifier
        Its classifier.
    cache_dir : Path
        Folder of all caches.
    """
    features, of = _test_features(folder, classifier, cache_dir), "test images of the run's cache"
    if features is None:
        features, of = _random_features(classifier), "random features with a fixed seed (the run's cache was not found)"
    return Reference(features, _expected(classifier, features), of)


def image_reference(classifier: Classifier, backbone: Backbone) -> Reference:
    """Return random images to compare on: coloured blotches, resized and cropped as the encoder does."""
    rng = np.random.default_rng(0)
    grids = rng.integers(0, 256, (RANDOM_IMAGES, BLOTCHES, BLOTCHES, 3), dtype=np.uint8)
    images = [Image.fromarray(grid).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for grid in grids]
    framed = np.stack([np.asarray(backbone.framing(image)) for image in images])  # (N, H, W, 3)
    features, before = backbone.encode_images_with_inputs(backbone.on_device(framed))
    inputs = features if classifier.head.input == "features" or before is None else before
    pixels = framed.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)  # (N, 3, H, W)
    return Reference(pixels, _expected(classifier, inputs), "random images with a fixed seed")


def picture_reference(
    classifier: Classifier, backbone: Backbone, pictures: Sequence[Image.Image], of: str = "test images"
) -> Reference:
    """Return pictures of any size to compare on, and what the run predicts for them.

    Parameters
    ----------
    classifier : Classifier
        The classifier of the run.
    backbone : Backbone
        Its encoder, in fp32 on the CPU.
    pictures : sequence of PIL.Image.Image
        Upright, in RGB; random blotches of many sizes if there are none.
    of : str
        Where they come from.
    """
    pictures, of = (pictures, of) if pictures else (_random_pictures(), "random pictures of many sizes")
    framed = np.stack([np.asarray(backbone.framing(picture)) for picture in pictures])  # (N, H, W, 3)
    batches = [framed[start : start + BATCH] for start in range(0, len(framed), BATCH)]
    encoded = [backbone.encode_images_with_inputs(backbone.on_device(batch)) for batch in batches]
    reads = classifier.head.input == "features"
    inputs = np.concatenate([features if reads or before is None else before for features, before in encoded])
    given = np.empty(len(pictures), object)
    given[:] = [np.asarray(picture) for picture in pictures]
    return Reference(given, _expected(classifier, inputs), of)


def _random_pictures() -> list[Image.Image]:
    """Return coloured blotches, upright and lying, larger and smaller than a model's images."""
    rng = np.random.default_rng(0)
    sizes = ((640, 480), (333, 500), (97, 61), (1000, 1001), (224, 224), (1600, 400), (20, 30), (225, 223))
    grids = [rng.integers(0, 256, (BLOTCHES, BLOTCHES, 3), dtype=np.uint8) for _ in sizes]
    pairs = zip(grids, sizes, strict=True)
    return [Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC) for grid, size in pairs]


def tolerance_at(tolerance: float, classifier: Classifier) -> float:
    """Return a format's tolerance at the classifier's scale; rounding errors of logits grow with the scale."""
    return tolerance * max(1.0, cosine_scale(classifier) / REFERENCE_SCALE)


def compare(
    predict: Predict, written: Sequence[Path], reference: Reference, tolerance: float, file: Path
) -> Comparison:
    """Compare written files with the run.

    Parameters
    ----------
    predict : callable
        Returns probabilities (N, C) of inputs, computed from files.
    written : sequence of Path
        The files.
    reference : Reference
        Inputs and expected probabilities.
    tolerance : float
        Of probabilities. The top class may differ only where the run's probabilities of the two classes differ by less
        than this; small probabilities may differ by a factor of up to 1 + 100 times this.
    file : Path
        Where the user wants the export, for messages.

    Returns
    -------
    Comparison
        How closely they agree.

    Raises
    ------
    ExportError
        The files could not be read, or give other probabilities than the run.
    """
    refused = f"could not export {file}: the written file"
    try:
        found = predict(written, reference.inputs)
    except Exception as error:  # safetensors, torch and onnxruntime raise many kinds for a damaged file
        reason = " ".join(str(error).split())[:200]
        raise ExportError(f"{refused} could not be read again ({reason}); {REMEDY}") from error
    if found.shape != reference.expected.shape:
        raise ExportError(f"{refused} gives {found.shape}, expected {reference.expected.shape}; {REMEDY}")
    difference, loss, factor = _differences(found, reference.expected)
    # Written so that NaN is refused too. Where one class is almost certain, only the factor shows a wrong image tower.
    if not (difference <= tolerance and loss <= tolerance and factor <= 1 + RATIO_TOLERANCE * tolerance):
        raise ExportError(
            f"{refused} differs from the run by {difference:.2g} in probability, and by a factor of {factor:.3g}, on "
            f"{len(found)} {reference.of}; expected at most {tolerance:.2g} from rounding; {REMEDY}"
        )
    return Comparison(len(found), reference.of, difference, tolerance)


def _differences(found: np.ndarray, expected: np.ndarray) -> tuple[float, float, float]:
    """Return the largest difference of probabilities (N, C), the largest loss of the top class, the largest factor.

    The loss is the run's probability of its own top class minus that of the top class found. The factor leaves out
    probabilities that float32 cannot represent.
    """
    chosen = np.take_along_axis(expected, found.argmax(axis=1)[:, None], axis=1)[:, 0]  # (N,)
    compared = expected > SMALLEST_PROBABILITY
    with np.errstate(divide="ignore"):
        ratios = np.abs(np.log(found[compared]) - np.log(expected[compared]))
    loss = (expected.max(axis=1) - chosen).max()
    return float(np.abs(found - expected).max()), float(loss), float(np.exp(ratios.max()))


def _test_features(folder: Path, classifier: Classifier, cache_dir: Path) -> np.ndarray | None:
    """Return features (N, D) of evenly spaced test images, or None if there is no matching cache."""
    try:
        cache = FeatureCache(own_cache(folder, classifier, cache_dir))
        rows = cache.rows("test")
        spread = np.linspace(0, len(rows) - 1, min(len(rows), MAX_ROWS)).astype(np.int64)
        inputs = inputs_of(cache, rows[spread], classifier.head)
        return inputs if len(rows) and inputs.shape[1] == classifier.head.width else None
    except (TaskresError, KeyError):  # moved or damaged, or the metrics do not name it
        return None


def _random_features(classifier: Classifier) -> np.ndarray:
    """Return inputs (N, W) with noise of the size that image features have; around the weights of a cosine head."""
    head, rng = classifier.head, np.random.default_rng(0)
    if not isinstance(head, CosineHead):
        return rng.normal(size=(MAX_ROWS, head.width)).astype(np.float32)
    own = head.weights.numpy()[np.arange(MAX_ROWS) % len(head.weights)]  # (N, D)
    noise = rng.normal(size=own.shape) / np.sqrt(own.shape[1])
    features: np.ndarray = own + 3.0 * np.linalg.norm(own, axis=1, keepdims=True) * noise
    return (features - (0.0 if head.image_shift is None else head.image_shift.numpy())).astype(np.float32)


def _expected(classifier: Classifier, features: np.ndarray) -> np.ndarray:
    """Return the run's probabilities (N, C) of un-normalised features (N, D), in float64 to avoid rounding."""
    exact: np.ndarray = classifier.head.to(torch.float64).probabilities(torch.from_numpy(features).double()).numpy()
    return exact
