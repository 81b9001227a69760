"""Progress in a log: one line every ten seconds and one at the end."""

import pytest

import taskres_cache.cli.console as console


def test_progress_lines(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    clock = iter([0.0, 4.0, 12.0, 15.0, 20.0])
    monkeypatch.setattr(console, "monotonic", lambda: next(clock))
    with console.Lines() as lines:
        lines.begin("images", 1000, 600)
        for _ in range(4):
            lines.advance(100)
    assert capfd.readouterr().err.splitlines() == [
        "images (600 already there): 800 of 1000, 16.7/s, 0:00:12 left",
        "images (600 already there): 1000 of 1000, 20.0/s, 0:00:00 left",
    ]


def test_complete_work_prints_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    console.Lines().begin("prompts", 30, 30)
    assert capfd.readouterr().err == "prompts (30 already there): 30 of 30\n"


def test_log_gets_lines() -> None:
    assert isinstance(console.progress(), console.Lines)
