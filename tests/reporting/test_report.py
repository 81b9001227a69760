"""`taskres report` as a user runs it, and its page in Chromium if that is installed."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.hdf5 import write_cache
from tests.conftest import Outcome, Taskres, one_line, save_image

BUNDLED = ("--backbone", "glyph-clip", "--pretrained", "bundled", "--device", "cpu")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"meta", "br", "img", "line", "circle", "polygon", "polyline", "rect", "link", "hr"}


@pytest.fixture
def fitted(here: Path, photos: Path, taskres: Taskres) -> Path:
    """Runs on photos of noise, where every classifier makes errors."""
    assert taskres("extract", photos, *BUNDLED, "--shots", "1,2", "--seeds", "1,2").status == 0
    fit = ("fit", "photos", "--shots", "1,2", "--seeds", "1,2", "--epochs", "3", "--device", "cpu")
    assert taskres(*fit, "--base", "regular,enhanced").status == 0
    return here / "runs"


def page_of(taskres: Taskres, *arguments: object) -> str:
    outcome: Outcome = taskres("report", *arguments, "--device", "cpu")
    assert outcome.status == 0, outcome.err
    assert outcome.out == ""
    return Path("report.html").read_text()


class Elements(HTMLParser):
    """Collects elements with their attributes, and checks that all elements are closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag


def test_a_page_is_self_contained(fitted: Path, taskres: Taskres) -> None:
    page = page_of(taskres, fitted)
    elements = Elements(page).found
    assert [tag for tag, _ in elements if tag in ("script", "link", "iframe", "object")] == []
    assert all((attributes["src"] or "").startswith("data:image/") for tag, attributes in elements if tag == "img")
    assert "url(" not in page
    assert "@import" not in page
    headings = re.findall(r"<h3>(.*?)</h3>", page)
    assert headings == [
        "Accuracy over shots", "Gain per class", "Confusion matrix", "Most confident errors", "Calibration",
        "Recipe and provenance",
    ]  # fmt: skip
    for method in ("taskres-regular-epochs3", "taskres-enhanced-epochs3"):
        assert f"<h4>{method}</h4>" in page
    for text in ("zero-shot", "été", "glyph-clip (bundled)", "Adam, learning rate 0.002", "All 8 runs"):
        assert text in page


def test_errors_have_thumbnails_of_unchanged_images(fitted: Path, photos: Path, taskres: Taskres) -> None:
    page = page_of(taskres, fitted)
    assert page.count("<img src=") == page.count("predicted as <span") > 2
    for file in photos.rglob("*.*"):
        save_image(file, seed=9)  # a different image of the same name
    assert "<img" not in page_of(taskres, fitted)
    assert '<td class="word">été/image' in Path("report.html").read_text()


def test_images_that_moved_are_found_with_an_option(fitted: Path, photos: Path, taskres: Taskres) -> None:
    shown = page_of(taskres, fitted).count("<img")
    moved = photos.rename(photos.with_name("elsewhere"))
    assert "<img" not in page_of(taskres, fitted)
    assert page_of(taskres, fitted, "--images", moved).count("<img") == shown


def test_other_file_formats(fitted: Path, here: Path, taskres: Taskres) -> None:
    pytest.importorskip("matplotlib")
    outcome = taskres("report", fitted, "--to", "a.md", "--to", "a.csv", "--to", "a.png", "--device", "cpu")
    assert outcome.status == 0, outcome.err
    assert not (here / "report.html").exists()  # only what was requested
    markdown = (here / "a.md").read_text()
    assert "## photos, glyph-clip (bundled), taskres-regular-epochs3" in markdown
    assert "gain per class" in markdown
    header, *rows = (here / "a.csv").read_text().splitlines()
    assert len(rows) == 8
    assert header.startswith("dataset,backbone,pretrained,classes,method,shots,seed,zero_shot,base,val,test,top5")
    with Image.open(here / "a.png") as picture:
        assert picture.format == "PNG"
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24) or ()}
    assert (0x24, 0x56, 0xC9) in colours  # the first method's line


def test_errors_are_one_line(fitted: Path, here: Path, taskres: Taskres, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "report.html").write_text("mine")
    unknown = taskres("report", fitted, "--to", "a.pdf")
    assert unknown.status == 2
    assert "cannot write a report to a.pdf; use one of the suffixes .html, .md, .csv, .png" in one_line(unknown)
    nothing = taskres("report", here / "cache")
    assert nothing.status == 1
    assert "no classifier.safetensors at or below" in one_line(nothing)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    extra = taskres("report", fitted, "--to", "a.png")
    assert extra.status == 1
    assert "pip install 'taskres-cache[plot]'" in one_line(extra)
    monkeypatch.undo()
    assert (here / "report.html").read_text() == "mine"


def test_a_report_without_the_cache(fitted: Path, here: Path, taskres: Taskres) -> None:
    shutil.rmtree(here / "cache")
    outcome = taskres("report", fitted, "--device", "cpu")
    assert outcome.status == 0
    assert "note: photos: no per-class results" in outcome.err
    page = (here / "report.html").read_text()
    Elements(page)
    assert "Results per class are missing: " in page
    assert "Accuracy over shots" in page
    assert "Gain per class" not in page


def test_published_results_are_shown_with_ours(fitted: Path, here: Path, photos: Path, taskres: Taskres) -> None:
    assert taskres("extract", photos, *BUNDLED, "--shots", "16", "--seeds", "1").status == 0
    stored = FeatureCache(here / "cache" / "glyph-clip-bundled" / "photos.h5").contents()
    named = replace(stored.provenance, dataset="dtd", backbone="ViT-B-16", pretrained="openai")
    write_cache(here / "cache" / "ViT-B-16-openai" / "dtd.h5", replace(stored, provenance=named))
    assert taskres("fit", "dtd", "--shots", "1,16", "--epochs", "3", "--device", "cpu").status == 0
    page = page_of(taskres, here / "runs" / "ViT-B-16-openai")
    assert "Next to published results" in page
    assert "published, 16 shots: 71.50 %" in page  # in the chart
    assert "<td>71.50</td>" in page  # in the table
    assert '<td class="word">TaskRes (by others)</td><td class="word">S21</td><td class="word">unknown</td>' in page
    assert "(arXiv 2609.36680), Table 8" in page
    assert "published results" not in page_of(taskres, here / "runs" / "glyph-clip-bundled")


def test_names_are_escaped(here: Path, taskres: Taskres) -> None:
    rng, names = np.random.default_rng(0), np.array(['<b>"jay"</b>', "owl & | co", "</style><script>alert(1)</script>"])
    labels = np.tile([0, 1, 2], 8)
    features = {f"{part}_features": rng.normal(size=(24, 4)) for part in ("train", "val", "test")}
    numbered = {f"{part}_labels": labels for part in ("train", "val", "test")}
    np.savez(here / "birds.npz", **features, **numbered, classnames=names, text_features=rng.normal(size=(3, 4)))
    assert taskres("import", "birds.npz", "--name", "birds").status == 0
    assert taskres("fit", "birds", "--shots", "2", "--device", "cpu").status == 0
    page = page_of(taskres, "runs", "--title", "<i>mine</i>")
    assert [tag for tag, _ in Elements(page).found if tag in ("script", "i")] == []
    assert "&lt;b&gt;&#34;jay&#34;&lt;/b&gt;" in page
    assert "&lt;i&gt;mine&lt;/i&gt;" in page


def test_the_installed_command(fitted: Path, here: Path) -> None:
    command = [str(Path(sys.executable).with_name("taskres")), "report", "runs", "--out", "deep/er/page.html"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=here)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1] == "written: deep/er/page.html"
    Elements((here / "deep" / "er" / "page.html").read_text())


def browsed(folder: Path, page: Path, *arguments: str) -> str:
    """Return what Chromium prints for a page."""
    quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
    silent = ("--disable-background-networking", "--disable-component-update", "--hide-scrollbars")
    own = f"--user-data-dir={folder / 'profile'}"
    command = [str(CHROMIUM), *quiet, *silent, own, *arguments, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_chromium_shows_the_page_at_two_widths_light_and_dark(fitted: Path, here: Path, taskres: Taskres) -> None:
    page = page_of(taskres, fitted)
    measuring = "<script>document.title = [innerWidth, document.documentElement.scrollWidth, document.images.length]"
    loaded = "+ ' ' + [...document.images].every(image => image.naturalWidth > 0)</script></body>"
    measured = here / "measured.html"
    measured.write_text(page.replace("</body>", measuring + loaded))
    corners = set()
    for width in (1200, 500):
        for scheme in ("1", "0"):  # light, dark
            shot = here / f"{width}-{scheme}.png"
            settings = (f"--window-size={width},1600", f"--blink-settings=preferredColorScheme={scheme}")
            browsed(here, Path("report.html").resolve(), *settings, f"--screenshot={shot}")
            with Image.open(shot) as picture:
                corners.add(picture.convert("RGB").getpixel((2, 2)))
        dom = browsed(here, measured, f"--window-size={width},1600", "--dump-dom")
        numbers, complete = re.findall(r"<title>(.*?) (.*?)</title>", dom)[0]
        inner, needed, images = map(int, numbers.split(","))
        assert needed <= inner  # no horizontal overflow
        assert images == page.count("<img") > 0
        assert complete == "true"
    assert corners == {(255, 255, 255), (0x14, 0x16, 0x1B)}
