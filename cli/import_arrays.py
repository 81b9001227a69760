"""`taskres import`: a cache from arrays."""

from pathlib import Path
from typing import Annotated

import typer

from .options import CacheDir, Seeds, Shots, split_numbers


def import_arrays(
    arrays: Annotated[
        Path, typer.Argument(metavar="ARRAYS.npz", help="An .npz file with features, labels and class names.")
    ],
    name: Annotated[str, typer.Option("--name", help="Name for the data set.", show_default=False)],
    cache_dir: CacheDir = Path("cache"),
    backbone: Annotated[str, typer.Option(help="The model that made the features.")] = "imported",
    pretrained: Annotated[str, typer.Option(help="The weights that made the features.")] = "arrays",
    shots: Shots = None,
    seeds: Seeds = None,
) -> None:
    """Make a cache from your own embeddings.

    ARRAYS.npz contains train_features (N, D), train_labels (N,), test_features, test_labels, text_features (C, D) or
    (C, T, D) and classnames (C,); optional are val_features, val_labels and logit_scale (a multiplier).

    Example: taskres import embeddings.npz --name birds
    """
    from taskres_cache.caches.importing import ImportOptions, import_contents, read_arrays
    from taskres_cache.datasets import dataset_name

    from .console import say

    backbone = backbone.replace("/", "-")  # as for extract, ViT-B/32 is ViT-B-32
    options = ImportOptions(
        dataset_name(name),
        backbone,
        pretrained,
        *split_numbers(shots, seeds),
    )
    done = import_contents(read_arrays(arrays), options, cache_dir)
    for note in done.notes:
        say(f"note: {note}")
    say(f"{done.path}: {done.images} images, {done.classes} classes")
    say(f"next: taskres fit {options.name}")
