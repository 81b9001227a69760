"""The paper's ablations on one cache: where the residual is, its weight alpha, and its base.

Source: Yu et al., Task Residual for Tuning Vision-Language Models, CVPR 2023, ablation studies. Everything else of the
recipe is that of the data set, so that the rows differ in one thing.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from taskres_cache.benchmark.alpha_chart import AlphaCurve, AlphaPoint, alpha_chart
from taskres_cache.caches.contents import SplitName
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.datasets.sampling import shots_text
from taskres_cache.recipe import Recipe
from taskres_cache.reporting.tables import Table, in_shots, percent, signed, with_deviation
from taskres_cache.runs.finding import checkpoint_folder
from taskres_cache.runs.fitting.study import finished_runs, fit_each, recipe_of
from taskres_cache.runs.results import Summary, summarise
from taskres_cache.runs.run import Run
from taskres_cache.system.files import replaced
from taskres_cache.system.progress import Progress

ALPHAS = tuple(number / 10 for number in range(1, 11))


@dataclass(frozen=True)
class Variant:
    """One row of the ablations.

    Parameters
    ----------
    base, residual, alpha : str
        What the reader sees.
    recipe : Recipe
        How it is trained.
    """

    base: str
    residual: str
    alpha: str
    recipe: Recipe


@dataclass(frozen=True)
class Ablations:
    """The results of all variants.

    Parameters
    ----------
    title : str
        Data set and checkpoint.
    rows : tuple of (Variant, tuple of Summary)
        The variants with their summaries by shots.
    runs : tuple of Run
        All runs.
    reused : int
        How many of them existed before.
    """

    title: str
    rows: tuple[tuple[Variant, tuple[Summary, ...]], ...]
    runs: tuple[Run, ...]
    reused: int


def variants(recipe: Recipe, with_enhanced: bool) -> list[Variant]:
    """Return the variants of a recipe: base alone, residual on text, image, both, learned alpha, alpha 0.1 to 1.

    Parameters
    ----------
    recipe : Recipe
        What the variants have in common, see `recipe_of`.
    with_enhanced : bool
        Whether the cache has what an enhanced base is tuned from.
    """
    found = []
    own = f"{recipe.alpha:g}"
    for base in ("regular", *(("enhanced",) if with_enhanced else ())):
        on = recipe.changed(base=base)
        found += [Variant(base, "none", "-", recipe.changed(base="enhanced-only"))] if base == "enhanced" else []
        found += [Variant(base, place, own, on.changed(residual=place)) for place in ("text", "image", "both")]
        found.append(Variant(base, "text", "learned", on.changed(alpha_rule="learn")))
        others = (alpha for alpha in ALPHAS if alpha != recipe.alpha)
        found += [Variant(base, "text", f"{alpha:g}", on.changed(alpha=alpha)) for alpha in others]
    return found


def run_ablations(
    cache: FeatureCache, splits: Sequence[SplitName], device: torch.device, out: Path, progress: Progress
) -> Ablations:
    """Fit every variant on every split; runs that exist are reused.

    Parameters
    ----------
    cache : FeatureCache
        The cache; without text projection, the enhanced base is left out.
    splits : sequence of (int, int)
        Few-shot splits as (shots, seed).
    device : torch.device
        Where to fit.
    out : Path
        Folder above the run folders.
    progress : Progress
        Called after each fit.

    Returns
    -------
    Ablations
        All results.

    Raises
    ------
    OptionError
        The cache does not have a split.
    CacheError
        The cache is damaged or has no test images.
    StorageError
        A run folder could not be written.
    """
    rows = variants(recipe_of(cache), cache.text_bases().projection is not None)
    recipes = [row.recipe for row in rows]
    found = {recipe: finished_runs(cache, splits, recipe, out) for recipe in recipes}
    reused = sum(map(len, found.values()))
    progress.begin(f"fits on {cache.provenance.dataset}", len(recipes) * len(splits), reused)
    groups: dict[tuple[SplitName, ...], list[Recipe]] = {}  # fitted together, recipes share their bases
    for recipe in recipes:
        groups.setdefault(tuple(split for split in splits if split not in found[recipe]), []).append(recipe)
    for missing, together in groups.items():
        for run in fit_each(cache, missing, together, device, out) if missing else ():
            assert run.metrics.recipe is not None
            found[run.metrics.recipe][run.metrics.shots, run.metrics.seed] = run
            progress.advance(1)
    runs = {recipe: tuple(found[recipe][split] for split in splits) for recipe in recipes}
    summaries = {recipe: tuple(summarise(run.metrics for run in ones)) for recipe, ones in runs.items()}
    source = cache.provenance
    title = f"{source.dataset}, {source.backbone} ({source.pretrained})"
    everything = tuple(run for ones in runs.values() for run in ones)
    return Ablations(title, tuple((row, summaries[row.recipe]) for row in rows), everything, reused)


def ablation_tables(found: Ablations) -> list[Table]:
    """Return test accuracy and gain over zero-shot, a row per variant and a column per shot count."""
    shots = [row.shots for row in found.rows[0][1]]
    columns = ("base", "residual", "alpha", *map(in_shots, shots))
    seeds = ", ".join(map(str, found.rows[0][1][0].seeds))
    zero_shot = found.rows[0][1][0].zero_shot_accuracy
    accuracies = [(row.base, row.residual, row.alpha, *map(_accuracy, ones)) for row, ones in found.rows]
    gains = [(row.base, row.residual, row.alpha, *(signed(one.gain) for one in ones)) for row, ones in found.rows]
    alone = ("regular", "none", "-", *(percent(zero_shot) for _ in shots))
    heading = f"{found.title}\nablations: test accuracy in %, mean and standard deviation over seeds {seeds}"
    return [
        Table(heading, columns, (alone, *accuracies), left=3),
        Table(f"{found.title}\nablations: gain over zero-shot in points", columns, tuple(gains), left=3),
    ]


def ablation_records(found: Ablations) -> Table:
    """Return one row per variant and shot count with all numbers; other programs read it as CSV."""
    rows = [
        (
            row.base,
            row.residual,
            row.alpha,
            shots_text(one.shots),
            " ".join(map(str, one.seeds)),
            *map(_number, _numbers(one)),
        )
        for row, ones in found.rows
        for one in ones
    ]
    numbers = ("zero_shot", "test_mean", "test_std", "gain", "fit_seconds")
    return Table("ablations", ("base", "residual", "alpha", "shots", "seeds", *numbers), tuple(rows), left=3)


def ablation_figure(found: Ablations) -> str:
    """Return accuracy over alpha as an SVG file: a curve per base and shot count, and learned alphas as diamonds."""
    curves: dict[tuple[str, int], list[AlphaPoint]] = {}
    learned: dict[tuple[str, int], AlphaPoint] = {}
    for row, ones in found.rows:
        for one in ones if row.residual == "text" else ():
            point = AlphaPoint(_mean_alpha(found.runs, row.recipe, one), one.mean_test_accuracy, one.std_test_accuracy)
            if row.alpha == "learned":
                learned[row.base, one.shots] = point
            else:
                curves.setdefault((row.base, one.shots), []).append(point)
    named = [
        AlphaCurve(f"{base}, {in_shots(shots)}", tuple(sorted(points, key=lambda one: one.alpha)), learned[base, shots])
        for (base, shots), points in curves.items()
    ]
    zero_shot = found.rows[0][1][0].zero_shot_accuracy
    assert zero_shot is not None  # the ablations are of the text side
    return alpha_chart(named, zero_shot, f"{found.title}: accuracy over alpha")


def write_ablations(found: Ablations, cache: FeatureCache, out: Path) -> list[Path]:
    """Write `<dataset>-ablations.md`, `.csv`, `.tex` and `.svg` next to the runs, and return their paths.

    Raises
    ------
    StorageError
        A file could not be written.
    """
    tables = ablation_tables(found)
    contents = {
        "md": "\n".join(table.as_markdown() for table in tables),
        "csv": ablation_records(found).as_csv(),
        "tex": "\n".join(table.as_latex() for table in tables),
        "svg": ablation_figure(found),
    }
    above = checkpoint_folder(out, cache.provenance)
    files = [above / f"{cache.provenance.dataset}-ablations.{suffix}" for suffix in contents]
    for file, content in zip(files, contents.values(), strict=True):
        with replaced(file) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return files


def _mean_alpha(runs: Sequence[Run], recipe: Recipe, one: Summary) -> float:
    """Return the mean over seeds of the alpha that the runs of a variant use."""
    fits = [run.metrics for run in runs if (run.metrics.recipe, run.metrics.shots) == (recipe, one.shots)]
    return statistics.mean(fit.alpha for fit in fits if fit.alpha is not None)


def _accuracy(one: Summary) -> str:
    return with_deviation(one.mean_test_accuracy, one.std_test_accuracy)


def _numbers(one: Summary) -> tuple[float | None, ...]:
    return one.zero_shot_accuracy, one.mean_test_accuracy, one.std_test_accuracy, one.gain, one.mean_fit_seconds


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
