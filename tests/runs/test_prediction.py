"""Predictions of a run for images: equal to a second implementation and to the cache; other encoders are refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.provenance import UNKNOWN, Provenance
from taskres_cache.datasets import load_dataset
from taskres_cache.encoders.backbone import Backbone
from taskres_cache.encoders.loading import load_backbone, untrained_model
from taskres_cache.errors import OptionError, RunError, UnknownNameError, WeightsError
from taskres_cache.extraction.extract import extract, provenance_of
from taskres_cache.extraction.options import ExtractOptions
from taskres_cache.recipe import Recipe
from taskres_cache.runs.classifier import ResidualClassifier
from taskres_cache.runs.encoder import load_encoder
from taskres_cache.runs.finding import find_run
from taskres_cache.runs.fitting.study import fit_each
from taskres_cache.runs.prediction import PredictOptions, predict_images
from taskres_cache.runs.run import read_classifier, write_run
from tests.by_hand import probabilities
from tests.conftest import metrics_of, save_image

CLASSNAMES = ("black_cat", "dog", "été", "owl")


def run_of(backbone: Backbone, classnames: tuple[str, ...] = CLASSNAMES, **changed: object) -> ResidualClassifier:
    """A run of a backbone with random text and image residuals."""
    rng = np.random.default_rng(3)
    base = backbone.encode_texts([f"a photo of a {name}." for name in classnames]).embeddings
    residuals = [rng.normal(scale=base.std(), size=shape).astype(np.float32) for shape in (base.shape, base.shape[1])]
    names = ("backbone", "pretrained", "model_config", "weights_sha256", "logit_scale", "precision")
    made_from = {"backbone": backbone.name, **{name: getattr(backbone, name) for name in names[1:]}}
    preprocess = {**backbone.preprocess, "orientation": "exif"}
    provenance = Provenance(
        dataset="photos", preprocess=preprocess, classnames_form="spaces", split="given", **made_from
    )
    templates = ("a photo of a {}.",)
    classifier = ResidualClassifier(
        base=base,
        residual=residuals[0],
        classnames=classnames,
        templates=templates,
        alpha=0.5,
        recipe=Recipe(),
        shots=16,
        seed=1,
        provenance=provenance,
    )
    return replace(classifier, image_residual=residuals[1], temperature=2.5, **changed)


def probabilities_by_hand(classifier: ResidualClassifier, backbone: Backbone, path: Path) -> np.ndarray:
    """The second implementation, for one image: (C,)."""
    pixels = np.array(backbone.framing(Image.open(path).convert("RGB")))[None]
    features = backbone.encode_images(torch.from_numpy(pixels))
    shift = 0.0 if classifier.image_residual is None else classifier.alpha * classifier.image_residual
    weights = classifier.base.astype(np.float64) + classifier.alpha * classifier.residual
    scale, temperature = classifier.provenance.logit_scale, classifier.temperature
    return probabilities(features, weights, scale, shift, temperature)[0]


@pytest.fixture
def classifier(glyph_clip: Backbone) -> ResidualClassifier:
    return run_of(glyph_clip)


@pytest.mark.parametrize("options", [PredictOptions(), PredictOptions(top_k=2, batch_size=3, workers=2)])
def test_probabilities_equal_the_second_implementation(
    options: PredictOptions, classifier: ResidualClassifier, glyph_clip: Backbone, photos: Path, here: Path
) -> None:
    paths = [str(path) for path in sorted(photos.rglob("*.*"))]
    (here / "broken.png").write_text("no image")
    requested = [*paths[::-1], "broken.png", "gone.png", paths[3]]
    predicted = predict_images(requested, classifier, glyph_clip, options)
    assert predicted.paths == tuple(paths[::-1])
    assert list(predicted.unreadable) == ["broken.png", "gone.png"]
    assert predicted.unreadable["gone.png"] == "No such file or directory"
    assert len(predicted) == 30
    for prediction in predicted:
        expected = probabilities_by_hand(classifier, glyph_clip, Path(prediction.path))
        best = np.argsort(-expected)[: options.top_k]
        assert prediction.classnames == tuple(CLASSNAMES[row] for row in best)
        assert np.allclose(prediction.probabilities, expected[best], atol=2e-5)
    assert len({prediction.classnames[0] for prediction in predicted}) > 1
    assert predicted.probabilities.shape == (30, min(options.top_k, 4))


def test_counts_of_classes(classifier: ResidualClassifier, glyph_clip: Backbone, photos: Path) -> None:
    predicted = predict_images([str(path) for path in photos.rglob("*.*")], classifier, glyph_clip)
    tops = [prediction.classnames[0] for prediction in predicted]
    assert predicted.counts() == sorted(((name, tops.count(name)) for name in set(tops)), key=lambda pair: -pair[1])
    by_hand = replace(predicted, classes=np.array([[2], [0], [2], [3]], np.int32))
    assert by_hand.counts() == [("été", 2), ("black_cat", 1), ("owl", 1)]


def test_images_and_their_cached_features_get_the_same_predictions(glyph_clip: Backbone, tmp_path: Path) -> None:
    digits = load_dataset("digits", Path())
    extract(digits, glyph_clip, ExtractOptions(shots=(4,), seeds=(1,)), tmp_path / "digits.h5")
    cache = FeatureCache(tmp_path / "digits.h5")
    (result,) = fit_each(cache, [(4, 1)], [Recipe(alpha=2.0)], torch.device("cpu"), tmp_path / "runs")
    classifier = read_classifier(result.folder)
    rows = cache.rows("test")
    paths = [tmp_path / cache.contents().paths[row] for row in rows]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        digits.source.read(path.relative_to(tmp_path).as_posix()).save(path)
    predicted = predict_images([str(path) for path in paths], classifier, glyph_clip)
    weights = classifier.base + classifier.alpha * classifier.residual
    scale, temperature = classifier.provenance.logit_scale, classifier.temperature
    expected = probabilities(cache.image_features(rows), weights, scale, temperature=temperature)
    assert classifier.temperature != 1.0
    assert np.allclose(np.take_along_axis(expected, predicted.classes, axis=1), predicted.probabilities, atol=1e-5)
    assert np.array_equal(predicted.classes[:, 0], expected.argmax(axis=1))
    accuracy = 100 * np.mean(predicted.classes[:, 0] == cache.labels[rows])
    assert accuracy == pytest.approx(result.metrics.test_accuracy)


@pytest.mark.parametrize("orientation", ["exif", "stored", None])
def test_orientation_is_handled_as_in_the_run(
    orientation: str | None, classifier: ResidualClassifier, glyph_clip: Backbone, tmp_path: Path
) -> None:
    preprocess = {**glyph_clip.preprocess, **({"orientation": orientation} if orientation else {})}
    classifier = replace(classifier, provenance=replace(classifier.provenance, preprocess=preprocess))
    upright = Image.fromarray(np.random.default_rng(5).integers(0, 256, (48, 24, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to display
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    stored.save(tmp_path / "sideways.png", exif=exif)
    (stored if orientation == "stored" else upright).save(tmp_path / "as seen.png")
    stored.save(tmp_path / "as stored.png")
    predicted = predict_images([str(tmp_path / "sideways.png")], classifier, glyph_clip)
    expected = probabilities_by_hand(classifier, glyph_clip, tmp_path / "as seen.png")
    other = probabilities_by_hand(classifier, glyph_clip, tmp_path / "as stored.png")
    assert np.allclose(predicted.probabilities[0], np.sort(expected)[::-1], atol=2e-5)
    assert (orientation == "stored") == np.allclose(other, expected, atol=1e-3)


def test_features_that_are_not_finite_count_as_unreadable(
    classifier: ResidualClassifier, glyph_clip: Backbone, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(path) for path in sorted(photos.rglob("*.png"))[:3]]
    encode = Backbone.encode_images

    def overflow(backbone: Backbone, pixels: torch.Tensor) -> np.ndarray:
        features = encode(backbone, pixels)
        features[1, 5] = np.inf
        return features

    monkeypatch.setattr(Backbone, "encode_images", overflow)
    predicted = predict_images(paths, classifier, glyph_clip)
    assert predicted.paths == (paths[0], paths[2])
    assert list(predicted.unreadable) == [paths[1]]
    assert "try --precision fp32" in predicted.unreadable[paths[1]]


def test_no_readable_image_and_no_image(classifier: ResidualClassifier, glyph_clip: Backbone, here: Path) -> None:
    predicted = predict_images(["gone.png"], classifier, glyph_clip)
    assert (len(predicted), list(predicted), predicted.classes.shape) == (0, [], (0, 4))
    assert list(predicted.unreadable) == ["gone.png"]
    assert len(predict_images([], classifier, glyph_clip)) == 0


@pytest.mark.parametrize("options", [{"top_k": 0}, {"top_k": -2}, {"batch_size": 0}, {"workers": -1}])
def test_values_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(OptionError, match="must"):
        PredictOptions(**options)


def test_a_path_selects_a_run(classifier: ResidualClassifier, tmp_path: Path) -> None:
    for seed in (1, 2):
        write_run(tmp_path / "runs" / f"seed_{seed}", classifier, metrics_of())
    first = tmp_path / "runs" / "seed_1"
    assert find_run(first) == find_run(first / "classifier.safetensors") == first
    with pytest.raises(OptionError, match="holds 2 runs; pass one of them, such as .*/seed_2"):
        find_run(tmp_path)
    (tmp_path / "runs" / "seed_2" / "classifier.safetensors").rename(tmp_path / "mine.safetensors")
    assert find_run(tmp_path / "runs") == first
    assert read_classifier(find_run(tmp_path / "mine.safetensors")).classnames == CLASSNAMES
    with pytest.raises(RunError, match="no classifier.safetensors at or below"):
        find_run(tmp_path / "nowhere")


def test_the_encoder_of_the_run_is_loaded(classifier: ResidualClassifier, glyph_clip: Backbone) -> None:
    loaded = load_encoder(classifier, device="cpu")
    assert (loaded.weights_sha256, loaded.preprocess) == (glyph_clip.weights_sha256, glyph_clip.preprocess)
    assert loaded.precision == "fp32"  # the precision of the run's features, even where bf16 is faster


@pytest.mark.parametrize(
    ("of_run", "requested", "fast_bf16", "expected"),
    [
        ("fp32", "auto", True, "fp32"),
        ("bf16", "auto", True, "bf16"),
        ("bf16", "auto", False, "best"),
        ("fp16", "auto", True, "best"),
        (UNKNOWN, "auto", True, "best"),
        ("bf16", "fp32", True, "fp32"),
        ("fp32", "bf16", False, "bf16"),
    ],
)
def test_precision_follows_the_run_if_the_device_is_fast_in_it(
    of_run: str,
    requested: str,
    fast_bf16: bool,
    expected: str,
    classifier: ResidualClassifier,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("taskres_cache.runs.encoder.has_fast_bfloat16", lambda _: fast_bf16)
    classifier = replace(classifier, provenance=replace(classifier.provenance, precision=of_run))
    best = load_backbone("glyph-clip", "bundled", "cpu").precision
    loaded = load_encoder(classifier, device="cpu", precision=requested)
    assert loaded.precision == (best if expected == "best" else expected)


@pytest.fixture
def other_file(tmp_path: Path) -> Path:
    """Random weights of the same architecture."""
    file = tmp_path / "my-weights.safetensors"
    save_file(untrained_model("glyph-clip", seed=8)[0].state_dict(), file)
    return file


def test_another_checkpoint_is_refused(classifier: ResidualClassifier, glyph_clip: Backbone, other_file: Path) -> None:
    other = load_backbone("glyph-clip", str(other_file), "cpu")
    with pytest.raises(RunError) as error:
        load_encoder(classifier, str(other_file), "cpu")
    message = str(error.value)
    assert f"the run has {glyph_clip.weights_sha256[:12]}, these weights {other.weights_sha256[:12]};" in message
    assert glyph_clip.weights_sha256[:13] not in message
    assert "preprocess" not in message
    assert message.endswith("pass the file that the run was made with: --pretrained PATH")


def test_another_preprocessing_is_refused(classifier: ResidualClassifier) -> None:
    preprocess = {**classifier.provenance.preprocess, "interpolation": "nearest"}
    versions = {"open_clip_torch": "3.1.4"}
    changed = replace(classifier.provenance, preprocess=preprocess, versions=versions)
    with pytest.raises(RunError) as error:
        load_encoder(replace(classifier, provenance=changed), device="cpu")
    expected = "preprocess: interpolation: the run has nearest, these weights bicubic; install the release of"
    assert expected in str(error.value)
    assert str(error.value).endswith("(3.1.4)")
    assert "orientation" not in str(error.value)


def test_a_run_of_a_local_checkpoint_needs_its_path(other_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = run_of(load_backbone("glyph-clip", str(other_file), "cpu", "fp32"))
    with pytest.raises(OptionError, match="local checkpoint 'my-weights', which is not a tag of glyph-clip; pass that"):
        load_encoder(local, device="cpu")
    loaded = load_encoder(local, str(other_file), "cpu")
    assert (loaded.weights_sha256, loaded.precision) == (local.provenance.weights_sha256, "fp32")
    with pytest.raises(WeightsError, match="checkpoint lost/file.pt does not exist"):
        load_encoder(local, "lost/file.pt", "cpu")
    with pytest.raises(UnknownNameError, match="unknown tag of glyph-clip 'bundeld'"):
        load_encoder(local, "bundeld", "cpu")


def test_a_plain_file_is_loaded_with_the_activation_of_the_run(tmp_path: Path) -> None:
    """OpenAI's archive records that it needs QuickGELU; another container of its weights does not, but the run does."""
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / "small.json").write_text(json.dumps(config))
    (tmp_path / "small-quickgelu.json").write_text(json.dumps({**config, "quick_gelu": True}))
    open_clip.add_model_config(tmp_path)
    save_file(untrained_model("small", seed=1)[0].state_dict(), tmp_path / "plain.safetensors")
    quick = load_backbone("small-quickgelu", str(tmp_path / "plain.safetensors"), "cpu", "fp32")
    run = run_of(replace(quick, name="small"))
    loaded = load_encoder(run, str(tmp_path / "plain.safetensors"), "cpu")
    assert loaded.model_config == "small-quickgelu"
    pixels = torch.full((1, 32, 32, 3), 200, dtype=torch.uint8)
    assert np.array_equal(loaded.encode_images(pixels), quick.encode_images(pixels))


def test_imported_features_have_no_known_encoder(classifier: ResidualClassifier) -> None:
    imported = replace(classifier.provenance, weights_sha256=UNKNOWN, preprocess={})
    with pytest.raises(RunError, match=r"imported features of 'photos'.*TaskResClassifier.from_run"):
        load_encoder(replace(classifier, provenance=imported), device="cpu")


def test_a_run_of_extracted_features_accepts_its_own_encoder(photos: Path, glyph_clip: Backbone) -> None:
    made_from = provenance_of(load_dataset(str(photos), Path()), glyph_clip, ExtractOptions())
    classifier = replace(run_of(glyph_clip), provenance=made_from)
    assert load_encoder(classifier, device="cpu").weights_sha256 == glyph_clip.weights_sha256
    save_image(photos / "more.png", 4)
    assert len(predict_images([str(photos / "more.png")], classifier, glyph_clip)) == 1
