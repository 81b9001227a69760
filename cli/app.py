"""The Typer app with all commands."""

from typing import Annotated

import typer

from taskres_cache.system.version import __version__

from .ablations import ablations
from .backbones import backbones
from .benchmark import benchmark
from .datasets import datasets
from .doctor import doctor
from .evaluate import evaluate
from .export import export
from .extract import extract
from .fit import fit
from .help import BOTH_STAGES, LOOKING_AROUND, STAGE_ONE, STAGE_TWO, USING_A_RUN, App
from .import_arrays import import_arrays
from .inspect_cache import inspect_cache
from .methods import list_methods
from .mistakes import mistakes
from .predict import predict
from .published import published
from .report import report
from .serve import serve
from .suggest import suggest

FIRST_STEPS = """\
Try it on the bundled data:
  taskres extract digits
  taskres fit digits --shots 1,2,4,8,16 --seeds 1,2,3

`taskres COMMAND --help` shows the options and an example.
`taskres doctor` checks the installation."""

app = App(
    name="taskres",
    help="Few-shot adaptation of CLIP by task residual tuning: extract features once, then fit in seconds.",
    epilog=FIRST_STEPS,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(context: typer.Context, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:  # shell completion parses resiliently
        print(f"taskres-cache {__version__}")
        raise typer.Exit


@app.callback()
def _taskres(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


app.command("extract", rich_help_panel=STAGE_ONE)(extract)
app.command("import", rich_help_panel=STAGE_ONE)(import_arrays)
app.command("fit", rich_help_panel=STAGE_TWO)(fit)
app.command("ablations", rich_help_panel=STAGE_TWO)(ablations)
app.command("benchmark", rich_help_panel=BOTH_STAGES)(benchmark)
app.command("eval", rich_help_panel=USING_A_RUN)(evaluate)
app.command("predict", rich_help_panel=USING_A_RUN)(predict)
app.command("suggest", rich_help_panel=USING_A_RUN)(suggest)
app.command("mistakes", rich_help_panel=USING_A_RUN)(mistakes)
app.command("export", rich_help_panel=USING_A_RUN)(export)
app.command("serve", rich_help_panel=USING_A_RUN)(serve)
app.command("report", rich_help_panel=USING_A_RUN)(report)
app.command("published", rich_help_panel=LOOKING_AROUND)(published)
app.command("backbones", rich_help_panel=LOOKING_AROUND)(backbones)
app.command("inspect", rich_help_panel=LOOKING_AROUND)(inspect_cache)
app.command("methods", rich_help_panel=LOOKING_AROUND)(list_methods)
app.command("doctor", rich_help_panel=LOOKING_AROUND)(doctor)
app.add_typer(datasets, name="datasets", rich_help_panel=LOOKING_AROUND)
