"""`taskres export`: a fitted classifier for other programs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskres_cache.errors import OptionError

from . import completion
from .options import CacheDir, Json, Run

if TYPE_CHECKING:
    from taskres_cache.exporting.export import Export


def export(
    run: Run,
    to: Annotated[
        Path,
        typer.Option(
            "--to", metavar="FILE", help="What to write: .safetensors, .onnx or .pt (open_clip).", show_default=False
        ),
    ],
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="safetensors, onnx or open_clip.",
            show_default="what FILE's suffix means",
            autocompletion=completion.one_of("safetensors", "onnx", "open_clip"),
        ),
    ] = None,
    with_encoder: Annotated[
        bool, typer.Option("--with-encoder", help="ONNX from pixels on: the run's image tower in the same graph.")
    ] = False,
    pretrained: Annotated[
        str | None,
        typer.Option(
            "--pretrained",
            help="With --with-encoder: the run's checkpoint, where that was a local file.",
            show_default="the run's tag",
        ),
    ] = None,
    cache_dir: CacheDir = Path("cache"),
    as_json: Json = False,
) -> None:
    """Write a fitted classifier for other programs: as tensors, as an ONNX graph, or as open_clip's zero-shot head.

    The file is read again and compared with the run before it takes FILE's place.

    Example: taskres export runs/RN50-openai/photos --to photos.onnx
    """
    from taskres_cache.exporting.export import export_head, export_with_encoder, format_of

    name = format_of(to, form)
    if with_encoder and name != "onnx":
        raise OptionError(f"--with-encoder takes ONNX, and {to} is to be {name}; pass --to FILE.onnx or leave it out")
    if pretrained and not with_encoder:
        raise OptionError("--pretrained names the encoder's checkpoint; it goes with --with-encoder only")
    done = export_with_encoder(run, to, pretrained) if with_encoder else export_head(run, to, form, cache_dir)
    _print(done, as_json)


def _print(done: "Export", as_json: bool) -> None:
    """Print what was written, how it compares, and how it is used."""
    from dataclasses import asdict

    from .console import print_json

    if as_json:
        print_json(asdict(done))
        return
    compared = done.comparison
    print(f"{' and '.join(map(str, done.files))}: {done.format}, {done.classes} classes, {done.bytes:,} bytes")
    for name, shape in done.shapes.items():
        print(f"{name}: {' x '.join(map(str, shape))}, float32")
    print(
        f"read again and compared with the run on {compared.rows} {compared.of}: probabilities differ by "
        f"{compared.greatest_difference:.1e} at most, {compared.tolerance:.1e} is allowed for rounding"
    )
    print("in Python:")
    for line in done.usage:
        print(f"  {line}")
