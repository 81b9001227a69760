"""Text from outside: what reaches a terminal, a shell, a spreadsheet and Markdown."""

import csv
import shlex
from io import StringIO
from pathlib import Path

import pytest

from taskres_cache.system.text import (
    LONGEST_MESSAGE,
    LONGEST_WORD,
    as_csv,
    command,
    markdown,
    printable,
    printable_lines,
    shortened_message,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("été 図 Ωμέγα дом", "été 図 Ωμέγα дом"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[2J\x07\x7f\x9b", r"\x1b[2J\x07\x7f\x9b"),
        *((f"a{control}b", f"a\\u{ord(control):04x}b") for control in "\u202a\u202b\u202c\u202d\u202e"),
        *((f"a{control}b", f"a\\u{ord(control):04x}b") for control in "\u2066\u2067\u2068\u2069\u200b\u2028\ufeff"),
        ("\udcff.png", r"\udcff.png"),
        ("[/b][red]", "[/b][red]"),
    ],
)
def test_terminals_get_no_controls(text: str, expected: str) -> None:
    assert printable(text) == expected


def test_lines_stay_lines() -> None:
    assert printable_lines("a\x1b\nb\r") == "a\\x1b\nb\\r"


def test_long_names_lose_their_middle() -> None:
    assert shortened_message("short") == "short"
    line = f"could not read {'x' * 2_000_000}.png; fix it"
    short = shortened_message(line)
    assert short.startswith("could not read xxx")
    assert short.endswith("xx.png; fix it")
    assert len(short) < LONGEST_WORD + 100
    assert len(shortened_message("word " * 1_000_000)) < LONGEST_MESSAGE + 100


@pytest.mark.parametrize("name", ["my runs", "it's", "-x", "$(touch no)", "a\nb", "été", "`id`", "plain"])
def test_commands_can_be_pasted(name: str) -> None:
    words = shlex.split(command("taskres", "report", Path(name)))
    assert words[:2] == ["taskres", "report"]
    assert Path(words[2]) == Path(name)
    assert not words[2].startswith("-")


FORMULAS = ["=1+1", "+cmd", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1"]


@pytest.mark.parametrize("text", FORMULAS)
def test_formulas_become_text(text: str) -> None:
    ((cell, number),) = csv.reader(StringIO(as_csv([(text, -0.5)]), newline=""))
    assert (cell, number) == (f"'{text}", "-0.5")


@pytest.mark.parametrize("text", ["-1.5", "+2.30", "1e-05", "-7", "-", "", "a=b", "91.20 ± 0.30"])
def test_numbers_and_words_stay(text: str) -> None:
    assert as_csv([(text, "x")]) == f"{text},x\n"


def test_separators_of_other_spreadsheets_are_quoted() -> None:
    assert as_csv([("a;=1", 2)]) == '"a;=1","2"\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("black_cat, 97.5 ± 0.1 (b)", "black_cat, 97.5 ± 0.1 (b)"),
        ("<img src=x>", r"\<img src=x\>"),
        ("a|b`c", r"a\|b\`c"),
        ("a\n# b", r"a\\n# b"),
        ("[x](y) *b* __c__ &lt;", r"\[x\](y) \*b\* \_\_c\_\_ \&lt;"),
    ],
)
def test_markdown_shows_text_as_it_is(text: str, expected: str) -> None:
    assert markdown(text) == expected
