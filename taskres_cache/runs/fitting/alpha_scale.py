"""Alpha for text features whose size is not that of OpenAI's, for which the paper's alpha was chosen.

Adam moves each coordinate of the residual by about the learning rate per step, whatever the features. So
`alpha * lr * steps` has an effect relative to the size of a coordinate of the base, its root mean square. With
`ratio = rms(base) / 0.3`, alpha times ratio moves a base as far as alpha moves OpenAI's, whose text features have a
length of 7 to 10 in 512 or 1024 dimensions.

The factor follows from this alone; nothing was tuned by accuracy.

Axes: C classes, D embedding.
"""

import numpy as np

from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.provenance import OWN
from taskres_cache.methods.search import OPENAI_BASE_RMS
from taskres_cache.recipe import Recipe

FACTOR = 2.0  # OpenAI's own checkpoints differ by less
SCALED_BASES = ("regular", "enhanced")  # others are not the text features of the cache, or have no residual


def size_ratio(base: np.ndarray) -> float:
    """Return how large the coordinates of a base (C, D) are, relative to OpenAI's text features."""
    return float(np.sqrt(np.mean(np.square(base, dtype=np.float64)))) / OPENAI_BASE_RMS


def fitting_alpha(recipe: Recipe, base: np.ndarray) -> float | None:
    """Return the alpha that moves a base (C, D) as far as the recipe's moves OpenAI's; None if that is near enough."""
    ratio = size_ratio(base)
    return None if 1 / FACTOR <= ratio <= FACTOR else float(f"{recipe.alpha * ratio:.3g}")


def scales_alpha(cache: FeatureCache) -> bool:
    """Return True for data of one's own; those of the paper keep its alpha, so that numbers compare."""
    return cache.provenance.defaults == OWN and "alpha" not in cache.provenance.recipe


def with_fitting_alpha(cache: FeatureCache, recipe: Recipe) -> Recipe:
    """Return a recipe with alpha scaled to the text features, if the cache has data of one's own."""
    if not scales_alpha(cache) or not _depends_on_text(cache, recipe):
        return recipe
    return recipe.changed(alpha=fitting_alpha(recipe, cache.text_features))


def alpha_note(cache: FeatureCache, recipe: Recipe) -> str:
    """Return what a user should know about alpha and the size of the text features; empty if there is nothing.

    Parameters
    ----------
    cache : FeatureCache
        Gives the text features.
    recipe : Recipe
        The recipe that `with_fitting_alpha` returned.
    """
    if not _depends_on_text(cache, recipe):
        return ""
    scaled, ratio = fitting_alpha(recipe, cache.text_features), size_ratio(cache.text_features)
    if scaled is None:
        return ""
    size = f"the text features are {ratio:.2g} times as large as OpenAI's"
    if scales_alpha(cache):
        return f"{size}, so alpha is {recipe.alpha:g} instead of {recipe.alpha / ratio:.2g}; --alpha sets another"
    return f"{size}, for which alpha {recipe.alpha:g} was chosen; --alpha {scaled:g} moves these as far"


def _depends_on_text(cache: FeatureCache, recipe: Recipe) -> bool:
    """Return True if alpha is fixed and weighs a residual of the cache's text features."""
    fixed = recipe.alpha_rule != "auto" and recipe.residual == "text"
    return cache.has_text and fixed and recipe.base in SCALED_BASES
