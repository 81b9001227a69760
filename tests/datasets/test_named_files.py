"""Image files as a user names them: folders at any depth, links, lists, duplicates and unreadable ones."""

import io
import os
from pathlib import Path

import pytest

from taskres_cache.datasets.named_files import NamedFiles, find_images, listed_names
from taskres_cache.datasets.prompts import read_templates
from taskres_cache.errors import OptionError
from tests.conftest import save_image


@pytest.fixture
def tree(here: Path) -> Path:
    """Images at three depths, some of them hidden, and a file that is not an image."""
    for name in ("tree/b.png", "tree/a.jpg", "tree/deep/er/C.PNG", "tree/.hidden/x.png", "tree/.y.png", "lone.png"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        save_image(here / name, 1)
    (here / "tree" / "notes.txt").write_text("no image")
    (here / "bare").mkdir()
    return here


BELOW = ("tree/a.jpg", "tree/b.png", "tree/deep/er/C.PNG")


def test_files_are_found_in_the_order_of_the_names(tree: Path) -> None:
    found = find_images(["lone.png", "tree", "bare", "tree/notes.txt", "gone.png", "tree/.y.png", "lone.png", "tree"])
    assert found.paths == ("lone.png", *BELOW, "tree/notes.txt", "gone.png", "tree/.y.png")
    assert (found.folders, found.empty, found.unreadable) == (("tree", "bare"), ("bare",), {})
    assert find_images(["tree/.hidden"]).paths == ("tree/.hidden/x.png",)


def test_links_are_followed_and_loops_end(tree: Path) -> None:
    (tree / "tree" / "deep" / "up").symlink_to(tree / "tree")
    (tree / "tree" / "deep" / "self").symlink_to("self")
    (tree / "tree" / "self.png").symlink_to("self.png")
    (tree / "other").mkdir()
    save_image(tree / "other" / "z.png", 1)
    (tree / "tree" / "to other").symlink_to(tree / "other")
    (tree / "other" / "back").symlink_to(tree / "tree" / "deep")
    assert find_images(["tree"]).paths == (*BELOW, "tree/self.png", "tree/to other/z.png")


@pytest.mark.parametrize(
    ("names", "message"), [([], "no image given"), (["bare", "tree/x"], "no image found in bare, ")]
)
def test_nothing_to_predict(tree: Path, names: list[str], message: str) -> None:
    (tree / "tree" / "x").mkdir()
    with pytest.raises(OptionError, match=f"nothing to predict: {message}.*; pass image files, or folders with"):
        find_images(names)


def test_a_folder_that_cannot_be_listed_is_reported(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = os.scandir

    def refuse(folder: str):
        if folder == os.path.join("tree", "deep"):
            raise PermissionError(13, "Permission denied", folder)
        return listing(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    found = find_images(["tree"])
    assert found.paths == BELOW[:2]
    assert found.unreadable == {"tree/deep": "Permission denied"}
    with pytest.raises(OptionError, match=r"no image found in tree/deep \(tree/deep: Permission denied\)"):
        find_images(["tree/deep"])


def test_lists_of_names() -> None:
    stream = io.BytesIO(b"a b.png\r\n\n  \n lead.png\n-\n\xff.png\nlast.png")
    assert listed_names(stream) == ["a b.png", " lead.png", "-", os.fsdecode(b"\xff.png"), "last.png"]


def test_errors_are_the_systems_messages(tree: Path) -> None:
    files = NamedFiles(Path())
    assert files.read("lone.png").size == files.read(str(tree / "lone.png")).size == (40, 30)
    os.mkfifo("pipe.png")
    for name, reason in (("gone.png", "No such file or directory"), ("pipe.png", "not a file"), ("tree", "not a file")):
        with pytest.raises(OSError, match=f"^{reason}$"):
            files.read(name)
    with pytest.raises(ValueError, match="not an image in one of the formats"):
        files.read("tree/notes.txt")


def test_a_byte_order_mark_is_no_part_of_a_list_or_a_prompt(here: Path) -> None:
    assert listed_names(io.BytesIO(b"\xef\xbb\xbfa.png\r\nb.png\n")) == ["a.png", "b.png"]
    (here / "prompts.txt").write_text("\ufeffa photo of a {}.", encoding="utf-8")
    assert read_templates("prompts.txt") == ("a photo of a {}.",)
