"""The recipe: its schedule and defaults, computed by hand, and method names that keep fits apart."""

import pytest

from taskres_cache.errors import OptionError
from taskres_cache.recipe import Recipe, learning_rate


def test_schedule() -> None:
    # epoch 0 is the warm-up, epoch 1 starts the cosine, epoch 51 of 100 is its middle, the last is one before its end
    assert learning_rate(0, 2e-3, 100) == 1e-5
    assert learning_rate(1, 2e-3, 100) == 2e-3
    assert learning_rate(51, 2e-3, 100) == pytest.approx(1e-3)
    assert learning_rate(99, 2e-3, 100) == pytest.approx(0.5 * 2e-3 * (1 - 0.998026728428272), rel=1e-9)


def test_averaging_needs_views() -> None:
    assert Recipe(views=4, view_use="average").method_name() == "taskres-regular-views4-average"
    for invalid in ({"views": -1}, {"view_use": "average"}):
        with pytest.raises(OptionError, match="views must be"):
            Recipe(**invalid)


@pytest.mark.parametrize(("shots", "epochs"), [(1, 100), (2, 100), (4, 100), (8, 200), (16, 200)])
def test_default_epochs_depend_on_shots(shots: int, epochs: int) -> None:
    assert Recipe().epochs_for(shots) == epochs
    assert Recipe(epochs=7).epochs_for(shots) == 7


def test_paper_defaults() -> None:
    assert Recipe().as_dict() == {
        "alpha": 0.5,
        "lr": 0.002,
        "epochs": None,
        "batch_size": 256,
        "weight_decay": 0.0005,
        "base": "regular",
        "base_sha256": "",
        "residual": "text",
        "alpha_rule": "fixed",
        "alphas": [],
        "lrs": [],
        "weight_decays": [],
        "patience": None,
        "precision": "fp32",
        "views": 0,
        "view_use": "walk",
    }


def test_method_name_contains_deviations_from_the_paper() -> None:
    assert Recipe().method_name() == "taskres-regular"
    assert Recipe(alpha=2.0, patience=5).method_name() == "taskres-regular-alpha2-patience5"
    assert Recipe(alpha_rule="auto", lr=0.01).method_name() == "taskres-regular-alpha-auto-lr0.01"
    assert Recipe(alpha_rule="auto", alpha=2.0).method_name() == "taskres-regular-alpha-auto"  # alpha is not used
    assert Recipe(alpha_rule="learn", alpha=2.0).method_name() == "taskres-regular-alpha-learn-alpha2"


def test_recipes_that_differ_have_different_method_names() -> None:
    changes = [
        {},
        {"alpha": 1.0},
        {"alpha_rule": "auto"},
        {"alpha_rule": "learn"},
        {"patience": 3},
        {"precision": "bf16"},
        {"lr": 0.01},
        {"epochs": 100},
        {"batch_size": 32},
        {"weight_decay": 0.0},
        {"alpha": 0.25},
        {"views": 4},
        {"views": 8},
        {"views": 8, "view_use": "average"},
        {"base": "enhanced"},
        {"base": "enhanced", "lr": 0.01},
        {"base": "enhanced-only"},
        {"base": "enhanced-only", "lr": 0.01},
        {"base": "file", "base_sha256": "ab" * 32},
        {"base": "file", "base_sha256": "cd" * 32},
        {"residual": "image"},
        {"residual": "both"},
        {"alpha_rule": "auto", "alphas": (0.5, 1.0)},
        {"lrs": (0.01, 0.02)},
        {"weight_decays": (0.01, 0.02)},
        {"weight_decays": (0.01, 0.02), "base": "enhanced"},
        {"weight_decays": (0.01, 0.02), "base": "enhanced", "weight_decay": 0.1},
        Recipe().searching().as_dict(),
        Recipe(lr=0.01).searching().as_dict(),
        Recipe().searching(alphas=(0.5,)).as_dict(),
        Recipe().searching(lrs=(0.5,)).as_dict(),
        Recipe(base="enhanced").searching(lrs=(0.5,)).as_dict(),
        Recipe(base="enhanced", lr=0.01).searching(lrs=(0.5,)).as_dict(),
        Recipe().searching(weight_decays=(0.5,)).as_dict(),
        Recipe(residual="both").searching().as_dict(),
    ]
    names = {Recipe(**change).method_name() for change in changes}
    assert len(names) == len(changes)
    assert Recipe().method_name() == "taskres-regular"
    assert Recipe(alpha=1.0, lr=0.01).method_name() == "taskres-regular-alpha1-lr0.01"
    assert Recipe(alpha=0.123456789).method_name() != Recipe(alpha=0.123456788).method_name()


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.0},
        {"lr": -1.0},
        {"epochs": 0},
        {"batch_size": 0},
        {"weight_decay": -1e-3},
        {"alpha": float("nan")},
        {"lr": float("nan")},
        {"base": "enhanced-ish"},
        {"base": "file"},
        {"base_sha256": "ab"},
        {"base": "enhanced-only", "residual": "image"},
        {"base": "enhanced-only", "lrs": (0.1,)},
        {"base": "enhanced-only", "alpha_rule": "learn"},
        {"residual": "images"},
        {"alphas": (0.5,)},
        {"alphas": (float("inf"),), "alpha_rule": "auto"},
        {"lrs": (0.1, 0.0)},
        {"weight_decays": (0.1, -1.0)},
    ],
)
def test_invalid_values_raise(change: dict) -> None:
    with pytest.raises(OptionError, match=next(iter(change)).removesuffix("s")):
        Recipe(**change)


def test_changed_ignores_none() -> None:
    assert Recipe(alpha=1.0).changed(alpha=None, lr=0.1) == Recipe(alpha=1.0, lr=0.1)


def test_method_names_of_searches() -> None:
    assert Recipe().searching().method_name() == "taskres-regular-search"
    assert Recipe(lr=0.01, alpha=2.0).searching().method_name() == "taskres-regular-search-lr0.01"
    assert Recipe().searching(alphas=(0.5, 1.0)).method_name() == "taskres-regular-search-alphas0.5,1"
    given = Recipe(weight_decay=0.1).searching(alphas=(2.0,), lrs=(0.01, 0.1), weight_decays=(0.0, 0.001))
    assert given.method_name() == "taskres-regular-alpha-auto-alphas2-lrs0.01,0.1-weight-decays0,0.001"
    assert Recipe(base="enhanced", residual="both").method_name() == "taskres-enhanced-both-residual"
    assert Recipe(base="enhanced-only", alpha=2.0, epochs=9).method_name() == "taskres-enhanced-only"
    assert (
        Recipe(base="file", base_sha256="ab" * 32, alpha=2.0).method_name() == "taskres-file-sha256abababababab-alpha2"
    )


def test_candidates_are_every_combination() -> None:
    recipe = Recipe(base="enhanced", epochs=3).searching(lrs=(0.01, 0.1), weight_decays=(0.0, 0.5))
    candidates = recipe.candidates(grid=(1.0, 2.0))
    assert [(candidate.alpha, candidate.lr, candidate.weight_decay) for candidate in candidates] == [
        (alpha, lr, decay) for alpha in (1.0, 2.0) for lr in (0.01, 0.1) for decay in (0.0, 0.5)
    ]
    assert all(not candidate.chooses for candidate in candidates)
    assert {(candidate.base, candidate.epochs) for candidate in candidates} == {("enhanced", 3)}
    (only,) = Recipe(alpha_rule="auto", alphas=(7.0,)).candidates(grid=(1.0, 2.0))
    assert only.alpha == 7.0
    learned = Recipe(alpha_rule="learn", lrs=(0.01, 0.1)).candidates(grid=(1.0, 2.0))
    assert [(candidate.alpha, candidate.lr) for candidate in learned] == [(0.5, 0.01), (0.5, 0.1)]
    assert all(candidate.alpha_rule == "learn" for candidate in learned)


def test_a_default_search_is_centred_on_the_recipe() -> None:
    recipe = Recipe(lr=2e-4).searching()
    assert recipe.lrs == (5e-5, 2e-4, 8e-4)
    assert recipe.weight_decays == (0.0, 5e-4, 5e-3)
    assert recipe.alpha_rule == "auto"
    assert Recipe(**recipe.as_dict()) == recipe  # as read from JSON, with lists for tuples


def test_a_projection_is_tuned_for_50_epochs_with_the_same_recipe() -> None:
    recipe = Recipe(base="enhanced", lr=0.01, weight_decay=0.1, epochs=3, batch_size=32, patience=5, views=2, alpha=2.0)
    assert recipe.for_projection() == Recipe(
        base="enhanced", lr=0.01, weight_decay=0.1, epochs=50, batch_size=32, patience=5, views=2
    )
    assert Recipe(base="enhanced-only").epochs_for(16) == 0
    assert Recipe(base="enhanced").epochs_for(16) == 200


def test_the_name_of_many_candidates_is_shortened_and_stays_unique() -> None:
    many = tuple(0.001 + number / 7 for number in range(60))
    name, other = (Recipe(lrs=lrs).method_name() for lrs in (many, (*many[:-1], 9.5)))
    assert len(name) == len(other) == 242
    assert name != other
    assert name.startswith("taskres-regular-lrs0.001,0.1438")
