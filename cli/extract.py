"""`taskres extract`: stage one."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import checks, completion
from .extract_prompts import ClassDescriptions, Prompts, PromptsName, PromptSource, add_prompts
from .labels import Labels, asked_labels
from .options import (
    DEFAULT_CACHE_DIR,
    Backbone,
    BatchSize,
    CacheDir,
    DatasetName,
    Device,
    ImagesRoot,
    LabelColumn,
    PathColumn,
    Precision,
    PreProjection,
    Pretrained,
    PretrainedLike,
    Seeds,
    Shots,
    SplitColumn,
    Templates,
    ValPerClass,
    ViewFamily,
    Views,
    ViewsSeed,
    Workers,
    asked_splits,
    repeated_cache_dir,
)

if TYPE_CHECKING:
    from taskres_cache.datasets import Dataset
    from taskres_cache.datasets.forms.form import FormOptions
    from taskres_cache.encoders.backbone import Backbone as LoadedBackbone
    from taskres_cache.extraction.extract import Extraction
    from taskres_cache.extraction.options import ExtractOptions


def extract(
    dataset: DatasetName,
    root: ImagesRoot = None,
    backbone: Backbone = None,
    pretrained: Pretrained = None,
    pretrained_like: PretrainedLike = None,
    shots: Shots = None,
    seeds: Seeds = None,
    val: ValPerClass = None,
    views: Views = 0,
    views_seed: ViewsSeed = 0,
    view_family: ViewFamily = "wide",
    pre_projection: PreProjection = None,
    cache_dir: CacheDir = DEFAULT_CACHE_DIR,
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: BatchSize = None,
    workers: Workers = None,
    templates: Templates = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name for the data set.", show_default="that of the folder or file"),
    ] = None,
    split_seed: Annotated[int, typer.Option(help="Seed of the random 60/20/20 split of images without a part.")] = 0,
    path_column: PathColumn = None,
    label_column: LabelColumn = None,
    split_column: SplitColumn = None,
    labels: Labels = None,
    class_descriptions: ClassDescriptions = None,
    prompts_name: PromptsName = None,
    prompts: Prompts = None,
    classnames: Annotated[
        str,
        typer.Option(
            callback=checks.one_of("spaces", "raw"),
            help="In prompts: spaces (for underscores) or raw.",
            autocompletion=completion.prompt_forms,
        ),
    ] = "spaces",
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out unreadable images; the cache lists them.")
    ] = False,
) -> None:
    """Encode a data set's images with CLIP into a cache file.

    Every image that the few-shot splits need is encoded once. Only missing images are encoded: a killed run continues
    where it stopped, and more shots, seeds or views cost only their own images. Under torchrun, the processes share the
    work.

    Example: taskres extract photos --backbone ViT-B-16 --views 10
    """
    from taskres_cache.datasets import default_backbone
    from taskres_cache.datasets.forms.form import FormOptions
    from taskres_cache.datasets.text.description_file import read_descriptions

    if prompts_name is not None or prompts is not None:
        checkpoint = None if backbone is None else (backbone, pretrained)
        text = PromptSource(prompts, class_descriptions, templates)
        add_prompts(name or dataset, prompts_name, text, checkpoint, pretrained_like, device, cache_dir)
        return
    counts, draws, val_per_class = asked_splits(shots, seeds, val)
    listed = FormOptions(name, split_seed, root, path_column, label_column, split_column)
    asked = asked_labels(labels)
    images = _dataset(dataset, listed, templates)
    if class_descriptions is not None:
        read_descriptions(class_descriptions)  # errors come before the weights are loaded
    asked.applied(images)
    default = default_backbone(images.name)
    checkpoint = (backbone, pretrained) if backbone else (default.name, pretrained or default.pretrained)
    checks.checkpoint(*checkpoint)

    from taskres_cache.caches.contents import cache_path
    from taskres_cache.datasets.text.class_descriptions import with_descriptions
    from taskres_cache.encoders.loading import load_backbone
    from taskres_cache.extraction.options import ExtractOptions

    options = ExtractOptions(
        counts,
        draws,
        classnames_form=classnames,
        views=views,
        views_seed=views_seed,
        view_family=view_family,
        pre_projection=pre_projection,
        batch_size=batch_size,
        workers=workers,
        unreadable="skip" if skip_unreadable else "fail",
        val_per_class=val_per_class,
        undo_corrections=asked.undo,
    )
    encoder = load_backbone(*checkpoint, device, precision, pretrained_like)
    path = cache_path(cache_dir, encoder.name, encoder.pretrained, images.name)
    images = asked.applied(images, path)
    images = images if class_descriptions is None else with_descriptions(images, class_descriptions)
    _encode(images, encoder, options, path, cache_dir)


def _encode(
    images: "Dataset", encoder: "LoadedBackbone", options: "ExtractOptions", path: Path, cache_dir: Path
) -> None:
    """Extract this rank's share of a data set; rank 0 prints notes and the result."""
    from taskres_cache.extraction.extract import extract as extract_features
    from taskres_cache.extraction.ranks import joined_ranks
    from taskres_cache.system.progress import Silent

    from .console import kept_when_interrupted, progress, say

    with (
        kept_when_interrupted(),
        joined_ranks() as ranks,
        progress() if ranks.first else nullcontext(Silent()) as display,
    ):
        if ranks.first:
            for note in encoder.notes:
                say(f"note: {note}")
        done = extract_features(images, encoder, options, path, display, ranks)
    if ranks.first:
        _report(done, ("eval", "RUN", "--on") if images.test_only else ("fit",), cache_dir)


def _dataset(name_or_folder: str, options: "FormOptions", templates: str | None) -> "Dataset":
    """Return the data set, with the prompts of `--templates` if there are any."""
    from taskres_cache.datasets import load_dataset
    from taskres_cache.datasets.prompts import read_templates

    dataset = load_dataset(
        name_or_folder,
        options.root,
        options.split_seed,
        options.name,
        path_column=options.path_column,
        label_column=options.label_column,
        split_column=options.split_column,
    )
    return dataset if templates is None else replace(dataset, templates=read_templates(templates))


def _report(done: "Extraction", following: Sequence[str], cache_dir: Path) -> None:
    """Print what was done, where the time went, and the command that follows."""
    from taskres_cache.system.text import command

    from .console import say

    for note in done.notes:
        say(f"note: {note}")
    say(f"{done.path}: {done.images} images, {done.encoded} newly encoded")
    if done.views:
        say(f"{done.views} augmented views per training image, {done.views_encoded} newly encoded")
    if done.encoded or done.views_encoded:
        say("time: " + ", ".join(f"{part} {share:.0f} %" for part, share in done.seconds.shares().items()))
    if not done.changed:
        say("nothing was missing; the cache is unchanged")
    say("next: " + command("taskres", *following, done.path.stem, *repeated_cache_dir(cache_dir)))
