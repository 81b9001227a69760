"""Write a report as a page, as Markdown, as CSV or as a picture of the curves; the suffix of the file decides."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from taskres_cache.reporting.comparison.grid import grid_of, grids_over_datasets
from taskres_cache.reporting.comparison.tables import chosen_table, comparison_tables, is_comparison, records_table
from taskres_cache.reporting.curves_png import as_png
from taskres_cache.reporting.destinations import check_suffixes, check_table_suffixes
from taskres_cache.reporting.page import as_page
from taskres_cache.reporting.published.tables import compared_table, sources_table
from taskres_cache.reporting.sections import (
    errors_table,
    every_run_table,
    gains_table,
    main_result,
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

LATEX_HEAD = "% needs \\usepackage{booktabs}\n"


def write_report(studies: Sequence[Study], title: str, root: Path | None, file: Path) -> None:
    """Write a report; the file appears complete or not at all.

    Parameters
    ----------
    studies : sequence of Study
        The content.
    title : str
        The heading.
    root : Path or None
        Where the images are now, see `image_files.find_images`.
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


def write_comparison(studies: Sequence[Study], file: Path) -> None:
    """Write the comparison of methods; the file appears complete or not at all.

    Parameters
    ----------
    studies : sequence of Study
        The content.
    file : Path
        The file to write: `.md` and `.tex` get tables of methods x shots, `.csv` a line per method and shot count.

    Raises
    ------
    OptionError
        The suffix is unknown.
    StorageError
        The file could not be written.
    """
    check_table_suffixes([file])
    formats: dict[str, Callable[[], str]] = {
        ".md": lambda: "\n".join(table.as_markdown() for table in compared_methods(studies)),
        ".tex": lambda: "\n".join([LATEX_HEAD, *(table.as_latex() for table in compared_methods(studies))]),
        ".csv": lambda: records_table([*grids_over_datasets(studies), *map(grid_of, studies)]).as_csv(),
    }
    content = formats[file.suffix.lower()]()
    with replaced(file) as temporary:
        temporary.write_text(content, encoding="utf-8")


def compared_methods(studies: Sequence[Study]) -> list[Table]:
    """Return the comparison of methods as tables: over all data sets of a checkpoint, then per study."""
    grids = [*grids_over_datasets(studies), *map(grid_of, studies)]
    chosen = [chosen_table(study) for study in studies]
    tables = [table for grid in grids for table in comparison_tables(grid)]
    return [*tables, *(table for table in chosen if table is not None)]


def comparison_notes(studies: Sequence[Study]) -> list[str]:
    """Return which methods have no cell in a comparison, and why."""
    grids = [*grids_over_datasets(studies), *map(grid_of, studies)]
    return [f"{grid.title}: {note}" for grid in grids for note in grid.notes]


def as_markdown(studies: Sequence[Study], title: str) -> str:
    """Return a report in Markdown: the tables of the page, without pictures."""
    parts = [f"# {markdown(title)}\n"]
    if len(studies) > 1:
        parts.append(overview_table(studies).as_markdown())
        parts += [table.as_markdown() for grid in grids_over_datasets(studies) for table in comparison_tables(grid)]
    for study in studies:
        parts += _study_in_markdown(study)
    parts.append(f"Made by taskres-cache {__version__}. Nothing was chosen by test accuracy.\n")
    return "\n".join(parts)


def _study_in_markdown(study: Study) -> list[str]:
    prefix = f"{study.title}, {study.backbone} ({study.pretrained})"
    grid = grid_of(study)
    tables = comparison_tables(grid) if is_comparison(grid) else []
    tables += [_titled(table, f"{prefix}, {table.title}") for table in study_tables(study)]
    chosen = chosen_table(study)
    tables += [chosen] if chosen is not None else []
    published, analysis = compared_table(study.published), study.analysis
    if published:
        sources = sources_table(figure for one in study.published for figure in one.figures)
        tables += [_titled(published, f"{prefix}: next to published results"), _titled(sources, f"{prefix}: sources")]
    result = main_result(study)
    parts = [*([f"{markdown(prefix)}: {markdown(result)}\n"] if result else []), *(one.as_markdown() for one in tables)]
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
    return replace(table, title=title)
