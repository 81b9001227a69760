"""`--labels` of `taskres extract`: corrected labels from files, or those of the cache."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskres_cache.errors import OptionError

from .options import LIST

if TYPE_CHECKING:
    from taskres_cache.datasets import Dataset

KEEP, NONE = "keep", "none"

Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--labels",
        metavar=LIST,
        help="CSV files of corrected labels: columns path, label and optionally part; label - leaves an image out. Or "
        "keep: those of the cache; none: undo those of the cache. Encodes no image again.",
        show_default="the labels of the data set",
    ),
]


@dataclass(frozen=True)
class AskedLabels:
    """What `--labels` asks for.

    Parameters
    ----------
    files : tuple of Path
        Files of corrections.
    keep, undo : bool
        Whether the corrections of an existing cache come first, or may be undone.
    """

    files: tuple[Path, ...]
    keep: bool
    undo: bool

    def applied(self, dataset: "Dataset", cache: Path | None = None) -> "Dataset":
        """Return the data set with the labels of the files, after those of the cache if these are kept."""
        from taskres_cache.datasets.labels.corrections import corrected

        earlier = None
        if self.keep and cache is not None and cache.exists():
            from taskres_cache.caches.feature_cache import FeatureCache

            earlier = FeatureCache(cache).corrections
        return corrected(dataset, self.files, earlier) if self.files or earlier else dataset


def asked_labels(values: Sequence[str] | None) -> AskedLabels:
    """Return what `--labels` asks for; a file named like one of the words is `./keep` or `./none`."""
    names = [part for value in values or () for part in ([value] if Path(value).exists() else value.split(","))]
    words = {name for name in names if name in (KEEP, NONE)}
    if len(words) > 1:
        raise OptionError("--labels keep keeps the corrections of the cache, none undoes them; pass one of them")
    files = tuple(Path(name) for name in names if name not in words)
    return AskedLabels(files, KEEP in words, NONE in words)
