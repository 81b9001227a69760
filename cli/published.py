"""`taskres published`: accuracies that others published, with their sources."""

from typing import Annotated

import typer

from . import completion
from .options import LIST, Json, joined, shot_counts


def published(
    dataset: Annotated[
        str, typer.Argument(metavar="[DATASET]", help="A data set.", autocompletion=completion.published("dataset"))
    ] = "",
    method: Annotated[
        str, typer.Option(help="A method.", show_default="all", autocompletion=completion.published("method"))
    ] = "",
    backbone: Annotated[
        str, typer.Option(help="A backbone.", show_default="all", autocompletion=completion.published("backbone"))
    ] = "",
    shots: Annotated[
        list[str] | None,
        typer.Option(metavar=LIST, help="Training images per class; 0 is zero-shot.", show_default="all"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print published test accuracies with their sources and settings.

    "chose on test" says whether an epoch or hyper-parameter was chosen by the accuracy on the test images.

    Example: taskres published dtd --method taskres --backbone RN50
    """
    from taskres_cache.reporting.published.figures import read_figures, select
    from taskres_cache.reporting.published.tables import figures_json, figures_table, sources_table

    from .console import print_json, print_table, show

    counts = shot_counts(joined(shots)) if shots and "all" not in shots else ()
    found = select(read_figures(), dataset, method, backbone, counts)
    if as_json:
        print_json(figures_json(found))
        return
    print_table(figures_table(found))
    for key, where, setting in sources_table(found).rows:
        show(f"{key}: {where}{setting and f'. {setting}'}")
