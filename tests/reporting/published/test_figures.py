"""The published figures: their sources and flags, and ours next to them."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from taskres_cache.datasets import ENTRIES
from taskres_cache.errors import CacheError, UnknownNameError
from taskres_cache.reporting.published.compared import Compared, Measured, compared, measured
from taskres_cache.reporting.published.figures import (
    FOLDER,
    PUBLISHED_AS,
    Figure,
    Source,
    published_backbone,
    published_method,
    read_figures,
    select,
)
from taskres_cache.reporting.published.tables import compared_table, figures_table, sources_table
from taskres_cache.runs.results import summarise
from tests.conftest import Taskres, metrics_of, one_line

FIGURES = read_figures()


def only(**choice: object) -> Figure:
    (found,) = [one for one in FIGURES if all(getattr(one, name) == value for name, value in choice.items())]
    return found


def chose(source: str, method: str) -> dict[str, set[str]]:
    """Return the flag of each data set of a source and method."""
    found: dict[str, set[str]] = {}
    for one in FIGURES:
        if (one.source.key, one.method) == (source, method):
            found.setdefault(one.dataset, set()).add(one.chose_on_test)
    return found


def test_all_figures_are_read_with_their_sources() -> None:
    assert len(FIGURES) == 1291
    assert Counter(one.source.key for one in FIGURES)["S2"] == 165
    assert {one.source.key for one in FIGURES} == {f"S{number}" for number in range(1, 24)}
    assert all(one.source.title and one.source.where for one in FIGURES)
    names = {one.dataset for one in FIGURES}
    assert names - set(ENTRIES) == {"resisc45"}


def test_every_note_is_about_a_figure() -> None:
    rows = (FOLDER / "notes.csv").read_text().splitlines()[1:]
    assert len({one.note for one in FIGURES} - {""}) == len({row.split(",", 5)[5].strip('"') for row in rows})


def test_what_was_chosen_on_test_images_says_so() -> None:
    assert {flag for flags in chose("S2", "Tip-Adapter-F").values() for flag in flags} == {"yes"}
    for source, method in (("S2", "Tip-Adapter"), ("S5", "GDA"), ("S6", "GDA"), ("S8", "APE-T"), ("S11", "TIMO")):
        flags = chose(source, method)
        assert flags.pop("imagenet") == {"yes"}
        assert len(flags) == 10
        assert set().union(*flags.values()) == {"no"}
    assert set().union(*chose("S22", "ProLIP").values()) == {"no"}


def test_a_rerun_of_taskres_is_not_called_the_papers() -> None:
    reruns = [one for one in FIGURES if one.method == "TaskRes"]
    assert {one.source.key for one in reruns} == {"S15", "S18", "S21"}
    assert all(one.by_others and "not the table of TaskRes's paper" in one.note for one in reruns)
    assert "alpha 1 and learning rate 1e-3" in only(source=reruns[0].source, dataset="dtd", shots=16).note
    assert only(method="TaskRes", backbone="RN50", dataset="dtd", shots=16).name == "TaskRes (by others)"


def test_addresses_are_of_what_titles_name() -> None:
    def url(title: str) -> str:
        return Source("S", title, "", "").url

    assert url("KaiyangZhou/CoOp") == "https://github.com/KaiyangZhou/CoOp"
    assert url("gaopengcuhk/Tip-Adapter (Zhang et al., ECCV 2022)") == "https://github.com/gaopengcuhk/Tip-Adapter"
    assert url("Li et al., Something, 2026 (arXiv 2609.36680)") == "https://arxiv.org/abs/2609.36680"
    assert url("Zhang et al., Homology, NeurIPS 2024") == ""


def test_names_of_methods_and_backbones() -> None:
    assert set(PUBLISHED_AS.values()) <= {one.method for one in FIGURES}
    names = {
        "taskres-regular-alpha1": "TaskRes", "taskres-enhanced": None, "taskres-regular-image-residual": None,
        "tip-adapter": "Tip-Adapter", "tip-adapter-f": "Tip-Adapter-F", "tip-adapter-f-epochs5": "Tip-Adapter-F",
        "tip-adapter-beta2": "Tip-Adapter", "lp++": "LP++", "clap": None, "gdax": None,
    }  # fmt: skip
    assert {name: published_method(name) for name in names} == names
    assert published_backbone("ViT-B-16-quickgelu", "openai") == "ViT-B/16"
    assert published_backbone("RN50", "openai") == "RN50"
    assert published_backbone("ViT-B-16", "laion2b_s34b_b88k") is None


def test_select() -> None:
    assert len(select(FIGURES)) == 1291
    rows = select(FIGURES, "DTD", "taskres", "vit-b-16", (16,))
    assert [(one.accuracy, one.source.key) for one in rows] == [(71.5, "S21")]
    assert {one.shots for one in select(FIGURES, shots=(0,))} == {0}
    with pytest.raises(UnknownNameError, match=r"did you mean 'eurosat'"):
        select(FIGURES, "eurosatt")
    with pytest.raises(UnknownNameError, match="unknown method 'clap'"):
        select(FIGURES, method="clap")


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("figures.csv", "RN50,dtd,0,42.2,S1", "RN50,dtd,0,42.2,S99", "line 3: source 'S99' is not in sources.csv"),
        ("figures.csv", "RN50,dtd,0,42.2,S1", "RN50,dtd,0,142.2,S1", "line 3: accuracy 142.2 is not in percent"),
        ("figures.csv", "RN50,dtd,0,42.2,S1", "RN50,dtd,zero,42.2,S1", "line 3: invalid literal"),
        ("notes.csv", "*,yes,no", "*,maybe,no", "line 2: expected yes, no or unknown, found 'maybe' and 'no'"),
    ],
)
def test_a_damaged_table_is_one_error(tmp_path: Path, name: str, old: str, new: str, message: str) -> None:
    shutil.copytree(FOLDER, tmp_path / "tables")
    file = tmp_path / "tables" / name
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(CacheError, match=message):
        read_figures(tmp_path / "tables")


def test_within_our_deviation_by_hand() -> None:
    figure = Figure("TaskRes", "RN50", "dtd", 16, 67.02, Source("S15", "t", "w", ""))

    def ours(mean: float, deviation: float | None) -> Compared:
        return Compared(Measured("taskres-regular", 16, mean, deviation), (figure,))

    assert ours(66.52, 0.5).difference == pytest.approx(-0.5)
    assert ours(66.52, 0.5).within is True  # a difference of exactly one deviation
    assert ours(66.52, 0.49).within is False
    assert ours(67.52, 0.5).within is True
    assert ours(67.02, None).within is None


def test_ours_next_to_published_figures() -> None:
    runs = [
        metrics_of(shots=16, seed=seed, test_accuracy=test, zero_shot_accuracy=42.0, method=method)
        for method in ("taskres-regular", "tip-adapter-f", "clap")
        for seed, test in ((1, 66.0), (2, 68.0))
    ]
    rows = compared(measured(summarise(runs)), "dtd", "RN50", "openai")
    found = [(one.ours.method, one.accuracy, " ".join(s.key for s in one.sources), one.chose_on_test) for one in rows]
    assert ("taskres-regular", 67.02, "S15", "no") in found
    assert {accuracy for method, accuracy, _, _ in found if method == "zero-shot"} == {
        one.accuracy for one in select(FIGURES, "dtd", "zero-shot CLIP", "RN50")
    }
    assert {flag for method, _, _, flag in found if method == "tip-adapter-f"} == {"yes", "unknown"}
    assert "clap" not in {method for method, *_ in found}
    table = compared_table(rows)
    assert table is not None
    # The mean 67 and the deviation sqrt(2) of 66 and 68.
    assert (
        "taskres-regular",
        "16 shots",
        "TaskRes (by others)",
        "S15",
        "no",
        "67.00 ± 1.41",
        "67.02",
        "-0.02",
        "yes",
    ) in (table.rows)
    assert compared(measured(summarise(runs)), "dtd", "RN50", "yfcc15m") == ()
    assert compared_table(()) is None


def test_listed_results_of_another_source_are_one_row() -> None:
    summaries = summarise([metrics_of(method="gda", shots=1, test_accuracy=45.0)])
    (row,) = [one for one in compared(measured(summaries), "dtd", "RN50", "openai") if one.ours.method == "gda"]
    assert [source.key for source in row.sources] == ["S4", "S5"]


def test_tables() -> None:
    found = select(FIGURES, "dtd", "taskres", "RN50")
    table = figures_table(found)
    assert table.columns[5:] == ("1 shot", "2 shots", "4 shots", "8 shots", "16 shots")
    assert table.rows == (
        ("dtd", "RN50", "TaskRes (by others)", "S15", "no", "49.65", "54.43", "59.40", "63.48", "67.02"),
    )
    ((key, where, setting),) = sources_table(found).rows
    assert key == "S15"
    assert where.endswith("NeurIPS 2024, Table 5 (Appendix B)")
    assert setting.startswith("re-run by HC's authors, alpha 1")
    assert setting.endswith("; TaskRes: re-run with alpha 1 and learning rate 1e-3 (ImageNet 1e-4), not the table of "
                            "TaskRes's paper")  # fmt: skip


def test_the_command(taskres: Taskres) -> None:
    printed = taskres("published", "dtd", "--method", "tip-adapter-f", "--backbone", "RN50", "--shots", "16")
    assert printed.status == 0
    assert "dtd       RN50      Tip-Adapter-F              S2      yes" in printed.out
    assert "S2: gaopengcuhk/Tip-Adapter (Zhang et al., ECCV 2022), exp.log" in printed.out
    records = json.loads(taskres("published", "dtd", "--backbone", "RN50", "--shots", "0,16", "--json").out)
    assert {record["shots"] for record in records} == {0, 16}
    (record,) = [record for record in records if record["source"]["key"] == "S15"]
    assert record["accuracy"] == 67.02
    assert record["by_others"] is True
    assert record["source"]["url"] == ""
    assert "1291 published test accuracies" in taskres("published").out
    unknown = taskres("published", "dttd")
    assert unknown.status == 2
    assert "did you mean 'dtd'" in one_line(unknown)
