"""Exports of Label Studio with one choice per image: JSON, JSON-MIN and CSV."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import msgspec

from taskres_cache.datasets.class_names import listed
from taskres_cache.datasets.forms.form import FormOptions
from taskres_cache.datasets.forms.lists.columns import find_columns
from taskres_cache.datasets.forms.lists.gathering import Listed, not_used, text_of
from taskres_cache.datasets.forms.lists.listed import Listing
from taskres_cache.datasets.forms.lists.tables import Record, Table
from taskres_cache.errors import DatasetError, UnknownNameError

ID, ANNOTATION = "id", "annotation_id"
OF_ANNOTATION = ("annotator", "created_at", "updated_at", "lead_time", "agreement", "cancelled_annotations")
LOCAL = re.compile(r"(?:https?://[^/]+)?/data/local-files/\?d=(.+)")
UPLOADED = re.compile(r"(?:https?://[^/]+)?/data/upload/(.+)")
PREFIX = re.compile(r"[0-9a-f]{8}-")  # that Label Studio puts before the name of an uploaded file


class Result(msgspec.Struct, frozen=True):
    """One answer of an annotator."""

    from_name: str | None = None
    type: str | None = None
    value: dict[str, object] | None = None


class Annotation(msgspec.Struct, frozen=True):
    """All answers of an annotator to one task."""

    result: list[Result] = []
    was_cancelled: bool | None = None
    ground_truth: bool | None = None


class Task(msgspec.Struct, frozen=True):
    """An image and its annotations."""

    data: dict[str, object]
    id: int | str | None = None
    annotations: list[Annotation] = []
    completions: list[Annotation] = []  # their name in versions before 1.0


def is_annotated(table: Table) -> bool:
    """Return True for a table with one record per annotation, as JSON-MIN and CSV have."""
    return {ID, ANNOTATION} <= set(table.columns)


def table_of_tasks(title: str, tasks: list[Task], options: FormOptions) -> tuple[Table, FormOptions]:
    """Return the JSON form as JSON-MIN, and options that name the column of choices.

    Cancelled annotations are left out; if a task has annotations that are marked as ground truth, only they count.

    Raises
    ------
    DatasetError
        There are no choices, or there are several questions and the user named none.
    UnknownNameError
        The user named a question that nobody answered.
    """
    questions = list(dict.fromkeys(one.from_name or "" for task in tasks for one in _choices(task)))
    if not questions:
        raise DatasetError(f"{title} has no choices, expected a classification of images; export another project")
    label = options.label_column or questions[0]
    if len(questions) > 1 and options.label_column is None:
        raise DatasetError(f"{title} answers several questions, {listed(questions)}; choose one with --label-column")
    if label not in questions:
        raise UnknownNameError("question", label, questions, f"{title} answers {listed(questions)}")
    records = partial(_records, tasks, label)
    columns = dict.fromkeys(key for task in tasks for key in task.data)
    return Table(title, (*columns, label), True, records), replace(options, label_column=label)


def annotated_listing(file: Path, table: Table, options: FormOptions) -> Listing:
    """Return the tasks with one choice; others are counted in a note.

    Raises
    ------
    DatasetError
        It is unclear which column has the image or the choice, or a record has no text there.
    """
    about = {ID, ANNOTATION, *OF_ANNOTATION}
    columns = find_columns(replace(table, columns=tuple(name for name in table.columns if name not in about)), options)
    answers: dict[str, list[frozenset[str]]] = {}
    first: dict[str, Listed] = {}
    for place, record in table.records():
        where = f"{table.title}, {place}"
        path = text_of(record.get(columns.path), columns.path, where)
        task = text_of(record.get(ID), ID, where) or path
        split = None if columns.split is None else record.get(columns.split)
        first.setdefault(task, Listed(path, None, split, where))
        answers.setdefault(task, []).append(_chosen(record.get(columns.label), columns.label, where))
    others = Counter(filter(None, map(_unusable, answers.values())))
    rows = (row._replace(label=_only(answers[task])) for task, row in first.items() if not _unusable(answers[task]))
    notes = (*columns.notes, *not_used("task", others))
    return Listing(file, rows, notes, partial(_local_path, options.root or file.parent))


def _choices(task: Task) -> Iterator[Result]:
    for annotation in _counted(task):
        yield from _answers(annotation)


def _answers(annotation: Annotation) -> list[Result]:
    return [one for one in annotation.result if one.type == "choices"]


def _counted(task: Task) -> list[Annotation]:
    given = [one for one in (*task.annotations, *task.completions) if not one.was_cancelled]
    return [one for one in given if one.ground_truth] or given


def _records(tasks: list[Task], label: str) -> Iterator[Record]:
    """Yield one record per annotation, and one for a task without annotations."""
    for number, task in enumerate(tasks):
        place = f"task {task.id if task.id is not None else number}"
        for annotation in _counted(task) or [Annotation()]:
            chosen = [one.value or {} for one in _answers(annotation) if (one.from_name or "") == label]
            choices = [choice for value in chosen for choice in _as_list(value.get("choices"))]
            yield place, {**task.data, ID: number, label: {"choices": choices}}


def _as_list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _chosen(value: object, column: str, where: str) -> frozenset[str]:
    """Return the choices in a cell: one as text, several as an object or its JSON."""
    if isinstance(value, str) and value.startswith('{"choices":'):
        try:
            value = msgspec.json.decode(value)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise DatasetError(f"{where}: {column!r} is not valid JSON ({error}); export the project again") from error
    choices = _as_list(value.get("choices")) if isinstance(value, Mapping) else [value]
    found = {text_of(choice, column, where).strip() for choice in choices}
    return frozenset(found - {""})


def _unusable(answers: list[frozenset[str]]) -> str:
    """Return why a task is not used; empty if all its annotations that have a choice have the same one."""
    given = {answer for answer in answers if answer}
    if not given:
        return "without a choice"
    if any(len(answer) > 1 for answer in given):
        return "with several choices"
    return "with different choices of annotators" if len(given) > 1 else ""


def _only(answers: list[frozenset[str]]) -> str:
    (choice,) = next(answer for answer in answers if answer)
    return choice


def _local_path(folder: Path, written: str) -> str:
    """Return the path of a task's image as the user has it.

    A task has an address of the server. Of uploaded files the user has the media folder or the original files, which
    have no prefix. Files of a local storage are below the folder that the server was given.
    """
    local = LOCAL.fullmatch(written)
    if local is not None:
        return unquote(local[1])
    uploaded = UPLOADED.fullmatch(written)
    if uploaded is None:
        return written
    below = unquote(uploaded[1])
    name = PurePosixPath(below).name
    candidates = (f"upload/{below}", below, name, PREFIX.sub("", name, count=1))
    safe = [path for path in candidates if ".." not in PurePosixPath(path).parts and "\0" not in path]
    return next((path for path in safe if os.path.lexists(folder / path)), name)
