"""The recipe's numbers, worked out by hand, and names that keep fits apart."""

import pytest

from taskres_cache.errors import OptionError
from taskres_cache.recipe import Recipe, learning_rate


def test_schedule() -> None:
    # epoch 0 warms up; epoch 1 is the cosine's start; epoch 51 of 100 its middle; the last is one short of its end
    assert learning_rate(0, 2e-3, 100) == 1e-5
    assert learning_rate(1, 2e-3, 100) == 2e-3
    assert learning_rate(51, 2e-3, 100) == pytest.approx(1e-3)
    assert learning_rate(99, 2e-3, 100) == pytest.approx(0.5 * 2e-3 * (1 - 0.998026728428272), rel=1e-9)


def test_there_is_nothing_to_average_without_views() -> None:
    assert Recipe(views=4, view_use="average").method_name() == "taskres-regular-views4-average"
    for unusable in ({"views": -1}, {"view_use": "average"}):
        with pytest.raises(OptionError, match="views must be"):
            Recipe(**unusable)


@pytest.mark.parametrize(("shots", "epochs"), [(1, 100), (2, 100), (4, 100), (8, 200), (16, 200)])
def test_epochs_follow_the_shots(shots: int, epochs: int) -> None:
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
        "alpha_rule": "fixed",
        "patience": None,
        "precision": "fp32",
        "views": 0,
        "view_use": "walk",
    }


def test_names_say_what_is_not_the_papers() -> None:
    assert Recipe().method_name() == "taskres-regular"
    assert Recipe(alpha=2.0, patience=5).method_name() == "taskres-regular-alpha2-patience5"
    assert Recipe(alpha_rule="auto", lr=0.01).method_name() == "taskres-regular-alpha-auto-lr0.01"
    assert Recipe(alpha_rule="auto", alpha=2.0).method_name() == "taskres-regular-alpha-auto"  # not used, not named
    assert Recipe(alpha_rule="learn", alpha=2.0).method_name() == "taskres-regular-alpha-learn-alpha2"


def test_every_choice_that_changes_a_fit_changes_its_name() -> None:
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
    ],
)
def test_unusable_values_are_refused(change: dict) -> None:
    with pytest.raises(OptionError, match=next(iter(change))):
        Recipe(**change)


def test_changed_ignores_none() -> None:
    assert Recipe(alpha=1.0).changed(alpha=None, lr=0.1) == Recipe(alpha=1.0, lr=0.1)
