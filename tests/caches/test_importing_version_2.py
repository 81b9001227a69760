"""Import of pre-projections, views and further prompts, and every inconsistent array."""

from pathlib import Path

import numpy as np
import pytest

from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.foreign.importing import ImportOptions, import_contents
from taskres_cache.errors import ArraysError

OPTIONS = ImportOptions("birds", shots=(1,), seeds=(1,))


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)

    def some(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    weights, bias, text_projection = some(6, 4), some(4), some(3, 4)
    inputs = {name: some(size, 6) for name, size in (("train", 8), ("val", 4), ("test", 6))}
    views, text, prompts = some(8, 2, 6), some(2, 1, 3), some(5, 3)
    return {
        **{f"{name}_features": one @ weights + bias for name, one in inputs.items()},
        **{f"{name}_labels": np.arange(len(one)) % 2 for name, one in inputs.items()},
        **{f"{name}_pre_projection": one for name, one in inputs.items()},
        "image_projection": weights,
        "image_projection_bias": bias,
        "train_views": some(8, 3, 4),
        "train_views_narrow": views @ weights + bias,
        "train_views_narrow_pre_projection": views,
        "classnames": np.array(["wren", "robin"]),
        "text_features": text @ text_projection,
        "text_pre_projection": text,
        "text_projection": text_projection,
        "prompts_my_set_texts": np.array(["r1", "w1", "r2", "w2", "w3"]),
        "prompts_my_set_labels": np.array([1, 0, 1, 0, 0]),
        "prompts_my_set_features": prompts @ text_projection,
        "prompts_my_set_pre_projection": prompts,
    }


def test_everything_is_imported(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    cache = FeatureCache(import_contents(arrays, OPTIONS, tmp_path).path)
    cache.verify()
    assert np.array_equal(cache.pre_projection(cache.rows("val")), arrays["val_pre_projection"])
    assert {name: (facts.views, facts.has_pre_projection) for name, facts in cache.view_families.items()} == {
        "wide": (3, False),
        "narrow": (2, True),
    }
    ((_, piece),) = cache.augmented_pieces(np.array([5]), "narrow")
    assert np.array_equal(piece[0], arrays["train_views_narrow"][5])
    text = cache.text("my_set")
    assert (text.texts, text.labels.tolist()) == (("w1", "w2", "w3", "r1", "r2"), [0, 0, 0, 1, 1])
    assert np.array_equal(text.embeddings, arrays["prompts_my_set_features"][[1, 3, 4, 0, 2]])
    assert np.allclose(cache.text_bases().pre_projection, arrays["text_pre_projection"])


WRONG = {
    "train_pre_projection": (
        lambda a: a * 2,
        "train_pre_projection @ image_projection.*differs from the features in row",
    ),
    "image_projection": (lambda a: a[:, ::-1], "differs from the features in row"),
    "image_projection_bias": (None, "train_pre_projection @ image_projection differs from the features"),
    "val_pre_projection": (None, "is given but val_pre_projection is missing; add it"),
    "test_pre_projection": (lambda a: a[1:], r"test_pre_projection has shape \(5, 6\), expected \(6, 6\)"),
    "train_views": (lambda a: a[:, :, 1:], r"train_views has shape \(8, 3, 3\), expected \(8, V, 4\)"),
    "train_views_narrow": (None, "train_views_narrow_pre_projection is given but train_views_narrow is missing"),
    "train_views_narrow_pre_projection": (lambda a: a[::-1], "train_views_narrow_pre_projection @ .* differs"),
    "text_projection": (None, "text_pre_projection is given but text_projection is missing; add it"),
    "text_pre_projection": (lambda a: a[:, :, 1:], r"text_pre_projection has shape \(2, 1, 2\)"),
    "prompts_my_set_labels": (lambda a: a * 0, "prompts_my_set_labels has other labels than 0 to 1"),
    "prompts_my_set_texts": (None, "prompts_my_set_texts is missing; a set of prompts needs"),
    "prompts_my_set_features": (lambda a: a[:, 1:], r"prompts_my_set_features has shape \(5, 3\)"),
    "prompts_my_set_pre_projection": (None, "prompts_my_set_pre_projection is missing"),
}


@pytest.mark.parametrize("name", WRONG)
def test_inconsistent_arrays_are_refused_in_one_line(name: str, arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    change, message = WRONG[name]
    if change is None:
        del arrays[name]
    else:
        arrays[name] = change(arrays[name])
    with pytest.raises(ArraysError, match=message) as error:
        import_contents(arrays, OPTIONS, tmp_path)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_values_that_are_not_finite_are_refused(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    arrays["train_views"][3, 1, 0] = np.nan
    with pytest.raises(ArraysError, match="train_views has NaN or infinite values"):
        import_contents(arrays, OPTIONS, tmp_path)
