"""What to extract, and what an extraction did, as plain values."""

from dataclasses import dataclass
from pathlib import Path

from taskres_cache.datasets import PAPER_SEEDS, PAPER_SHOTS, refuse_unusable_splits
from taskres_cache.encoders.encoding import EncodingOptions, Seconds
from taskres_cache.encoders.views import FAMILIES, WIDE, view_recipe
from taskres_cache.errors import OptionError
from taskres_cache.extraction.planning import PRE_PROJECTIONS, PlannedViews

UNREADABLE = ("fail", "skip")


@dataclass(frozen=True)
class ExtractOptions(EncodingOptions):
    """What to extract. `batch_size` and `workers` are keyword-only.

    Parameters
    ----------
    shots, seeds : tuple of int, optional
        The few-shot splits: every shot count with every seed. Default to those of the paper: 1, 2, 4, 8, 16 shots and
        seeds 1, 2, 3; data that is not known by name also gets ALL_SHOTS. Splits that the cache already has are kept.
    classnames_form : {"spaces", "raw"}, optional
        Whether prompts contain class names with spaces for underscores, or as they are.
    views : int, optional
        Augmented views per train image. Views that the cache already has are kept.
    views_seed : int, optional
        Seed of the augmented views.
    unreadable : {"fail", "skip"}, optional
        Whether unreadable images are an error, raised after all others are encoded, or are recorded and left out.
    view_family : {"wide", "narrow"}, optional
        The family that `views` and `views_seed` are about: crops of 0.08 to 1 or of 0.5 to 1 of the image's area. Other
        families of the cache are kept.
    pre_projection : {"none", "images", "all"}, optional
        Whether to store the inputs of the image tower's last linear map, of images or also of views. Defaults to
        `images` for a new cache, and to what an existing cache has. Images of an existing cache without them are
        encoded again only if this asks for them; a cache never loses them.
    val_per_class : int, optional
        Most validation images per class of a split: at K shots it has min(K, `val_per_class`). Defaults to what an
        existing cache has; else 4 as in the paper for known data sets, and ALL_SHOTS for other data.
    undo_corrections : bool, optional
        Whether corrected labels of the existing cache that the data set does not have are undone; else an error.
    batch_size, workers : int, optional
        Renderings per batch and decoding processes, see `EncodingOptions`.

    Raises
    ------
    OptionError
        A value is out of range.
    """

    shots: tuple[int, ...] | None = None
    seeds: tuple[int, ...] = PAPER_SEEDS
    classnames_form: str = "spaces"
    views: int = 0
    views_seed: int = 0
    unreadable: str = "fail"
    view_family: str = WIDE
    pre_projection: str | None = None
    val_per_class: int | None = None
    undo_corrections: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_unusable_splits(PAPER_SHOTS if self.shots is None else self.shots, self.seeds)
        if self.val_per_class is not None and self.val_per_class < 1:
            raise OptionError(f"val-per-class must be positive, got {self.val_per_class}")
        if self.views < 0:
            raise OptionError(f"views must not be negative, got {self.views}")
        if self.unreadable not in UNREADABLE:
            raise OptionError(f"unreadable must be one of {', '.join(UNREADABLE)}, got {self.unreadable!r}")
        if self.view_family not in FAMILIES:
            raise OptionError(f"view-family must be one of {', '.join(FAMILIES)}, got {self.view_family!r}")
        if self.pre_projection not in (None, *PRE_PROJECTIONS):
            raise OptionError(
                f"pre-projection must be one of {', '.join(PRE_PROJECTIONS)}, got {self.pre_projection!r}"
            )

    @property
    def requested_views(self) -> dict[str, PlannedViews]:
        """The views that are asked for, by family."""
        settings = view_recipe(self.views_seed, self.view_family)
        return {self.view_family: PlannedViews(settings, self.views)} if self.views else {}


@dataclass(frozen=True)
class Extraction:
    """The result of stage one.

    Parameters
    ----------
    path : Path
        The cache.
    images, encoded : int
        Images in the cache, and how many of them this call encoded.
    views, views_encoded : int
        Augmented views per train image, of all families, and how many this call encoded in total.
    changed : bool
        Whether the file was written; False if nothing was missing.
    seconds : Seconds
        Where the time of encoding went, summed over processes.
    notes : tuple of str
        Notes for the user, such as classes with fewer images than shots.
    """

    path: Path
    images: int
    encoded: int
    views: int
    views_encoded: int
    changed: bool
    seconds: Seconds
    notes: tuple[str, ...]
