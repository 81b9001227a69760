"""Description files: every form gives the same names and prompts, and every fault is one line with its place."""

import json
from pathlib import Path

import pytest

from taskres_cache.datasets.text.class_descriptions import ClassDescriptions, read_class_descriptions
from taskres_cache.datasets.text.description_file import MOST_BYTES
from taskres_cache.errors import OptionError

CLASSES = ("black_cat", "dog")
PROMPTS = (("a cat, at night.", "dark fur."), ("it barks.",))

YAML = """
black_cat:
  name: no  # text, not a truth value
  prompts:
    - a cat, at night.
    - |
      dark
      fur.
dog: [it barks.]
"""
JSON = json.dumps(
    {"dog": ["it barks."], "black_cat": {"name": "no", "prompts": ["\n\na cat, at night.", "dark  fur."]}}
)
CSV = 'prompt,class,name\r\n"a cat, at night.",black_cat,no\r\nit barks.,dog,\r\n\r\ndark fur.,black_cat,\r\n'
TSV = "class\tname\tprompt\nblack_cat\tno\ta cat, at night.\nblack_cat\t\tdark fur.\ndog\t\tit barks.\n"


def read(folder: Path, name: str, content: str, classes: tuple[str, ...] = CLASSES, ids: tuple[str, ...] | None = None):
    (folder / name).write_text(content, encoding="utf-8", newline="")
    return read_class_descriptions(folder / name, classes, ids)


@pytest.mark.parametrize("suffix", ["yaml", "yml", "json", "txt", "csv", "tsv", "CSV"])
def test_every_form_gives_the_same(suffix: str, tmp_path: Path) -> None:
    content = {"yaml": YAML, "yml": YAML, "json": JSON, "txt": JSON, "csv": CSV, "tsv": TSV, "CSV": "\ufeff" + CSV}
    found = read(tmp_path, f"text.{suffix}", content[suffix])
    assert found == ClassDescriptions(("no", "dog"), PROMPTS)


def test_names_alone_fill_templates_and_prompts_replace_them(tmp_path: Path) -> None:
    found = read(tmp_path, "names.yaml", "black_cat: night_panther\ndog: [it barks.]\n")
    assert found.names == ("night_panther", "dog")
    assert found.sentences(("a {}.", "the {}."), "spaces") == (("a night panther.", "the night panther."), PROMPTS[1])
    assert found.sentences(("a {}.",), "raw")[0] == ("a night_panther.",)


def test_braces_in_a_sentence_stand_for_the_name(tmp_path: Path) -> None:
    found = read(tmp_path, "a.yaml", "black_cat: ['a {}, a pet.', fur.]\ndog: {name: big_dog, prompts: 'the {}'}\n")
    assert found.sentences(("{}",), "spaces") == (("a black cat, a pet.", "fur."), ("the big dog",))
    assert found.sentences(("{}",), "raw")[1] == ("the big_dog",)


def test_keys_match_by_name_then_by_identifier_then_loosely(tmp_path: Path) -> None:
    content = (
        '{"n02": ["by id"], "Black  CAT": ["loosely"], "dog": ["by name"], "E\u0301te\u0301": ["accents"], "z": ["-"]}'
    )
    classes, ids = ("black_cat", "dog", "wolf", "\u00e9t\u00e9"), ("n00", "n01", "n02", "n03")
    found = read(tmp_path, "a.json", content, classes, ids)
    assert found.prompts == (("loosely",), ("by name",), ("by id",), ("accents",))
    file = tmp_path / "a.json"
    assert found.notes == (
        f"{file}: matched but for case, spaces and underscores: 'Black  CAT' for 'black_cat', 'E\u0301te\u0301' for "
        "'\u00e9t\u00e9'",
        f"{file}: not in the data set, ignored: 'z' (key 'z')",
    )


def test_a_key_that_is_the_name_of_a_class_is_not_matched_to_another(tmp_path: Path) -> None:
    assert read(tmp_path, "a.json", '{"cat": ["x"], "Cat": ["y"]}', ("Cat", "cat")).prompts == (("y",), ("x",))
    with pytest.raises(OptionError, match="a.json has no class 'Cat'; add a name or prompts for it"):
        read(tmp_path, "a.json", '{"cat": ["x"], "dog": ["y"]}', ("Cat", "cat"))


def test_classes_of_the_same_name_share_an_entry(tmp_path: Path) -> None:
    found = read(tmp_path, "a.json", '{"crane": ["x"], "dog": ["y"]}', ("crane", "dog", "crane"), ("n1", "n2", "n3"))
    assert found.prompts == (("x",), ("y",), ("x",))


def test_repeated_prompts_count_once_and_are_said(tmp_path: Path) -> None:
    found = read(tmp_path, "a.csv", "class,prompt\ndog,x\nblack_cat,y\nblack_cat,z\nblack_cat, y\n")
    assert found.prompts == (("y", "z"), ("x",))
    assert found.notes == (f"{tmp_path / 'a.csv'}: repeated in their class, counted once: 'y' (line 3)",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[1]", "a.json: expected a JSON object of class names"),
        ("a.json", "{", "could not read .*a.json"),
        ("a.json", "[" * 100_000, "could not read .*a.json"),
        ("a.json", '{"dog": 1}', "key 'dog': name of class 'dog' is int, expected text"),
        ("a.json", '{"dog": null}', "key 'dog': name of class 'dog' is NoneType"),
        ("a.json", '{"dog": []}', "key 'dog': class 'dog' has no list of prompts"),
        ("a.json", '{"dog": {"prompts": {"a": "b"}}}', "key 'dog': class 'dog' has no list of prompts"),
        ("a.json", '{"dog": {"prompt": ["x"]}}', "key 'dog': unexpected 'prompt'"),
        ("a.json", '{"dog": {}}', "key 'dog': unexpected '{}'"),
        ("a.json", '{"dog": ["x", "  "]}', "key 'dog': prompt 2 of class 'dog' is empty"),
        ("a.json", '{"dog": ["x", ["y"]]}', "key 'dog': prompt 2 of class 'dog' is list, expected text"),
        ("a.json", '{"dog": ["\\ud800"]}', "prompt 1 of class 'dog' has a control character or half a character"),
        ("a.json", '{"dog": ["a\\u0000b"]}', "prompt 1 of class 'dog' has a control character"),
        ("a.json", f'{{"dog": ["{"x" * 2001}"]}}', "prompt 1 of class 'dog' has 2,001 characters, expected at most"),
        ("a.json", '{"dog": ["x"], "dog": ["y"]}', "key 'dog': class 'dog' is listed twice"),
        ("a.json", '{"dog": ["x"]}', "a.json has no class 'black_cat'; add a name or prompts"),
        ("a.json", '{"dog": ["x"], "blackcat": ["y"]}', r"has no class 'black_cat' \(is it 'blackcat'\?\)"),
        ("a.json", '{"dog": ["x"], "Black_cat": ["y"], "BLACK CAT": ["z"]}', "all match class 'black_cat'"),
        ("a.json", "{}", "a.json has no class; expected"),
        ("a.yaml", "", "a.yaml: expected a YAML mapping"),
        ("a.yaml", "- dog", "a.yaml: expected a YAML mapping"),
        ("a.yaml", "dog: [x\ncat: y", "could not read .*a.yaml"),
        ("a.yaml", "dog: [[x]]", "a.yaml, line 1: a nested list or mapping, expected text"),
        ("a.yaml", "dog:\n  prompts:\n    - x: y", "a.yaml, line 3: a nested list or mapping"),
        ("a.yaml", "dog: [x]\nblack_cat:\n", "a.yaml, line 2: name of class 'black_cat' is empty"),
        ("a.yaml", "dog: x\n---\nblack_cat: y\n", "a.yaml, line 2: a second YAML document"),
        ("a.yaml", "dog: x\ndog: y\n", "a.yaml, line 2: class 'dog' is listed twice"),
        ("a.yaml", "dog: &dog [x]\nblack_cat: *dog\n", r"a.yaml, line 2: YAML aliases \(\*dog\) are not supported"),
        ("a.csv", "", "a.csv, line 1: columns '', expected class, name, prompt"),
        ("a.csv", "class;prompt\ndog;x\n", "a.csv, line 1: columns 'class;prompt', expected .* separated by commas"),
        ("a.csv", "class,prompt\n", "a.csv has no class"),
        ("a.csv", "class,prompt\ndog,a, b\n", "a.csv, line 2: 3 cells, expected 2"),
        ("a.csv", "class,prompt\ndog,\n", "a.csv, line 2: class 'dog' has neither a name nor a prompt"),
        ("a.csv", "class,prompt\n,x\n", "a.csv, line 2: the class is empty"),
        ("a.csv", 'class,prompt\ndog,"x\n', "a.csv, line 2: .*fix the quotes"),
        ("a.csv", "class,name\ndog,x\ndog,y\n", "a.csv, line 3: class 'dog' has the name 'y', but 'x' in an earlier"),
    ],
)
def test_a_fault_is_one_line_with_its_place(name: str, content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message) as error:
        read(tmp_path, name, content)
    assert len(str(error.value).splitlines()) == 1
    assert str(tmp_path / name) in str(error.value)


def test_one_entry_for_two_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="key 'HOT DOG': 'HOT DOG' matches the classes 'hot_dog' and 'hot dog'"):
        read(tmp_path, "a.json", '{"HOT DOG": ["x"]}', ("hot_dog", "hot dog"))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="there is no such file"):
        read_class_descriptions(tmp_path / "a.json", CLASSES)
    (tmp_path / "a.csv").write_bytes("class,prompt\ndog,été\n".encode("cp1252"))
    with pytest.raises(OptionError, match="could not read .*a.csv .*; save it as UTF-8 text"):
        read_class_descriptions(tmp_path / "a.csv", CLASSES)
    with (tmp_path / "a.yaml").open("wb") as stream:
        stream.truncate(MOST_BYTES + 1)
    with pytest.raises(OptionError, match="a.yaml has 33,554,433 bytes, expected at most 33,554,432"):
        read_class_descriptions(tmp_path / "a.yaml", CLASSES)


def test_a_bomb_of_aliases_takes_no_memory(tmp_path: Path) -> None:
    levels = "\n".join(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 9))
    with pytest.raises(OptionError, match="line 2: YAML aliases"):
        read(tmp_path, "bomb.yaml", f"a0: &a0 [x]\n{levels}\n")
