"""The default progress: a bar on a terminal or in a notebook, nothing in a log."""

from functools import partial

import pytest
from rich.console import Console

from taskres_cache.system.progress import ProgressBar, Silent, default_progress


def test_default_progress_is_silent_in_a_log(capfd: pytest.CaptureFixture[str]) -> None:
    with default_progress() as progress:
        assert isinstance(progress, Silent)
        progress.begin("images", 3, 0)
        progress.advance(3)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("place", ["force_terminal", "force_jupyter"])
def test_default_progress_is_a_bar_on_a_terminal_and_in_a_notebook(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rich.console.Console", partial(Console, **{place: True}))
    monkeypatch.setattr(ProgressBar, "__enter__", lambda bar: bar)
    with default_progress() as progress:
        assert isinstance(progress, ProgressBar)


def test_bar_shows_label_count_and_what_already_exists(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    with ProgressBar() as bar:
        bar.begin("images of photos", 10, 6)
        bar.advance(4)
    shown = capfd.readouterr().err
    assert "images of photos (6 already there)" in shown
    assert "10/10" in shown
