"""Methods as a user asks for them, for a cache: options from text, as many views as there are, what does not suit."""

from collections.abc import Mapping, Sequence

from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.errors import OptionError
from taskres_cache.methods.choice import MethodChoice, ValUse, with_settings
from taskres_cache.methods.names import TASKRES
from taskres_cache.methods.registry import find_method
from taskres_cache.runs.fitting.few_shot_tasks import default_views, unsuited


def choices_for(
    cache: FeatureCache,
    names: Sequence[str],
    settings: Mapping[str, str] | None = None,
    views: int | None = None,
    val: ValUse = "few",
) -> list[MethodChoice]:
    """Return the methods of a cache, without the task residual.

    Parameters
    ----------
    cache : FeatureCache
        Gives the number of views.
    names : sequence of str
        Names of methods, or files with the name in them; see `registry.find_method`.
    settings : mapping of str to str, optional
        Values of options as text. Each must be an option of at least one method, and applies to all that have it.
    views : int, optional
        Augmented views for methods that use them. Defaults to all that the cache has of their family.
    val : {"few", "full"}
        Whether methods choose by the validation images of the split, or by the whole val partition.

    Raises
    ------
    OptionError
        A method is unknown, an option is unknown to all methods, or a value is of the wrong type.
    """
    found = [find_method(name) for name in names if name != TASKRES]
    given = dict(settings or {})
    fields = [{name for name in given if name.replace("-", "_") in vars(one.method.options)} for one in found]
    unknown = [name for name in given if not any(name in known for known in fields)]
    if unknown and found:
        with_settings(found[0].method, {unknown[0]: given[unknown[0]]})  # raises, with the nearest name
    if unknown:
        raise OptionError(f"--set {unknown[0]} needs --method: the task residual has options of its own")
    return [
        MethodChoice(
            method=one.method,
            options=with_settings(one.method, {name: given[name] for name in sorted(known)}),
            views=default_views(cache, one.method) if views is None else (0 if one.method.views == "none" else views),
            val=val,
            source_sha256=one.source_sha256,
        )
        for one, known in zip(found, fields, strict=True)
    ]


def suited(cache: FeatureCache, choices: Sequence[MethodChoice]) -> tuple[list[MethodChoice], list[str]]:
    """Return the methods that can be fitted on a cache, and a note for each reason to leave others out."""
    reasons = [(choice, unsuited(cache, choice)) for choice in choices]
    names: dict[str, list[str]] = {}
    for choice, reason in reasons:
        names.setdefault(reason, []).append(choice.method.name)
    left_out = [
        f"{', '.join(named)} {'is' if len(named) == 1 else 'are'} left out: {reason}"
        for reason, named in names.items()
        if reason
    ]
    return [choice for choice, reason in reasons if not reason], left_out
