"""`taskres import`: a cache from arrays."""

from pathlib import Path
from typing import Annotated

import typer

from .options import DEFAULT_CACHE_DIR, CacheDir, Seeds, Shots, ValPerClass, asked_splits, repeated_cache_dir


def import_arrays(
    arrays: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...",
            help="An .npz, .safetensors or .parquet file, or .npy files named as their arrays, or NAME=FILE.npy.",
            show_default=False,
        ),
    ],
    name: Annotated[str, typer.Option("--name", help="Name for the data set.", show_default=False)],
    classnames: Annotated[
        Path | None,
        typer.Option(help="File of class names, one per line, in label order.", show_default="the sorted labels"),
    ] = None,
    features_column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Column of a table with the features.", show_default="by usual names"),
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Column of a table with the classes.", show_default="by usual names"),
    ] = None,
    split_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Column of a table with train, val or test.", show_default="by usual names, if any"
        ),
    ] = None,
    path_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Column of a table with the images' paths.", show_default="by usual names, if any"
        ),
    ] = None,
    split_seed: Annotated[int, typer.Option(help="Seed of the 60/20/20 split, if there are no test images.")] = 0,
    cache_dir: CacheDir = DEFAULT_CACHE_DIR,
    backbone: Annotated[str, typer.Option(help="The model that made the features.")] = "imported",
    pretrained: Annotated[str, typer.Option(help="The weights that made the features.")] = "arrays",
    shots: Shots = None,
    seeds: Seeds = None,
    val: ValPerClass = None,
) -> None:
    """Make a cache from your own embeddings.

    Arrays: train_features (N, D) and train_labels (N,), numbers or class names, also val and test; or features and
    labels of all images, with split (train, val or test) or without. A table has a row per image. Test images that are
    not given are drawn, 20 % of each class. Without text_features (C, D) or (C, T, D), which need classnames (C,),
    methods that need no text can be fitted.

    Optional: paths, templates (T,), class_ids (C,), logit_scale (the multiplier, 100 by default, not its logarithm);
    train_pre_projection (also val, test) with image_projection and image_projection_bias; train_views and
    train_views_narrow (N, V, D); prompts_NAME_texts, _labels and _features. Other names are refused. An import of the
    same --name adds its splits to the earlier ones.

    Example: taskres import embeddings.parquet --name birds
    """
    from taskres_cache.caches.foreign.files import joined, read_classnames, read_files
    from taskres_cache.caches.foreign.importing import ImportOptions, import_contents
    from taskres_cache.caches.foreign.tables import ColumnNames
    from taskres_cache.datasets import dataset_name
    from taskres_cache.system.text import command

    from .console import say

    backbone = backbone.replace("/", "-")  # as for extract, ViT-B/32 is ViT-B-32
    splits = asked_splits(shots, seeds, val)
    options = ImportOptions(dataset_name(name), backbone, pretrained, *splits, split_seed=split_seed)
    columns = ColumnNames(features_column, label_column, split_column, path_column)
    names = None if classnames is None else read_classnames(classnames)
    done = import_contents(joined(read_files(arrays, columns), [("classnames", names)]), options, cache_dir)
    for note in done.notes:
        say(f"note: {note}")
    say(f"{done.path}: {done.images} images, {done.classes} classes")
    say(f"{done.zero_shot}")
    say("next: " + command("taskres", "fit", options.name, *repeated_cache_dir(cache_dir)))
