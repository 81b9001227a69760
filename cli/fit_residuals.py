"""The task residuals that `taskres fit` is asked for: bases, and the values to fit or to search."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskres_cache.errors import OptionError, UnknownNameError

from .options import decimals, joined

if TYPE_CHECKING:
    import torch

    from taskres_cache.caches.contents import SplitName
    from taskres_cache.caches.feature_cache import FeatureCache
    from taskres_cache.recipe import Recipe
    from taskres_cache.runs.fitting.base_files import BaseFile
    from taskres_cache.runs.run import Run


@dataclass(frozen=True)
class Residuals:
    """The options of the task residual, as they were typed.

    Parameters
    ----------
    base, alpha, lr, weight_decay : list of str or None
        Lists of values.
    search : bool
        Choose alpha, learning rate and weight decay by val accuracy.
    fields : dict of str to object
        Further fields of the recipe; None for those that were not given.
    """

    base: list[str] | None
    alpha: list[str] | None
    lr: list[str] | None
    weight_decay: list[str] | None
    search: bool
    fields: dict[str, Any]

    def check(self, cache: "FeatureCache") -> None:
        """Raise OptionError for a value that no fit can use, before torch is imported."""
        from taskres_cache.recipe import Recipe

        given = {"views": cache.views} | {name: value for name, value in self.fields.items() if value is not None}
        for fields in map(_unread_base, self._bases(cache)):
            self._recipes(Recipe().changed(**(given | fields)))

    def runs(
        self, cache: "FeatureCache", splits: "Sequence[SplitName]", device: "torch.device", out: Path
    ) -> "Iterator[Run]":
        """Fit every combination on every split; return the runs one by one."""
        from taskres_cache.recipe import Recipe
        from taskres_cache.runs.fitting.study import fit_each, recipe_of

        bases, file = _read_bases(self._bases(cache), cache)
        alpha = cache.provenance.recipe.get("alpha", Recipe().alpha) if self.alpha else None  # given: nothing is scaled
        with_base = [recipe_of(cache, alpha=alpha, **(self.fields | fields)) for fields in bases]
        if not (self.alpha or self.search):
            _say_size(cache, with_base)
        recipes = [recipe for one in with_base for recipe in self._recipes(one)]
        return fit_each(cache, splits, recipes, device, out, file)

    def _bases(self, cache: "FeatureCache") -> list[str]:
        return _base_names(self.base or ["regular" if cache.has_text else "means"])

    def _recipes(self, recipe: "Recipe") -> "list[Recipe]":
        return _recipes(recipe, joined(self.alpha), joined(self.lr), joined(self.weight_decay), self.search)


def _say_size(cache: "FeatureCache", recipes: "Sequence[Recipe]") -> None:
    """Print a note if the size of the text features does not suit the paper's alpha, and what is done about it."""
    from taskres_cache.runs.fitting.alpha_scale import alpha_note

    from .console import say

    for note in dict.fromkeys(note for recipe in recipes if (note := alpha_note(cache, recipe))):
        say(f"note: {cache.path}: {note}")


def _unread_base(base: str) -> dict[str, Any]:
    """Return the recipe fields of a base, without reading its file."""
    from taskres_cache.recipe import BUILT_BASES

    return {"base": base} if base in BUILT_BASES else {"base": "file", "base_sha256": "unread"}


def _read_bases(names: Sequence[str], cache: "FeatureCache") -> "tuple[list[dict[str, Any]], BaseFile | None]":
    """Return the recipe fields of each base in `--base`, and the file if it is one."""
    from taskres_cache.recipe import BUILT_BASES

    fields: list[dict[str, Any]] = [{"base": name} for name in names if name in BUILT_BASES]
    files = [name for name in names if name not in BUILT_BASES]
    if not files:
        return fields, None
    from taskres_cache.runs.fitting.base_files import read_base

    file = read_base(files[0], cache.classnames, cache.provenance.weights_sha256)
    return [*fields, {"base": "file", "base_sha256": file.sha256}], file


def _base_names(bases: Sequence[str]) -> list[str]:
    """Return the names and the file in `--base`, once each; raises OptionError for a second file."""
    from taskres_cache.recipe import BUILT_BASES

    parts = [part for base in bases for part in ([base] if Path(base).exists() else base.split(","))]
    names = list(dict.fromkeys(parts))
    files = [name for name in names if name not in BUILT_BASES]
    missing = next((name for name in files if not Path(name).exists()), None)
    if missing is not None:
        raise UnknownNameError("base", missing, BUILT_BASES, f"pass {', '.join(BUILT_BASES)}, or an existing file")
    if len(files) > 1:
        raise OptionError(f"--base takes one file, got {' and '.join(files)}; fit each of them separately")
    return names


def _recipes(recipe: "Recipe", alpha: str, lr: str, weight_decay: str, search: bool) -> "list[Recipe]":
    """Return a recipe for each combination of the listed values, or one that searches them with `--search`."""
    rule = alpha if alpha in ("auto", "learn") else None
    alphas = () if not alpha or rule else decimals("--alpha", alpha)
    lrs = decimals("--lr", lr) if lr else ()
    weight_decays = decimals("--weight-decay", weight_decay) if weight_decay else ()
    if search and rule == "learn":
        raise OptionError("--search chooses alpha, --alpha learn trains it; pass only one of them")
    if search:
        return [recipe.searching(alphas, lrs, weight_decays)]
    grid = product(alphas or (None,), lrs or (None,), weight_decays or (None,))
    return [recipe.changed(alpha_rule=rule, alpha=weight, lr=rate, weight_decay=decay) for weight, rate, decay in grid]
