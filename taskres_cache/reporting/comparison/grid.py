"""Methods x shots over one or several data sets: mean, deviation, gain, rank and time, over the same fits for all.

Each shot count is over all data sets, and over seeds that more than half of the methods have. A method that misses a
data set or one of these seeds has no cell there. A method with more seeds is averaged over these only.
"""

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from taskres_cache.caches.contents import DEFAULT_PROMPTS
from taskres_cache.errors import RunError
from taskres_cache.recipe import Recipe
from taskres_cache.reporting.comparison.paired import Difference, paired_difference
from taskres_cache.reporting.published.figures import published_method
from taskres_cache.reporting.studies import Study
from taskres_cache.reporting.tables import in_shots
from taskres_cache.runs.finding import method_of_set
from taskres_cache.runs.metrics import Metrics
from taskres_cache.runs.results import deviation

ZERO_SHOT, TASKRES = "zero-shot", "TaskRes"

Where = tuple[str, int]  # data set and seed
Fits = Mapping[Where, Metrics]


@dataclass(frozen=True)
class Cell:
    """A method at one shot count.

    Parameters
    ----------
    mean : float
        Test accuracy in percent: mean over seeds, then over data sets.
    gain : float or None
        The same in points over zero-shot; None if a cache has no text.
    deviation : float or None
        Standard deviation over seeds of the mean over data sets; None for one seed, or if data sets differ in seeds.
    seconds : float or None
        Mean training time of a fit; None if no run recorded it.
    rank : float
        Mean over data sets of the place among the methods and zero-shot; equal accuracies share their mean place.
    best : bool
        Whether no other mean is better, to two decimals.
    difference : Difference or None
        To the reference, over all fits that both have; None for the reference, and if there are no such fits.
    """

    mean: float
    gain: float | None
    deviation: float | None
    seconds: float | None
    rank: float
    best: bool = False
    difference: Difference | None = None


@dataclass(frozen=True)
class Grid:
    """A comparison of methods.

    Parameters
    ----------
    title : str
        Data set, or number of data sets, and checkpoint.
    datasets : tuple of str
        The data sets.
    shots : tuple of int
        Ascending.
    fits : dict of int to tuple
        Per shot count, the (data set, seed) that the cells are over.
    methods : dict of str to dict of int to Cell
        Cells by method and shots, zero-shot first if there is text.
    reference : str
        The method that differences are to; empty if TaskRes was not fitted.
    notes : tuple of str
        Which methods have no cell, and why.
    """

    title: str
    datasets: tuple[str, ...]
    shots: tuple[int, ...]
    fits: dict[int, tuple[Where, ...]]
    methods: dict[str, dict[int, Cell]]
    reference: str
    notes: tuple[str, ...] = ()


def grid_of(study: Study) -> Grid:
    """Return the comparison of the methods of one study."""
    residuals = [name for name in study.methods if published_method(name) == TASKRES]
    own = [name for name in residuals if _is_taskres(_own_name(study, name))]
    reference = next(iter([*own, *residuals]), "")
    title = f"{study.title}, {study.backbone} ({study.pretrained})"
    return _grid(title, {study.title: _by_method(study, str)}, reference)


def grids_over_datasets(studies: Sequence[Study]) -> list[Grid]:
    """Return a comparison for each checkpoint with several data sets.

    Studies of one data set with different inputs are left out: an average would count the data set twice. The
    recipe that a data set comes with has the same name in all of them.
    """
    groups: dict[tuple[str, ...], list[Study]] = {}
    for study in studies:
        key = study.backbone, study.pretrained, study.runs[0].metrics.weights_sha256, study.half
        groups.setdefault(key, []).append(study)
    grids = []
    for (backbone, pretrained, _, half), group in groups.items():
        counts = Counter(study.dataset for study in group)
        once = [study for study in group if counts[study.dataset] == 1]
        if len(once) > 1:
            of_half = "" if half == "all" else f", {half} classes"
            title = f"{len(once)} data sets{of_half}, {backbone} ({pretrained})"
            named = {study.title: _by_method(study, partial(_own_name, study)) for study in once}
            names = (name for methods in named.values() for name in methods if _is_taskres(name))
            grids.append(_grid(title, named, next(names, "")))
    return grids


def _own_name(study: Study, method: str) -> str:
    """Return a name of a method that is the same for all data sets: task residuals may have a recipe per data set."""
    run = next(run for run in study.runs if run.metrics.method == method)
    recipe = run.metrics.recipe
    if recipe is None:
        return method
    try:
        default = Recipe(**run.classifier.provenance.recipe)
    except (RunError, TypeError):
        default = Recipe()
    as_default = replace(recipe, base="regular", base_sha256="", views=default.views)
    if as_default != default or run.metrics.prompts != DEFAULT_PROMPTS:
        return method
    base = "" if recipe.base == "regular" else f", base {recipe.base} {recipe.base_sha256[:8]}".rstrip()
    return f"{TASKRES}{base}" + (f", {recipe.views} views" if recipe.views else "")


def _is_taskres(own_name: str) -> bool:
    """Return True if `_own_name` returns it for the paper's method."""
    return own_name == TASKRES or (own_name.startswith(f"{TASKRES}, ") and "base" not in own_name)


def _by_method(study: Study, name_of: Callable[[str], str]) -> dict[str, dict[int, dict[int, Metrics]]]:
    """Return the runs of a study by name of the method, shots and seed."""
    found: dict[str, dict[int, dict[int, Metrics]]] = {}
    names = {method: name_of(method) for method in study.methods}
    for metrics in (run.metrics for run in study.runs):
        found.setdefault(names[metrics.method], {}).setdefault(metrics.shots, {})[metrics.seed] = metrics
    return found


def _grid(title: str, studies: Mapping[str, dict[str, dict[int, dict[int, Metrics]]]], reference: str) -> Grid:
    names = list(dict.fromkeys(name for methods in studies.values() for name in methods))
    shots = sorted({count for methods in studies.values() for runs in methods.values() for count in runs})
    cells: dict[str, dict[int, Cell]] = {}
    shared, notes = {}, []
    for count in shots:
        fits = {
            name: {
                (dataset, seed): metrics
                for dataset, methods in studies.items()
                for seed, metrics in methods.get(name, {}).get(count, {}).items()
            }
            for name in names
        }
        everywhere = [tuple(one) for one in fits.values() if {dataset for dataset, _ in one} == set(studies)]
        shared[count] = most_shared(everywhere) if everywhere else ()
        complete = {name: one for name, one in fits.items() if shared[count] and set(shared[count]) <= set(one)}
        missing = [name for name, one in fits.items() if one and name not in complete]
        notes += [f"{name} misses a data set or seed of the others at {in_shots(count)}" for name in missing]
        column = _column(complete, shared[count], fits.get(reference, {})) if complete else {}
        for name, cell in column.items():
            cells.setdefault(name, {})[count] = replace(cell, difference=None) if name == reference else cell
    ordered = {name: cells.get(name, {}) for name in (*filter(is_zero_shot, cells), *names)}
    return Grid(title, tuple(studies), tuple(shots), shared, ordered, reference, tuple(notes))


def most_shared(sets: Sequence[tuple[Where, ...]]) -> tuple[Where, ...]:
    """Return the (data set, seed) that a table is over: of those that most methods have, the ones with the most fits.

    Parameters
    ----------
    sets : sequence of tuple
        The (data set, seed) of each method.
    """
    owners = {one: sum(set(one) <= set(other) for other in sets) for one in {tuple(sorted(one)) for one in sets}}
    common = [one for one, count in owners.items() if count > len(sets) / 2]
    return max(sorted(common or owners), key=lambda one: (owners[one] * len(one), len(one)))


def _column(fits: Mapping[str, Fits], shared: Sequence[Where], reference: Fits) -> dict[str, Cell]:
    """Return the cells of one shot count, over the shared data sets and seeds."""
    tests = {name: {where: one[where].test_accuracy for where in shared} for name, one in fits.items()}
    own = {
        name: zero_shot_name(one[shared[0]].prompts)
        for name, one in fits.items()
        if all(one[where].zero_shot_accuracy is not None for where in shared)  # None without text
    }
    zero_shot = {
        own[name]: {where: accuracy for where in shared if (accuracy := one[where].zero_shot_accuracy) is not None}
        for name, one in sorted(fits.items(), key=lambda fit: fit[1][shared[0]].prompts != DEFAULT_PROMPTS)
        if name in own
    }
    everything = {**zero_shot, **tests}
    ranks = _ranks(everything)
    best = max(round(_mean(one), 2) for one in everything.values())
    column = {}
    for name, found in everything.items():
        mean, base = _mean(found), zero_shot.get(own.get(name, name))
        spread = _deviation(found) if name in fits else None
        seconds = _seconds([fits[name][where] for where in shared]) if name in fits else None
        difference = _difference(fits[name], reference) if name in fits else None
        gain = None if base is None else mean - _mean(base)
        column[name] = Cell(mean, gain, spread, seconds, ranks[name], round(mean, 2) == best, difference)
    return column


def zero_shot_name(prompts: str) -> str:
    """Return the row of zero-shot classification with a set of prompts."""
    return method_of_set(ZERO_SHOT, prompts)


def is_zero_shot(name: str) -> bool:
    """Return True for a row that `zero_shot_name` names."""
    return name == ZERO_SHOT or name.startswith(f"{ZERO_SHOT}@")


def _mean(accuracies: Mapping[Where, float]) -> float:
    """Return the mean over data sets of the mean over seeds."""
    datasets = dict.fromkeys(dataset for dataset, _ in accuracies)
    return statistics.mean(
        statistics.mean(value for (other, _), value in accuracies.items() if other == dataset) for dataset in datasets
    )


def _deviation(accuracies: Mapping[Where, float]) -> float | None:
    """Return the standard deviation over seeds of the mean over data sets."""
    by_seed: dict[int, list[float]] = {}
    for (_, seed), value in accuracies.items():
        by_seed.setdefault(seed, []).append(value)
    datasets = {dataset for dataset, _ in accuracies}
    if any(len(values) < len(datasets) for values in by_seed.values()):
        return None
    return deviation([statistics.mean(values) for values in by_seed.values()])


def _ranks(everything: Mapping[str, Mapping[Where, float]]) -> dict[str, float]:
    """Return each method's mean place over data sets."""
    datasets = dict.fromkeys(dataset for dataset, _ in next(iter(everything.values())))
    places: dict[str, list[float]] = {name: [] for name in everything}
    for dataset in datasets:
        means = {
            name: round(_mean({where: value for where, value in one.items() if where[0] == dataset}), 6)
            for name, one in everything.items()
        }
        for name, mean in means.items():
            better = sum(other > mean for other in means.values())
            equal = sum(other == mean for other in means.values())
            places[name].append(better + (equal + 1) / 2)
    return {name: statistics.mean(found) for name, found in places.items()}


def _seconds(runs: Sequence[Metrics]) -> float | None:
    """Return the mean training time of a fit, with that of its base."""
    known = [run.seconds.fit + (run.seconds.base or 0.0) for run in runs if run.seconds.fit is not None]
    return statistics.mean(known) if known else None


def _difference(fits: Fits, reference: Fits) -> Difference | None:
    pairs = [where for where in fits if where in reference]
    if not pairs:
        return None
    return paired_difference(
        [fits[where].test_accuracy for where in pairs], [reference[where].test_accuracy for where in pairs]
    )
