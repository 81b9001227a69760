"""`taskres import`: a cache from arrays."""

from pathlib import Path
from typing import Annotated

import typer

from .options import DEFAULT_CACHE_DIR, CacheDir, Seeds, Shots, ValPerClass, asked_splits, repeated_cache_dir


def import_arrays(
    arrays: Annotated[
        Path, typer.Argument(metavar="ARRAYS.npz", help="An .npz file with features, labels and class names.")
    ],
    name: Annotated[str, typer.Option("--name", help="Name for the data set.", show_default=False)],
    cache_dir: CacheDir = DEFAULT_CACHE_DIR,
    backbone: Annotated[str, typer.Option(help="The model that made the features.")] = "imported",
    pretrained: Annotated[str, typer.Option(help="The weights that made the features.")] = "arrays",
    shots: Shots = None,
    seeds: Seeds = None,
    val: ValPerClass = None,
) -> None:
    """Make a cache from your own embeddings.

    Required in ARRAYS.npz: train_features (N, D), train_labels (N,), test_features, test_labels, classnames (C,), and
    text_features (C, D) or (C, T, D).

    Optional: val_features, val_labels, templates (T,), class_ids (C,), logit_scale (the multiplier, 100 by default, not
    its logarithm); train_pre_projection (also val, test) with image_projection and image_projection_bias; train_views
    and train_views_narrow (N, V, D); prompts_NAME_texts, _labels and _features. Other names
    are refused. An import of the same --name adds its splits to the earlier ones.

    Example: taskres import embeddings.npz --name birds
    """
    from taskres_cache.caches.foreign.importing import ImportOptions, import_contents
    from taskres_cache.caches.foreign.npz import read_arrays
    from taskres_cache.datasets import dataset_name
    from taskres_cache.system.text import command

    from .console import say

    backbone = backbone.replace("/", "-")  # as for extract, ViT-B/32 is ViT-B-32
    options = ImportOptions(
        dataset_name(name),
        backbone,
        pretrained,
        *asked_splits(shots, seeds, val),
    )
    done = import_contents(read_arrays(arrays), options, cache_dir)
    for note in done.notes:
        say(f"note: {note}")
    say(f"{done.path}: {done.images} images, {done.classes} classes")
    say(f"{done.zero_shot}")
    say("next: " + command("taskres", "fit", options.name, *repeated_cache_dir(cache_dir)))
