"""`taskres methods`: every method, what it trains and needs, and how it chooses; and `--method` of other commands."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskres_cache.errors import OptionError, UnknownNameError
from taskres_cache.methods.names import ALL, MODULES, TASKRES, expanded, is_own_file, method_names

from .options import Json

if TYPE_CHECKING:
    import torch

    from taskres_cache.caches.contents import SplitName
    from taskres_cache.caches.feature_cache import FeatureCache
    from taskres_cache.methods.method import Method
    from taskres_cache.runs.run import Run

TASK_RESIDUAL = {
    "name": TASKRES,
    "trains": "a residual per class, added to the text features",
    "needs": "text, or class means; augmented views (0.08-1) if there are any",
    "chooses": "fixed; alpha and others by val with --alpha auto or --search",
    "paper": "Yu et al., TaskRes, CVPR 2023",
}


def list_methods(as_json: Json = False) -> None:
    """List the methods of `taskres fit --method`: what each trains and needs, how it chooses, and its paper.

    No method sees a test image. Methods that choose do so by the few validation images of the split.

    Example: taskres methods
    """
    from taskres_cache.methods.registry import find_method
    from taskres_cache.reporting.tables import Table

    from .console import print_json, print_table

    found = [TASK_RESIDUAL, *(_facts(find_method(name).method) for name in method_names())]
    if as_json:
        print_json(found)
        return
    columns = ("name", "trains", "needs", "chooses", "paper")
    rows = tuple(tuple(one[column] for column in columns) for one in found)
    print_table(Table("methods", columns, rows, left=5))


def _facts(method: "Method") -> dict[str, str]:
    """Return what a user wants to know about a method."""
    views = {"wide": "views (0.08-1)", "narrow": "views (0.5-1)"}.get(method.views, "")
    before = {"pre_projection": "pre-projection features", "either": "pre-projection features, optional"}
    text = "text" if method.needs_text else "text, optional" if method.reads_text else ""
    needs = [text, views and f"{views}, optional", before.get(method.reads, "")]
    return {
        "name": method.name,
        "trains": method.trains,
        "needs": ", ".join(need for need in needs if need) or "images only",
        "chooses": method.chooses,
        "paper": method.paper,
    }


def asked_methods(methods: Sequence[str] | None) -> list[str]:
    """Return the names in `--method`, once each; raises OptionError for an unknown one, before torch is imported."""
    parts = [part.strip() for text in methods or [TASKRES] for part in text.split(",") if part.strip()]
    names = expanded(parts)
    for name in names:
        if is_own_file(name):
            if not Path(name.rpartition(":")[0]).is_file():
                raise OptionError(f"there is no file {name.rpartition(':')[0]}; pass --method path/to/file.py:name")
        elif name not in (TASKRES, *method_names()):
            raise UnknownNameError("method", name, (TASKRES, *MODULES, ALL), "run: taskres methods")
    if not names:
        raise OptionError("--method is empty; pass names that `taskres methods` lists")
    return names


def asked_settings(settings: Sequence[str] | None) -> dict[str, str]:
    """Return `--set NAME=VALUE` as a dictionary; raises OptionError for anything else."""
    pairs = [text.partition("=") for text in settings or ()]
    wrong = next((name for name, separator, _ in pairs if not separator or not name.strip()), None)
    if wrong is not None:
        raise OptionError(f"--set {wrong!r}: expected NAME=VALUE, such as alphas=0.1,1")
    return {name.strip(): value.strip() for name, _, value in pairs}


def used_options(given: Mapping[str, object]) -> list[str]:
    """Return the names of the options of the task residual that were given."""
    return [name for name, value in given.items() if value not in (None, False, [], "fp32")]


def refuse_taskres_options(names: Sequence[str], given: dict[str, Any]) -> None:
    """Raise OptionError for an option of the task residual alone, if that is not among the methods."""
    used = used_options(given)
    if used and TASKRES not in names:
        option = "--" + used[0].replace("_", "-")
        raise OptionError(
            f"{option} is an option of method {TASKRES}, got --method {','.join(names)}; use --set NAME=VALUE"
        )


def method_runs(
    caches: "Sequence[FeatureCache]",
    splits: "Sequence[SplitName]",
    names: Sequence[str],
    settings: dict[str, str],
    views: int | None,
    val: str,
    device: "torch.device",
    out: Path,
) -> "Iterator[Run]":
    """Fit the methods other than the task residual on every split; those that the cache does not suit get a note.

    The caches are one cache with several sets of prompts.
    """
    from taskres_cache.runs.fitting.choices import choices_for, suited
    from taskres_cache.runs.fitting.method_study import fit_methods

    from .console import say

    choices = choices_for(caches[0], names, settings, views, "full" if val == "full" else "few")
    kept, left_out = suited(caches[0], choices)
    if len(choices) > 1:
        for note in left_out:
            say(f"note: {note}")
        if not kept and TASKRES not in names:
            raise OptionError(f"none of the methods {', '.join(names)} suits this cache; see the notes above")
        choices = kept
    return chain.from_iterable(fit_methods(cache, splits, choices, device, out) for cache in caches if choices)
