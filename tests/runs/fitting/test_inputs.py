"""Bases: regular by hand, enhanced against the second implementation, and which fits share a base."""

import numpy as np
import pytest
import torch

from taskres_cache.caches.contents import TextBases, regular_base
from taskres_cache.errors import FitError, OptionError
from taskres_cache.methods.task_residual.loop import tune_projections
from taskres_cache.methods.task_residual.task import Task
from taskres_cache.methods.training_sets import TrainingSet, ValidationSet
from taskres_cache.recipe import Recipe
from taskres_cache.runs.fitting.inputs import Bases
from tests.by_hand import train
from tests.runs.conftest import CPU

SCALE = 100.0


def text_bases(dtype: type = np.float64) -> TextBases:
    rng = np.random.default_rng(1)
    pre_projection = rng.normal(size=(5, 3, 7)).astype(dtype)
    projection = (0.3 * rng.normal(size=(7, 12))).astype(dtype)
    return TextBases(("a {}.", "b {}.", "c {}."), pre_projection @ projection, pre_projection, projection)


def training_set(seed: int = 0, count: int = 40) -> TrainingSet:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, count)
    return TrainingSet.from_features(rng.normal(size=(5, 12))[labels] + 2 * rng.normal(size=(count, 12)), labels)


def task(recipe: Recipe, training: TrainingSet | None = None, seed: int = 3) -> Task:
    return Task(training or training_set(), recipe, 7, seed)


def reference_projection(training: TrainingSet, text: TextBases, recipe: Recipe, epochs: int, seed: int) -> np.ndarray:
    """Return the projection that the second implementation tunes, as a linear layer without bias."""
    assert text.pre_projection is not None
    assert text.projection is not None
    layer = torch.nn.Linear(*text.projection.shape, bias=False, dtype=torch.float64)
    layer.weight = torch.nn.Parameter(torch.from_numpy(text.projection.T.copy()))
    prompts = torch.from_numpy(text.pre_projection)
    train(
        list(layer.parameters()),
        lambda: layer(prompts).mean(dim=1),  # each template through the layer, then the mean
        training.directions,
        training.labels,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        epochs=epochs,
        batch=recipe.batch_size,
        seed=seed,
        logit_scale=SCALE,
    )
    return layer.weight.detach().numpy().T


def test_the_regular_base_is_the_mean_without_normalising() -> None:
    embeddings = np.array([[[2.0, 0.0], [0.0, 4.0]]])
    assert regular_base(embeddings).tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize("batch_size", [16, 40])
def test_an_enhanced_base_equals_the_reference(batch_size: int) -> None:
    text, recipe = text_bases(), Recipe(base="enhanced", lr=5e-3, batch_size=batch_size, weight_decay=2e-3)
    (start,) = Bases(text, [recipe], None, SCALE, CPU).of_tasks([task(recipe)])
    expected = reference_projection(training_set(), text, recipe, epochs=50, seed=3)
    assert start.projection is not None
    assert text.pre_projection is not None
    moved = np.abs(expected - text.projection).max()
    assert moved > 0.05
    assert np.abs(start.projection - expected).max() <= 1e-9 * moved
    assert np.allclose(start.base, (text.pre_projection @ expected).mean(axis=1))
    assert len(start.losses) == start.kept_epochs == 50
    assert start.losses[-1] < start.losses[0]
    assert start.seconds > 0


def test_stacked_projections_equal_the_projections_alone() -> None:
    text = text_bases()
    assert text.pre_projection is not None
    assert text.projection is not None
    inputs = text.pre_projection.mean(axis=1), text.projection
    recipes = [Recipe(batch_size=16), Recipe(batch_size=16, lr=0.01), Recipe(batch_size=16, weight_decay=0.1)]
    tasks = [Task(training_set(seed), recipe, 9, seed) for seed in (0, 1) for recipe in recipes]
    for single, stacked in zip(tasks, tune_projections(tasks, *inputs, SCALE, CPU), strict=True):
        (alone,) = tune_projections([single], *inputs, SCALE, CPU)
        assert np.allclose(stacked.projection, alone.projection, rtol=1e-9, atol=1e-12)
        assert stacked.losses == pytest.approx(alone.losses)


def test_recipes_that_differ_only_in_the_residual_share_their_base() -> None:
    training = training_set()
    same_base = [
        Recipe(base="enhanced"), Recipe(base="enhanced-only"), Recipe(base="enhanced", alpha=2.0, residual="both"),
        Recipe(base="enhanced", epochs=3, alpha_rule="auto", lrs=(0.1,)),
    ]  # fmt: skip
    other_bases = [Recipe(base="enhanced", lr=0.01), Recipe(base="enhanced", weight_decay=0.1), Recipe()]
    bases = Bases(text_bases(), [*same_base, *other_bases], None, SCALE, CPU)
    starts = bases.of_tasks([task(recipe, training) for recipe in [*same_base, *other_bases]])
    assert {id(start) for start in starts[:4]} == {id(starts[0])}
    assert len({id(start) for start in starts}) == 4
    assert starts[-1].base is bases.regular
    assert starts[-1].projection is None
    by_seed = bases.of_tasks([task(same_base[0], training, seed) for seed in (1, 2)])
    assert not np.array_equal(by_seed[0].base, by_seed[1].base)


def test_patience_keeps_the_best_epoch_of_a_projection() -> None:
    both = training_set(count=120)
    few = TrainingSet.from_features(both.directions[0, :30], both.labels[:30])
    validation = ValidationSet(both.directions[0, 30:], both.labels[30:])
    recipe = Recipe(base="enhanced", lr=0.3, batch_size=16, patience=4)
    (start,) = Bases(text_bases(), [recipe], None, SCALE, CPU).of_tasks([Task(few, recipe, 7, 1, validation)])
    assert start.kept_epochs < 46
    assert len(start.losses) == start.kept_epochs + 4


def test_a_text_tower_without_a_projection_cannot_be_tuned() -> None:
    text = text_bases()
    without = TextBases(text.templates, text.embeddings)
    for base in ("enhanced", "enhanced-only"):
        with pytest.raises(OptionError, match="enhanced base needs text/pre_projection .* use --base regular"):
            Bases(without, [Recipe(), Recipe(base=base)], None, SCALE, CPU)
    assert np.array_equal(Bases(without, [Recipe()], None, SCALE, CPU).regular, regular_base(text.embeddings))


def test_a_projection_that_diverges_raises() -> None:
    recipe = Recipe(base="enhanced", lr=1e300)
    with pytest.raises(FitError, match="became NaN or infinite in epoch"):
        Bases(text_bases(), [recipe], None, SCALE, CPU).of_tasks([task(recipe)])
