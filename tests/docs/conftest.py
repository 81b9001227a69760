"""A folder as `make demo` leaves it."""

import shutil
from pathlib import Path
from zipfile import ZipFile

import pytest

from taskres_cache.bundled import DIGITS_ARCHIVE
from tests.docs.pages import run_command


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of the digits, the runs of `make demo` and the test images."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_command("make demo", patch)
    with ZipFile(DIGITS_ARCHIVE) as archive:
        archive.extractall(folder / "images", [name for name in archive.namelist() if name.startswith("test/")])
    return folder


@pytest.fixture
def in_demo(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder; the current one."""
    shutil.copytree(demo, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path
