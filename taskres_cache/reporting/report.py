"""Write a report as a page, as Markdown, as CSV or as a picture of the curves; the suffix of the file decides."""

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from taskres_cache.reporting.curves_png import as_png
from taskres_cache.reporting.destinations import check_suffixes
from taskres_cache.reporting.page import as_page
from taskres_cache.reporting.published.tables import compared_table, sources_table
from taskres_cache.reporting.sections import (
    errors_table,
    every_run_table,
    gains_table,
    overview_table,
    pairs_table,
    recipe_and_provenance,
    study_tables,
)
from taskres_cache.reporting.studies import Study
from taskres_cache.reporting.tables import Table, in_shots
from taskres_cache.system.files import replaced
from taskres_cache.system.text import markdown
from taskres_cache.system.version import __version__


def write_report(studies: Sequence[Study], title: str, root: Path | None, file: Path) -> None:
    """Write a report; the file appears complete or not at all.

    Parameters
    ----------
    studies : sequence of Study
        The content.
    title : str
        The heading.
    root : Path or None
        Where the images are now, see `thumbnails.find_images`.
    file : Path
        The file to write, with suffix `.html`, `.md`, `.csv` or `.png`.

    Raises
    ------
    OptionError
        The suffix is unknown.
    MissingExtraError
        The file is a picture and matplotlib is not installed.
    StorageError
        The file could not be written.
    """
    check_suffixes([file])
    formats: dict[str, Callable[[], bytes]] = {
        ".html": lambda: as_page(studies, title, root, datetime.now()).encode(),
        ".md": lambda: as_markdown(studies, title).encode(),
        ".csv": lambda: every_run_table(studies).as_csv().encode(),
        ".png": lambda: as_png(studies),
    }
    content = formats[file.suffix.lower()]()
    with replaced(file) as temporary:
        temporary.write_bytes(content)


def as_markdown(studies: Sequence[Study], title: str) -> str:
    """Return a report in Markdown: the tables of the page, without pictures."""
    parts = [f"# {markdown(title)}\n"]
    if len(studies) > 1:
        parts.append(overview_table(studies).as_markdown())
    for study in studies:
        parts += _study_in_markdown(study)
    parts.append(f"Made by taskres-cache {__version__}. Nothing was chosen by test accuracy.\n")
    return "\n".join(parts)


def _study_in_markdown(study: Study) -> list[str]:
    prefix = f"{study.title}, {study.backbone} ({study.pretrained})"
    tables = [_titled(table, f"{prefix}, {table.title}") for table in study_tables(study)]
    published, analysis = compared_table(study.published), study.analysis
    if published:
        sources = sources_table(figure for one in study.published for figure in one.figures)
        tables += [_titled(published, f"{prefix}: next to published results"), _titled(sources, f"{prefix}: sources")]
    parts = [table.as_markdown() for table in tables]
    if analysis is None:
        return [*parts, f"Results per class are missing: {markdown(study.analysis_error)}\n"]
    parts += [f"Note: {markdown(note)}\n" for note in analysis.notes]
    fit = f"{prefix}, {analysis.classifier.method}, {in_shots(analysis.classifier.shots)}"
    parts.append(_titled(gains_table(analysis.gains), f"{fit}: gain per class").as_markdown())
    if analysis.pairs:
        parts.append(_titled(pairs_table(analysis.pairs), f"{fit}: most confused pairs").as_markdown())
    if analysis.errors:
        parts.append(_titled(errors_table(analysis.errors), f"{fit}: most confident errors").as_markdown())
    facts = tuple((fact.name, fact.value) for fact in recipe_and_provenance(analysis.classifier))
    parts.append(Table(f"{fit}: recipe and provenance", ("name", "value"), facts, left=2).as_markdown())
    return parts


def _titled(table: Table, title: str) -> Table:
    return Table(title, table.columns, table.rows, table.left)
