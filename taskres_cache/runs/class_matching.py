"""A run applied to the classes of a cache: all of them, some of them, or others.

Axes: C classes of the cache, D embedding, W width of the text tower.
"""

import numpy as np
import torch

from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.provenance import encoder_differences
from taskres_cache.errors import RunError
from taskres_cache.heads.head import Head
from taskres_cache.heads.kinds import CosineHead
from taskres_cache.runs.classifier import Classifier, MethodClassifier, ResidualClassifier
from taskres_cache.system.names import shown

LONGEST_VALUE = 200  # characters of a value in a message


def text_head(cache: FeatureCache) -> CosineHead | None:
    """Return the zero-shot classifier of a cache, the regular base of its used set of prompts; None without text."""
    if not cache.has_text:
        return None
    return CosineHead.of_arrays(cache.text_features, cache.provenance.logit_scale)


def with_text_of(classifier: Classifier, cache: FeatureCache) -> FeatureCache:
    """Return a cache with the set of prompts that a run was fitted with, if the cache has it."""
    return cache.using(classifier.prompts) if classifier.prompts in cache.prompt_sets else cache


def heads_on(classifier: Classifier, cache: FeatureCache) -> tuple[Head | None, Head]:
    """Return the heads of a run's base and of the run itself for the classes of a cache; no base without text.

    A run that has learnt nothing about single classes, only something on the image side or a text projection, applies
    to any classes: if it does not know a class of the cache, its text is computed from the text of the cache. The base
    of a method other than the task residual is the zero-shot classifier of the cache.

    Raises
    ------
    RunError
        The cache has features of another checkpoint, or classes that the run does not know and cannot be applied to.
    """
    if isinstance(classifier, MethodClassifier):
        return text_head(cache), _method_head(classifier, cache)
    try:
        rows = class_rows(classifier, cache)
    except UnknownClassesError:
        if classifier.residual.any() or classifier.recipe.base == "means" or not cache.has_text:
            raise
        base, scale = _base_of_other_classes(classifier, cache), classifier.provenance.logit_scale
        shift, alpha = classifier.image_residual, classifier.alpha
        adapted = CosineHead.of_arrays(base, scale, None, shift, alpha, classifier.temperature)
        return CosineHead.of_arrays(base, cache.provenance.logit_scale), adapted
    base_head = CosineHead.of_arrays(classifier.base[rows], cache.provenance.logit_scale)
    return base_head, classifier.head.of_classes(rows)


def _method_head(classifier: MethodClassifier, cache: FeatureCache) -> Head:
    """Return the head of a method for the classes of a cache."""
    try:
        return classifier.head.of_classes(class_rows(classifier, cache))
    except UnknownClassesError:
        if not cache.has_text:
            raise
        applied = classifier.head.with_text(torch.from_numpy(cache.text_features))
        if applied is None:
            raise
        return applied


def _base_of_other_classes(classifier: ResidualClassifier, cache: FeatureCache) -> np.ndarray:
    """Return the base (C, D) of the classes of a cache, from its text, as the run's own base was made."""
    if classifier.recipe.base == "regular":
        return cache.text_features
    projection, inputs = classifier.projection, cache.text().base_inputs  # (C, W)
    if projection is None:
        raise RunError(
            f"{cache.path} has classes that the run does not know, and the run's base was read from a file without a "
            "text projection, so there is no base for them; fit a run on a cache that has them"
        )
    if inputs is None or inputs.shape[1] != len(projection):
        raise RunError(
            f"{cache.path} has classes that the run does not know, and no text/pre_projection of width "
            f"{len(projection)} to apply the run's text projection to; extract the cache with the run's backbone"
        )
    base: np.ndarray = inputs @ projection  # (C, D)
    return base


class UnknownClassesError(RunError):
    """A cache has classes that a run does not know."""


def class_rows(classifier: Classifier, cache: FeatureCache) -> np.ndarray:
    """Return the row of the classifier for each class of a cache (C,); a cache may have fewer classes.

    Classes are matched by identifier if both have identifiers, else by name.

    Raises
    ------
    RunError
        The cache has features of another checkpoint, or its classes cannot be matched.
    """
    _refuse_other_features(classifier, cache)
    known, wanted = classifier.classnames, cache.classnames
    if classifier.class_ids is not None and cache.class_ids is not None:
        known, wanted = classifier.class_ids, cache.class_ids
    if wanted == known:
        return np.arange(len(known))
    row_of = {key: row for row, key in enumerate(known)}
    unknown = [name for name, key in zip(cache.classnames, wanted, strict=True) if key not in row_of]
    if unknown:
        raise UnknownClassesError(
            f"{cache.path} has {len(unknown)} of {len(wanted)} classes that the run does not know "
            f"({', '.join(shown(name) for name in unknown[:3])}); {_remedy_for_unknown(classifier)}"
        )
    if len(row_of) < len(known):
        raise RunError(
            f"the run has several classes with the same name, and {cache.path} has other classes than the run, so they "
            "cannot be matched by name; give the classes distinct names and fit the run again"
        )
    return np.array([row_of[key] for key in wanted])


def _remedy_for_unknown(classifier: Classifier) -> str:
    if classifier.half == "all":
        return "fit a run on a cache that has them, or one with --residual image or --base enhanced-only"
    return (
        f"the run was fitted with --classes {classifier.half} and has no residual for others; evaluate those "
        "zero-shot: taskres eval CACHE --zero-shot, or fit with --residual image or --base enhanced-only"
    )


def shown_value(value: object) -> str:
    """Return a value for a message, shortened."""
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def _refuse_other_features(classifier: Classifier, cache: FeatureCache) -> None:
    """Raise RunError if the features of a cache are not from the encoder and preprocessing of the run."""
    differing = [
        f"{name}: cache has {shown_value(has)}, run has {shown_value(own)}"
        for name, (own, has) in encoder_differences(classifier.provenance, cache.provenance).items()
    ]
    if classifier.head.input == "features" and cache.dim != classifier.head.width:
        differing.append(f"embedding size: cache has {cache.dim}, run has {classifier.head.width}")
    if differing:
        raise RunError(
            f"{cache.path} holds features of another checkpoint than the run: {'; '.join(differing)}; "
            "extract it with the run's backbone and weights"
        )
