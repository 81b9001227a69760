"""Files are replaced whole, and not through links; leftovers of killed processes go, those of live ones stay."""

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from taskres_cache.errors import StorageError
from taskres_cache.extraction.lock import exclusive_lock
from taskres_cache.system.files import discard_leftovers, refuse_unwritable, replaced

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links, FIFOs and modes of Unix")
WRITER = """
import sys, time
from pathlib import Path
from taskres_cache.system.files import replaced
with replaced(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print(temporary, flush=True)
    time.sleep(60)
"""


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def write(path: Path, text: str = "new") -> None:
    with replaced(path) as temporary:
        temporary.write_text(text)


@pytest.fixture
def mask() -> None:
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.mark.usefixtures("mask")
def test_new_files_follow_the_umask_and_replaced_ones_keep_their_mode(tmp_path: Path) -> None:
    file = tmp_path / "new folder" / "a.csv"
    write(file)
    assert permissions(file) == 0o640
    for mode in (0o600, 0o664, 0o400):
        file.chmod(mode)
        write(file, str(mode))
        assert (permissions(file), file.read_text()) == (mode, str(mode))
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.usefixtures("mask")
def test_nobody_else_reads_the_new_content_of_a_private_file(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("old")
    file.chmod(0o600)
    with replaced(file) as temporary:
        assert permissions(temporary) == 0o600
        temporary.write_text("new")


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except OSError:
        pytest.skip("devices need root")


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(str(path))


def link(path: Path) -> None:
    path.with_name("victim").write_text("victim")
    path.symlink_to("victim")


def dangling(path: Path) -> None:
    path.symlink_to("victim")


SPECIAL = {fifo: "a FIFO", device: "a device", unix_socket: "a socket", link: "a symbolic link", Path.mkdir: "a folder"}


@pytest.mark.parametrize("make", [*SPECIAL, dangling])
def test_what_is_not_a_file_is_refused(tmp_path: Path, make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    path = Path("out.csv")
    make(path)
    before = path.lstat()
    victim = path.with_name("victim")
    kind = SPECIAL.get(make, "a symbolic link")
    for use in (refuse_unwritable, write):
        with pytest.raises(StorageError, match=f"out.csv cannot be written: it is {kind}, not a file"):
            use(path)
    assert os.path.samestat(before, path.lstat())
    assert victim.exists() == (make is link)
    assert make is not link or victim.read_text() == "victim"
    assert {entry.name for entry in tmp_path.iterdir()} <= {"out.csv", "victim"}


def test_a_link_planted_meanwhile_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("victim")

    def plant_target() -> None:
        with replaced(tmp_path / "a") as temporary:
            temporary.write_text("new")
            (tmp_path / "a").symlink_to("victim")

    def plant_temporary() -> None:
        with replaced(tmp_path / "b") as temporary:
            temporary.unlink()
            temporary.symlink_to("victim")

    with pytest.raises(StorageError, match="symbolic link"):
        plant_target()
    with pytest.raises(StorageError, match="another program replaced"):
        plant_temporary()
    assert (tmp_path / "victim").read_text() == "victim"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "victim"]


def test_names_of_temporary_files_cannot_be_predicted(tmp_path: Path) -> None:
    names = set()
    for _ in range(3):
        with replaced(tmp_path / "a") as temporary:
            names.add(temporary.name)
            temporary.write_text("x")
    assert len(names) == 3
    assert not any(str(os.getpid()) == name.split(".")[2] for name in names)


def test_the_longest_names_can_be_written(tmp_path: Path) -> None:
    name = "ä" * 126 + ".md"  # 255 bytes
    write(tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    with pytest.raises(StorageError, match="choose a shorter name"):
        write(tmp_path / f"{name}x")


def test_leftovers_of_killed_processes_go_and_those_of_live_ones_stay(tmp_path: Path) -> None:
    file, other = tmp_path / "a.csv", tmp_path / ".a.csv.0123.tmp"
    file.write_text("old")
    other.write_text("somebody's")
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, file], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    try:
        killed, live = (Path(writer.stdout.readline().strip()) for writer in writers)
        write(file, "between")
        assert killed.exists()
        assert live.exists()
        writers[0].send_signal(signal.SIGKILL)
        writers[0].wait()
        assert killed.read_text() == "half"
        write(tmp_path / "a", "another target")
        assert killed.exists()
        write(file)
        assert not killed.exists()
        assert live.read_text() == "half"
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    discard_leftovers(file)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [other.name, "a", "a.csv"]


def test_planted_leftovers_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("victim")
    planted = [tmp_path / f".a.{digit * 16}.tmp" for digit in "0123"]
    planted[0].symlink_to("victim")
    os.mkfifo(planted[1])
    planted[2].mkdir()
    write(tmp_path / "a")
    assert planted[0].is_symlink()
    assert planted[1].is_fifo()
    assert planted[2].is_dir()
    assert (tmp_path / "victim").read_text() == "victim"


@pytest.mark.parametrize("make", [fifo, link, dangling, Path.mkdir, "hard link"])
def test_lock_files_are_not_followed(tmp_path: Path, make) -> None:
    lock = tmp_path / ".a.h5.lock"
    if make == "hard link":
        (tmp_path / "victim").write_text("victim")
        lock.hardlink_to(tmp_path / "victim")
    else:
        make(lock)
    kind = "a hard link" if make == "hard link" else SPECIAL.get(make, "a symbolic link")
    with (
        pytest.raises(StorageError, match=f"its lock file .*a.h5.lock is {kind}; remove it"),
        exclusive_lock(tmp_path / "a.h5"),
    ):
        pass
    victim = tmp_path / "victim"
    assert not victim.exists() or victim.read_text() == "victim"


def test_a_file_planted_at_the_temporary_name_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskres_cache.system.files.token_hex", lambda _: "planted")  # random, unless it is guessed
    planted, target = tmp_path / ".report.html.planted.tmp", tmp_path / "report.html"
    planted.write_text("somebody else's")
    target.write_text("old")
    with pytest.raises(StorageError, match="report.html cannot be written"):
        write(target)
    assert (planted.read_text(), target.read_text()) == ("somebody else's", "old")
