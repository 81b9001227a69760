"""How the few-shot splits of a cache are drawn: as asked, else as the cache has it, else by the kind of data set."""

from dataclasses import dataclass, replace

from taskres_cache.caches.contents import SplitName
from taskres_cache.caches.provenance import OWN, PAPER, Provenance
from taskres_cache.datasets import is_named
from taskres_cache.datasets.sampling import ALL_SHOTS, PAPER_SHOTS, VAL_SHOTS_AT_MOST, shots_of, shots_text

# The paper's data sets keep the paper's protocol. A user who labelled images wants all of them to be used.
DEFAULT_SHOTS = {PAPER: PAPER_SHOTS, OWN: (*PAPER_SHOTS, ALL_SHOTS)}
DEFAULT_VAL = {PAPER: VAL_SHOTS_AT_MOST, OWN: ALL_SHOTS}


@dataclass(frozen=True)
class Drawing:
    """Which few-shot splits to draw, and how many validation images each has.

    Parameters
    ----------
    shots, seeds : tuple of int
        Every shot count with every seed.
    val_per_class : int
        Most validation images per class; ALL_SHOTS for all.
    defaults : {"paper", "own"}
        The defaults of the cache, see `Provenance.defaults`.
    notes : tuple of str
        Notes for the user.
    """

    shots: tuple[int, ...]
    seeds: tuple[int, ...]
    val_per_class: int
    defaults: str
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> set[SplitName]:
        """The splits, as (shots, seed)."""
        return {(shots, seed) for shots in self.shots for seed in self.seeds}

    def recorded_in(self, provenance: Provenance) -> Provenance:
        """Return a provenance that records how the splits are drawn."""
        return replace(provenance, defaults=self.defaults, val_per_class=shots_text(self.val_per_class))


def drawing_of(
    dataset: str, shots: tuple[int, ...] | None, seeds: tuple[int, ...], val: int | None, existing: Provenance | None
) -> Drawing:
    """Return how to draw the splits of a cache; None for shots and val stands for the defaults.

    Parameters
    ----------
    dataset : str
        Name of the data set.
    shots, seeds : tuple of int
        The splits that are asked for.
    val : int
        Most validation images per class.
    existing : Provenance or None
        That of the existing cache, which keeps its defaults and, unless asked otherwise, its validation images.
    """
    defaults = existing.defaults if existing else PAPER if is_named(dataset) else OWN
    has = shots_of(existing.val_per_class) if existing else DEFAULT_VAL[defaults]
    wanted = has if val is None else val
    before, after = shots_text(has), shots_text(wanted)
    changed = f"validation images per class: {after}, before: {before}; all splits of the cache are drawn again"
    notes = (changed,) if existing and wanted != has else ()
    return Drawing(shots or DEFAULT_SHOTS[defaults], seeds, wanted, defaults, notes)
