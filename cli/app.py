"""The Typer app with all commands."""

from typing import Annotated

import typer

from taskres_cache.version import __version__

from .benchmark import benchmark
from .datasets import datasets
from .evaluate import evaluate
from .extract import extract
from .fit import fit
from .import_arrays import import_arrays
from .inspect_cache import inspect_cache
from .predict import predict

app = typer.Typer(
    name="taskres",
    help="Few-shot adaptation of CLIP by task residual tuning: extract features once, then fit in seconds.",
    epilog="First steps: taskres extract digits, then taskres fit digits --shots 1,2,4,8,16 --seeds 1,2,3",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"taskres-cache {__version__}")
        raise typer.Exit


@app.callback()
def _taskres(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


app.command("extract")(extract)
app.command("import")(import_arrays)
app.command("fit")(fit)
app.command("eval")(evaluate)
app.command("predict")(predict)
app.command("inspect")(inspect_cache)
app.command("benchmark")(benchmark)
app.add_typer(datasets, name="datasets")
