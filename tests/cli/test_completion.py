"""Shell completion, through the protocol of the installed script and in bash."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from taskres_cache.caches.class_halves import HALVES
from taskres_cache.cli import checks, options
from taskres_cache.cli.app import app
from taskres_cache.datasets import ENTRIES
from taskres_cache.datasets.prompts import ENSEMBLES, PROMPT_FORMS
from taskres_cache.datasets.word_lists import clip_models
from taskres_cache.encoders.backbone import PRECISIONS
from taskres_cache.encoders.views import FAMILIES
from taskres_cache.errors import OptionError
from taskres_cache.extraction.planning import PRE_PROJECTIONS
from taskres_cache.recipe import BUILT_BASES, CHOICES
from taskres_cache.system.devices import choose_device

BIN = Path(sys.executable).parent
Offered = Callable[..., list[str]]
METHOD = "runs/RN50-openai/pets/taskres-regular"


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **more}


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Offered:
    """Return a function that completes the last of some words, with the variables that bash's script sets."""

    def ask(*words: str) -> list[str]:
        monkeypatch.setenv("_TASKRES_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", "\n".join(("taskres", *words)))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        with pytest.raises(SystemExit) as end:
            typer.main.get_command(app).main([], prog_name="taskres")
        printed = capfd.readouterr()
        assert (end.value.code, printed.err) == (0, "")
        return printed.out.split()

    return ask


def touch(*files: str) -> None:
    for file in map(Path, files):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


@pytest.fixture
def cached(here: Path) -> Path:
    touch("cache/RN50-openai/pets.h5", "cache/ViT-B-32-openai/pets.h5", "cache/RN50-openai/dtd.h5")
    touch("cache/RN50-openai/dtd.h5.parts/0", "elsewhere/RN50-openai/birds.h5", "cache/RN50-openai/it's me.h5")
    return here


@pytest.fixture
def fitted(here: Path) -> Path:
    for seed in (1, 2):
        touch(*(f"{METHOD}/shots_{shots}/seed_{seed}/classifier.safetensors" for shots in (1, 16)))
    return here


def test_known_data_sets_folders_and_lists(offered: Offered, here: Path) -> None:
    for folder in ("dogs", "cats", "do gs", ".dot", "old.csv"):
        Path(folder).mkdir()
    touch("dogs.csv", "cats.JSONL", "coco.json", "dogs.txt", "my dogs.csv")
    files = {"dogs.csv", "cats.JSONL", "coco.json"}
    assert set(offered("extract", "")) == {*ENTRIES, "dogs/", "cats/", "old.csv/", *files}
    assert set(offered("datasets", "verify", "d")) == {"digits", "dtd", "dogs/", "dogs.csv"}


@pytest.mark.parametrize("word", ["do", "dogs/", "./d", "/", "~/d"])
def test_paths_are_left_to_the_shell(offered: Offered, here: Path, word: str) -> None:
    Path("dogs/inner").mkdir(parents=True)
    assert offered("extract", word) == []


@pytest.mark.parametrize("command", ["fit", "inspect"])
def test_names_of_cached_data_sets(offered: Offered, cached: Path, command: str) -> None:
    assert offered(command, "") == ["dtd", "pets"]
    assert offered(command, "--cache-dir", "elsewhere", "") == ["birds"]
    assert offered(command, "--cache-dir", "nowhere", "") == []
    assert offered(command, "cache/RN") == []


def test_eval_offers_runs_or_caches(offered: Offered, cached: Path, fitted: Path) -> None:
    assert offered("eval", "--zero-shot", "p") == ["pets"]
    assert offered("eval", "some/run", "--on", "") == ["dtd", "pets"]
    assert offered("eval", "some/run", "--on", "pets", "d") == ["dtd"]
    assert offered("eval", "r") == [f"{METHOD}/shots_1/", f"{METHOD}/shots_16/"]


def test_run_folders_up_to_the_level_where_they_differ(offered: Offered, fitted: Path) -> None:
    assert offered("eval", f"{METHOD}/shots_16") == [f"{METHOD}/shots_16/seed_1", f"{METHOD}/shots_16/seed_2"]
    assert offered("eval", f"{METHOD}/shots_16/seed_2") == [f"{METHOD}/shots_16/seed_2"]
    touch("runs/RN50-openai/dtd/taskres-regular/shots_1/seed_1/classifier.safetensors")
    assert offered("eval", "") == ["runs/RN50-openai/dtd/", "runs/RN50-openai/pets/"]
    assert offered("eval", "elsewhere/") == []


def test_comma_separated_lists(offered: Offered, here: Path) -> None:
    assert offered("benchmark", "--datasets", "dtd,sun") == ["dtd,sun397"]
    others = ["regular,enhanced", "regular,enhanced-only", "regular,means"]
    assert offered("fit", "pets", "--base", "regular,") == others
    assert offered("fit", "pets", "--base", "model") == []


def test_models_and_choices(offered: Offered, here: Path) -> None:
    assert offered("extract", "pets", "--backbone", "glyph") == ["glyph-clip"]
    assert offered("extract", "pets", "--precision", "") == list(options.PRECISIONS)
    assert offered("fit", "pets", "--precision", "") == list(CHOICES["precision"])
    assert offered("fit", "pets", "--residual", "") == list(CHOICES["residual"])
    assert offered("fit", "pets", "--base", "") == list(BUILT_BASES)
    assert offered("extract", "pets", "--classnames", "") == list(PROMPT_FORMS)
    assert offered("extract", "pets", "--templates", "") == list(ENSEMBLES)
    assert offered("fit", "pets", "--device", "c") == ["cpu", "cuda"]
    assert offered("fit", "pets", "--alpha", "") == ["auto", "learn"]
    assert offered("eval", "run", "--classes", "n") == ["new"]


def test_choices_equal_the_librarys() -> None:
    assert set(options.PRECISIONS) == {"auto", *PRECISIONS}
    assert options.HALVES == HALVES
    assert (*FAMILIES,) == options.FAMILIES
    assert options.PRE_PROJECTIONS == PRE_PROJECTIONS
    for name in (*checks.DEVICES, *checks.OTHER_DEVICES):
        try:
            choose_device(name)
        except OptionError as error:  # torch knows the device, but this machine does not have it
            assert "Expected one of" not in str(error)


def test_models_are_those_of_open_clip() -> None:
    """In a separate process, because other tests register models."""
    program = "import open_clip, taskres_cache.encoders.loading; print(*sorted(open_clip.list_models()))"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert clip_models() == tuple(printed.stdout.split())


@pytest.mark.parametrize("words", [("extract", ""), ("fit", ""), ("eval", ""), ("extract", "x", "--backbone", "R")])
def test_completion_imports_no_large_library(here: Path, words: tuple[str, ...]) -> None:
    program = (
        "import sys; sys.argv = ['taskres']\n"
        "from taskres_cache.cli import main\n"
        "try:\n    main()\nfinally:\n"
        "    print('loaded:', *({'torch', 'open_clip', 'torchvision', 'h5py', 'numpy'} & set(sys.modules)))"
    )
    variables = {"COMP_WORDS": "\n".join(("taskres", *words)), "COMP_CWORD": str(len(words))}
    answer = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(_TASKRES_COMPLETE="complete_bash", **variables),
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.stdout.splitlines()[-1].split() == ["loaded:"]
    assert answer.stderr == ""


def completers() -> list[tuple[str, object]]:
    """Return the name of each command with each of its parameters."""
    found = []
    groups = [typer.main.get_command(app)]
    while groups:
        group = groups.pop()
        for command in group.commands.values():  # type: ignore[attr-defined]
            found += [(command.name, parameter) for parameter in command.params]
            groups += [command] if hasattr(command, "commands") else []
    return found


def test_no_completer_raises(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With files in place of folders, a deleted folder, and without open_clip."""
    touch("cache", "runs")
    monkeypatch.setattr("taskres_cache.datasets.word_lists.find_spec", lambda name: None)
    clip_models.cache_clear()
    gone = here / "gone"
    gone.mkdir()
    for folder in (here, gone):
        monkeypatch.chdir(folder)
        if folder == gone:
            gone.rmdir()
        count = 0
        for name, parameter in completers():
            context = typer.Context(typer.main.get_command(app), info_name=name)
            context.params = {"cache_dir": Path("cache"), "on": ["x"], "zero_shot": True}
            for word in ("", "r", "../", "\0", "d,"):
                count += len(parameter.shell_complete(context, word))  # type: ignore[attr-defined]
        assert count > 0
    monkeypatch.undo()
    clip_models.cache_clear()


def test_senseless_words_print_no_error(offered: Offered, here: Path) -> None:
    for words in (("fti", ""), ("fit", "--epochs", "many", ""), ("'",), ("--version", "fit", ""), ("-x", "--", "")):
        assert all("taskres-cache" not in word for word in offered(*words))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_script_for_each_shell(shell: str) -> None:
    printed = subprocess.run(
        [str(BIN / "taskres")], env=environment(_TASKRES_COMPLETE=f"source_{shell}"), capture_output=True, text=True
    )
    assert printed.returncode == 0
    assert f"complete_{shell}" in printed.stdout
    assert "taskres" in printed.stdout


def test_zsh_and_fish_show_descriptions(cached: Path) -> None:
    said = "cached for RN50-openai and ViT-B-32-openai"
    line = {"_TYPER_COMPLETE_ARGS": "taskres fit pe", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    answers = {
        shell: subprocess.run(
            [str(BIN / "taskres")],
            env=environment(_TASKRES_COMPLETE=f"complete_{shell}", **line),
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for shell in ("zsh", "fish")
    }
    assert answers == {"fish": f"pets\t{said}", "zsh": f"""_arguments '*: :(("pets":"{said}"))'"""}


needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")


@needs_bash
def test_completion_in_bash(cached: Path, fitted: Path) -> None:
    script = """
    eval "$(taskres --show-completion)"
    ask() {
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
        _taskres_completion taskres "${!#}" "${COMP_WORDS[COMP_CWORD - 1]}"
        echo "${COMPREPLY[*]}"
    }
    complete -p taskres
    ask taskres fit ""
    ask taskres fit cache/
    ask taskres fit pets --device c
    ask taskres "ins"
    """
    answer = subprocess.run(
        ["bash", "--norc", "-c", script], env=environment(), capture_output=True, text=True, check=True
    )
    assert answer.stderr == ""
    assert answer.stdout.splitlines() == [
        "complete -o default -F _taskres_completion taskres",  # files if nothing is offered
        "dtd pets",
        "",
        "cpu cuda",
        "inspect",
    ]


@needs_bash
def test_install_completion(here: Path) -> None:
    home = environment(HOME=str(here))
    installed = subprocess.run(
        ["bash", "--norc", "-c", "taskres --install-completion; exit $?"], env=home, capture_output=True, text=True
    )
    assert installed.returncode == 0, installed.stderr
    registered = subprocess.run(
        ["bash", "--norc", "-c", "source ~/.bashrc && complete -p taskres"], env=home, capture_output=True, text=True
    )
    assert "_taskres_completion" in registered.stdout
