"""`taskres export`: a fitted classifier as a file for other programs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskres_cache.errors import OptionError

from . import checks, completion
from .options import DEFAULT_CACHE_DIR, Best, CacheDir, Ensemble, Json, Runs

if TYPE_CHECKING:
    from taskres_cache.exporting.export import Export


def export(
    run: Runs,
    to: Annotated[
        Path,
        typer.Option(
            "--to", metavar="FILE", help="File to write: .safetensors, .onnx or .pt (open_clip).", show_default=False
        ),
    ],
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="safetensors, onnx or open_clip.",
            show_default="by FILE's suffix",
            autocompletion=completion.one_of("safetensors", "onnx", "open_clip"),
        ),
    ] = None,
    with_encoder: Annotated[
        bool,
        typer.Option("--with-encoder", help="Include the image encoder in the ONNX graph, which then takes pixels."),
    ] = False,
    with_preprocessing: Annotated[
        bool,
        typer.Option(
            "--with-preprocessing",
            help="With --with-encoder: include resize, crop and normalisation; the graph takes a uint8 picture.",
        ),
    ] = False,
    pretrained: Annotated[
        str | None,
        typer.Option(
            "--pretrained",
            callback=checks.checkpoint_path,
            help="With --with-encoder: the checkpoint file, if the run was made with a local one.",
            show_default="the run's tag",
        ),
    ] = None,
    best: Best = False,
    ensemble: Ensemble = False,
    cache_dir: CacheDir = DEFAULT_CACHE_DIR,
    as_json: Json = False,
) -> None:
    """Write a run's classifier as safetensors, ONNX or open_clip.

    The written file is read and compared with the run before it replaces FILE.

    Example: taskres export runs/RN50-openai/photos --to photos.onnx
    """
    from taskres_cache.exporting.destination import format_of, refuse_reserved
    from taskres_cache.runs.finding import find_run
    from taskres_cache.system.files import refuse_unwritable

    from .console import say

    name = format_of(to, form)
    refuse_reserved(to)
    if with_encoder and name != "onnx":
        raise OptionError(
            f"--with-encoder needs ONNX, but {to} is {name}; pass --to FILE.onnx, or leave out --with-encoder"
        )
    if with_preprocessing and not with_encoder:
        raise OptionError("--with-preprocessing prepares pictures for the encoder; pass --with-encoder as well")
    if pretrained and not with_encoder:
        raise OptionError("--pretrained is the encoder's checkpoint; pass it only together with --with-encoder")
    refuse_unwritable(to)
    if ensemble:
        raise OptionError(
            "an ensemble is the mean of several heads, which no export format holds; pass --best to export one run"
        )
    if best:
        from taskres_cache.runs.several.choosing import best_run

        run = best_run(run)
        say(f"run: {run}")
    find_run(run)

    from taskres_cache.exporting.export import export_head, export_with_encoder, export_with_preprocessing

    if with_preprocessing:
        done = export_with_preprocessing(run, to, pretrained, cache_dir)
    else:
        done = export_with_encoder(run, to, pretrained) if with_encoder else export_head(run, to, form, cache_dir)
    _print(done, as_json)


def _print(done: "Export", as_json: bool) -> None:
    """Print what was written, how it compares with the run, and how to use it."""
    from dataclasses import asdict

    from .console import print_json, show

    if as_json:
        print_json(asdict(done))
        return
    compared = done.comparison
    show(f"{' and '.join(map(str, done.files))}: {done.format}, {done.classes} classes, {done.bytes:,} bytes")
    for name, shape in done.shapes.items():
        show(f"{name}: {' x '.join(map(str, shape))}, {'uint8' if name == 'picture' else 'float32'}")
    show(
        f"compared with the run on {compared.rows} {compared.of}: probabilities differ by at most "
        f"{compared.greatest_difference:.1e} (tolerance {compared.tolerance:.1e})"
    )
    print("use it in Python:")
    for line in done.usage:
        show(f"  {line}")
