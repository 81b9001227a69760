"""A report as files: a page, Markdown, CSV, or a picture of the curves, by the file's suffix."""

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from taskres_cache.errors import OptionError
from taskres_cache.reporting.curves_png import as_picture, refuse_without_matplotlib
from taskres_cache.reporting.page import as_page
from taskres_cache.reporting.sections import (
    all_gains_table,
    as_made,
    every_run_table,
    figures_table,
    mistakes_table,
    overview_table,
    pairs_table,
    study_tables,
)
from taskres_cache.reporting.studies import Study
from taskres_cache.reporting.tables import Table, in_shots
from taskres_cache.system.files import replaced
from taskres_cache.system.version import __version__

SUFFIXES = (".html", ".md", ".csv", ".png")


def refuse_unknown_kinds(files: Sequence[Path]) -> None:
    """Refuse files that no report can be written as, before any work is done.

    Raises
    ------
    OptionError : a suffix that is not known.
    MissingExtraError : a picture, and no matplotlib to draw it.
    """
    unknown = [str(file) for file in files if file.suffix.lower() not in SUFFIXES]
    if unknown:
        raise OptionError(f"{', '.join(unknown)}: a report is written as one of {', '.join(SUFFIXES)}; name it so")
    if any(file.suffix.lower() == ".png" for file in files):
        refuse_without_matplotlib()


def write_report(studies: Sequence[Study], title: str, root: Path | None, file: Path) -> None:
    """Write a report as what the file's suffix says, whole or not at all.

    Parameters
    ----------
    studies, title : what it is about, and what it is called.
    root : where the images are now, for their thumbnails.
    file : `.html`, `.md`, `.csv` or `.png`.

    Raises
    ------
    OptionError, MissingExtraError : see `refuse_unknown_kinds`.
    StorageError : the file cannot be written.
    """
    refuse_unknown_kinds([file])
    written: dict[str, Callable[[], bytes]] = {
        ".html": lambda: as_page(studies, title, root, datetime.now()).encode(),
        ".md": lambda: as_markdown(studies, title).encode(),
        ".csv": lambda: every_run_table(studies).as_csv().encode(),
        ".png": lambda: as_picture(studies),
    }
    content = written[file.suffix.lower()]()
    with replaced(file) as temporary:
        temporary.write_bytes(content)


def as_markdown(studies: Sequence[Study], title: str) -> str:
    """Return a report in Markdown: the tables of the page, without its pictures."""
    parts = [f"# {title}\n"]
    if len(studies) > 1:
        parts.append(overview_table(studies).as_markdown())
    for study in studies:
        parts += _study_in_markdown(study)
    parts.append(f"Made by taskres-cache {__version__}; nothing was chosen by test accuracy.\n")
    return "\n".join(parts)


def _study_in_markdown(study: Study) -> list[str]:
    prefix = f"{study.title}, {study.backbone} ({study.pretrained})"
    tables = [_titled(table, f"{prefix}, {table.title}") for table in study_tables(study)]
    published, closer = figures_table(study.figures), study.closer
    tables += [_titled(published, f"{prefix}: published, for comparison")] if published else []
    parts = [table.as_markdown() for table in tables]
    sources = dict.fromkeys(f"{one.source.title}, {one.source.where}: {one.source.url}\n" for one in study.figures)
    parts += list(sources)
    if closer is None:
        return [*parts, f"Classes and confusions are not shown: {study.unseen}\n"]
    which = f"{prefix}, {closer.classifier.recipe.method_name()}, {in_shots(closer.classifier.shots)}"
    parts.append(_titled(all_gains_table(closer.gains), f"{which}: gain per class").as_markdown())
    if closer.pairs:
        parts.append(_titled(pairs_table(closer.pairs), f"{which}: the most confused pairs").as_markdown())
    if closer.mistakes:
        parts.append(_titled(mistakes_table(closer.mistakes), f"{which}: the most certain mistakes").as_markdown())
    made = tuple((fact.name, fact.value) for fact in as_made(closer.classifier))
    parts.append(Table(f"{which}: how it was made", ("what", "value"), made, left=2).as_markdown())
    return parts


def _titled(table: Table, title: str) -> Table:
    return Table(title, table.columns, table.rows, table.left)
