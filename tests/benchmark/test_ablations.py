"""The paper's ablations on the bundled digits."""

import csv
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from taskres_cache.benchmark.ablations import ablation_tables, run_ablations, variants
from taskres_cache.benchmark.alpha_chart import AlphaCurve, AlphaPoint, alpha_chart
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.hdf5 import write_cache
from taskres_cache.recipe import Recipe
from taskres_cache.runs.fitting.study import fit
from taskres_cache.system.progress import Silent
from tests.conftest import Taskres

CPU = torch.device("cpu")
SVG = "{http://www.w3.org/2000/svg}"


def test_variants_differ_in_one_thing() -> None:
    found = variants(Recipe(), with_enhanced=True)
    assert len({one.recipe for one in found}) == len(found) == 2 * (3 + 1 + 9) + 1  # alpha 0.5 is the recipe's own
    regular = [(one.residual, one.alpha) for one in found if one.base == "regular"]
    assert regular[:4] == [("text", "0.5"), ("image", "0.5"), ("both", "0.5"), ("text", "learned")]
    assert regular[4:] == [("text", f"0.{number}") for number in (1, 2, 3, 4, 6, 7, 8, 9)] + [("text", "1")]
    assert [one.recipe.base for one in found if one.residual == "none"] == ["enhanced-only"]
    assert {one.recipe.lr for one in variants(Recipe(lr=0.01), with_enhanced=True)} == {0.01}
    assert {one.base for one in variants(Recipe(), with_enhanced=False)} == {"regular"}


def test_the_command_fits_writes_and_reuses(here: Path, digits_cache: Path, taskres: Taskres) -> None:
    arguments = ("ablations", digits_cache, "--shots", "1", "--seeds", "1,2", "--device", "cpu")
    first = taskres(*arguments)
    assert first.status == 0, first.err
    above = here / "runs" / "glyph-clip-bundled"
    rows = list(csv.DictReader((above / "digits-ablations.csv").open()))
    assert len(rows) == 2 * (3 + 1 + 10) + 1
    (image,) = [row for row in rows if (row["base"], row["residual"]) == ("regular", "image")]
    runs = fit(digits_cache, [(1, 1), (1, 2)], [Recipe(alpha=2.0, residual="image")], "cpu", here / "others")
    assert float(image["test_mean"]) == pytest.approx(runs.summaries[0].mean_test_accuracy, abs=1e-4)
    assert "ablations: gain over zero-shot in points" in first.out
    assert "| enhanced | none | - |" in (above / "digits-ablations.md").read_text()
    assert r"\begin{table}" in (above / "digits-ablations.tex").read_text()
    stamps = {path: path.stat().st_mtime_ns for path in above.rglob("*.safetensors")}
    assert len(stamps) == 2 * len(rows)
    again = taskres(*arguments)
    assert again.out == first.out
    assert {path: path.stat().st_mtime_ns for path in above.rglob("*.safetensors")} == stamps
    chart = ElementTree.parse(above / "digits-ablations.svg").getroot()
    kinds = [element.get("class", "").split()[0] for element in chart.iter() if element.get("class")]
    assert kinds.count("line") == kinds.count("published-mark") == 2
    assert kinds.count("mean") == 2 * 11  # alpha 0.1 to 1, and the recipe's own, 2
    assert chart.find(f"{SVG}style") is not None


def test_a_cache_without_text_projection(digits_cache: Path, tmp_path: Path) -> None:
    contents = FeatureCache(digits_cache).contents()
    text = replace(contents.text, pre_projection=None, projection=None)
    write_cache(tmp_path / "digits.h5", replace(contents, text=text))
    found = run_ablations(FeatureCache(tmp_path / "digits.h5"), [(1, 1)], CPU, tmp_path / "runs", Silent())
    assert {row.base for row, _ in found.rows} == {"regular"}
    assert found.reused == 0
    accuracies, gains = ablation_tables(found)
    assert accuracies.rows[0] == ("regular", "none", "-", "96.10")
    assert len(gains.rows) == len(accuracies.rows) - 1


def test_positions_in_the_figure() -> None:
    points = (AlphaPoint(0.1, 70.0, 1.0), AlphaPoint(0.5, 72.0, None), AlphaPoint(0.9, 74.0, None))
    curves = [
        AlphaCurve("regular, 1 shot", points, AlphaPoint(0.5, 72.0, None)),
        AlphaCurve("enhanced, 1 shot", points, AlphaPoint(1.3, 75.0, None)),
    ]
    chart = ElementTree.fromstring(alpha_chart(curves, 68.0, "t"))
    lines = [line for line in chart.iter(f"{SVG}polyline") if line.get("class", "").startswith("line")]
    assert [line.get("class") for line in lines] == ["line series-0 dash-0", "line series-0 dash-1"]
    places = [tuple(map(float, place.split(","))) for place in lines[0].get("points", "").split()]
    assert places[1][0] - places[0][0] == pytest.approx(places[2][0] - places[1][0], abs=0.02)  # alpha is linear
    assert places[0][1] - places[1][1] == pytest.approx(places[1][1] - places[2][1], abs=0.02)
    diamonds = [mark for mark in chart.iter(f"{SVG}polygon") if "published-mark" in mark.get("class", "")]
    x, top = (float(number) for number in diamonds[0].get("points", "").split()[0].split(","))
    assert (x, top + 6) == pytest.approx(places[1])
    assert diamonds[1][0].text == "enhanced, 1 shot, learned alpha 1.3: 75.00 %"
