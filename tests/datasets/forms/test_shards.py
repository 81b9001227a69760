"""WebDataset shards: patterns, labels, parts, and what is not used."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskres_cache.datasets import load_dataset
from taskres_cache.datasets.forms.shard_names import is_pattern, parts_of, pattern_name, shards_of
from taskres_cache.datasets.forms.shards import are_samples
from taskres_cache.errors import DatasetError, OptionError, TaskresError
from tests.conftest import save_image
from tests.datasets.forms.packing import tar_of


@pytest.fixture
def pictures(tmp_path: Path) -> list[bytes]:
    for number in range(20):
        save_image(tmp_path / "pictures" / f"{number}.png", number)
    return [(tmp_path / "pictures" / f"{number}.png").read_bytes() for number in range(20)]


def shards(folder: Path, pictures: list[bytes], labels: list[object], suffix: str = "cls", name: str = "x") -> str:
    """Write the pictures in shards of eight with their labels; return the pattern of all shards."""
    folder.mkdir(exist_ok=True)
    count = 0
    for start in range(0, len(pictures), 8):
        contents = {}
        for number in range(start, min(start + 8, len(pictures))):
            label = labels[number % len(labels)]
            contents[f"{number:04d}.png"] = pictures[number]
            contents[f"{number:04d}.{suffix}"] = (json.dumps(label) if suffix == "json" else str(label)).encode()
        tar_of(folder / f"{name}-{count:03d}.tar", contents)
        count += 1
    return str(folder / f"{name}-{{000..{count - 1:03d}}}.tar")


def test_all_ways_to_name_shards_give_one_data_set(tmp_path: Path, pictures: list[bytes]) -> None:
    pattern = shards(tmp_path / "own", pictures, [0, 1])
    dataset = load_dataset(pattern)
    folder = tmp_path / "own"
    for typed in (folder, folder / "x-*.tar", "::".join(str(folder / f"x-00{number}.tar") for number in range(3))):
        assert load_dataset(str(typed)).partitions == dataset.partitions
    assert (dataset.name, dataset.classnames) == ("x", ("0", "1"))
    items = [item for part in dataset.partitions.values() for item in part]
    assert {item.path: item.label for item in items} == {
        f"x-{number // 8:03d}.tar/{number:04d}.png": number % 2 for number in range(20)
    }
    for part in dataset.partitions.values():
        assert list(part) == sorted(part)  # in the order in which they are stored


def test_names_come_from_text_or_a_file_or_json(tmp_path: Path, pictures: list[bytes]) -> None:
    named = load_dataset(shards(tmp_path / "a", pictures, ["cat", "red dog"]))
    assert named.classnames == ("cat", "red dog")
    pattern = shards(tmp_path / "b", pictures, [1, 0])
    (tmp_path / "b" / "classnames.txt").write_text("\ufeffcat\nred dog\n\n")
    by_number = load_dataset(pattern)
    assert by_number.classnames == ("cat", "red dog")
    items = [item for part in by_number.partitions.values() for item in part]
    assert by_number.classnames[next(item.label for item in items if item.path.endswith("0000.png"))] == "red dog"
    for key in ("label", "class", "cls", "category", "class_name"):
        pattern = shards(tmp_path / key, pictures, [{key: "cat", "width": 7}, {key: "dog"}], "json")
        assert load_dataset(pattern).classnames == ("cat", "dog")
    with_both = [{"label": 0, "class_name": "cat"}, {"label": 1, "class_name": "dog"}]
    both = shards(tmp_path / "both", pictures, with_both, "json")
    assert load_dataset(both).classnames == ("cat", "dog")
    assert load_dataset(both, label_column="label").classnames == ("0", "1")
    assert load_dataset(shards(tmp_path / "txt", pictures, ["cat", "dog"], "txt")).classnames == ("cat", "dog")


def test_parts_come_from_the_names_of_all_shards(tmp_path: Path, pictures: list[bytes]) -> None:
    for part, some in (("train", pictures[:8]), ("valid", pictures[8:14]), ("test", pictures[14:])):
        shards(tmp_path / "own", some, ["cat", "dog"], name=f"{part}")
    dataset = load_dataset(str(tmp_path / "own" / "*.tar"))
    assert ({part: len(items) for part, items in dataset.partitions.items()}, dataset.split) == (
        {"train": 8, "val": 6, "test": 6},
        "given",
    )
    two = load_dataset(str(tmp_path / "own" / "{train,valid}-000.tar"))
    assert two.split.startswith("60/20/20")
    assert two.notes[0] == "there is no test part; the images of train and val are split 60/20/20"
    shards(tmp_path / "own", pictures[:2], ["cat", "dog"], name="other")
    assert load_dataset(str(tmp_path / "own" / "*-000.tar")).split.startswith("60/20/20")


def test_parts_may_be_folders_with_shards_of_the_same_name(tmp_path: Path, pictures: list[bytes]) -> None:
    shards(tmp_path / "train", pictures[:8], ["cat", "dog"])
    shards(tmp_path / "test", pictures[8:16], ["cat", "dog"])
    dataset = load_dataset(str(tmp_path / "t*" / "x-000.tar"))
    shutil.rmtree(tmp_path / "pictures")
    assert load_dataset(str(tmp_path)).train == dataset.train
    assert [dataset.train[0].path, dataset.test[0].path] == ["train/x-000.tar/0000.png", "test/x-000.tar/0000.png"]


def test_what_is_not_used_is_counted(tmp_path: Path, pictures: list[bytes]) -> None:
    pattern = shards(tmp_path / "own", pictures, ["cat", "dog"])
    extra = {
        "a.png": pictures[0], "b.cls": b"cat", "c.png": pictures[1], "c.cls": b" -1", "d.npy": b"x", "noname": b"x",
        "e.mask.png": pictures[3], "e.png": pictures[2], "e.cls": b"cat", "e.txt": b"a caption",
        "__MACOSX/._e.png": b"",
    }  # fmt: skip
    tar_of(tmp_path / "own" / "x-003.tar", extra)
    dataset = load_dataset(pattern.replace("002", "003"))
    assert dataset.notes[0] == (
        "8 files not used: 2 images without a label, 1 without a usual suffix, 1 .npy, 1 further images of a sample, "
        "1 labels without an image, 1 .cls, 1 of other kinds"
    )
    assert "x-003.tar/e.png" in {item.path for item in (*dataset.train, *dataset.val, *dataset.test)}


@pytest.mark.parametrize(
    ("suffix", "label", "said"),
    [
        ("json", "[1]", "0000.json is not a JSON object"),
        ("json", "{", "0000.json is not JSON"),
        ("json", '{"label": [1, 2]}', "the label is '.1, 2.', expected a number or a name"),
        ("cls", "x" * 300, "is no class name .a caption"),
        ("cls", "7", "label 7, expected 0 to 1"),
        ("cls", b"\xff\xfe", "0000.cls is no text"),
    ],
)
def test_a_label_that_cannot_be_used_is_named(
    tmp_path: Path, pictures: list[bytes], suffix: str, label: str | bytes, said: str
) -> None:
    (tmp_path / "classnames.txt").write_text("cat\ndog")
    content = label if isinstance(label, bytes) else label.encode()
    tar_of(tmp_path / "x.tar", {"0000.png": pictures[0], f"0000.{suffix}": content})
    with pytest.raises(DatasetError, match=rf"x.tar/.*{said}") as raised:
        load_dataset(str(tmp_path / "x.tar"))
    assert "\n" not in str(raised.value)


def test_minus_one_is_no_label_with_and_without_names(tmp_path: Path, pictures: list[bytes]) -> None:
    pattern = shards(tmp_path / "own", pictures, [0, 1, -1])
    for names in (None, "cat\ndog"):
        if names is not None:
            (tmp_path / "own" / "classnames.txt").write_text(names)
        dataset = load_dataset(pattern)
        assert "12 files not used: 6 .cls, 6 images without a label" in dataset.notes
        assert len(dataset.classnames) == 2


def test_shards_without_any_label_say_what_was_found(tmp_path: Path, pictures: list[bytes]) -> None:
    pattern = shards(tmp_path / "own", pictures, [{"width": 7}], "json")
    with pytest.raises(DatasetError, match="has no image with a label, .*; 40 files not used: 20 .json, 20 images"):
        load_dataset(pattern)
    with pytest.raises(OptionError, match="has no column of paths"):
        load_dataset(pattern, path_column="x")


def test_captions_are_no_classes(tmp_path: Path, pictures: list[bytes]) -> None:
    many = [*pictures, *(one + b"x" for one in pictures)]
    pattern = shards(tmp_path / "own", many, [f"picture {number}" for number in range(40)], "txt")
    with pytest.raises(DatasetError, match="seem to be captions"):
        load_dataset(pattern)


def test_missing_and_damaged_shards_are_named(tmp_path: Path, pictures: list[bytes]) -> None:
    pattern = shards(tmp_path / "own", pictures, ["cat", "dog"])
    (tmp_path / "own" / "x-001.tar").unlink()
    with pytest.raises(DatasetError, match=r"x-001.tar does not exist; check the pattern"):
        load_dataset(pattern)
    (tmp_path / "own" / "x-001.tar").write_text("no archive")
    with pytest.raises(DatasetError, match=r"x-001.tar is not an intact tar archive"):
        load_dataset(pattern)
    with pytest.raises(DatasetError, match="no file matches"):
        load_dataset(str(tmp_path / "none-*.tar"))
    with pytest.raises(DatasetError, match="is an address; download the files"):
        load_dataset("https://example.org/x-{000..002}.tar")


def test_patterns(tmp_path: Path) -> None:
    for name in ("a-8.tar", "a-9.tar", "a-10.tar", "b.tar", "a[1].tar"):
        (tmp_path / name).touch()
    here = str(tmp_path)
    assert [path.name for path in shards_of(f"{here}/a-{{8..10}}.tar")] == ["a-8.tar", "a-9.tar", "a-10.tar"]
    assert [path.name for path in shards_of(f"{here}/{{b,a-9}}.tar")] == ["b.tar", "a-9.tar"]
    assert [path.name for path in shards_of(f"{here}/a-*.tar::{here}/b.tar")] == [
        "a-10.tar", "a-8.tar", "a-9.tar", "b.tar",
    ]  # fmt: skip
    assert not is_pattern(f"{here}/a[1].tar")
    for typed in ("x-{0..999999999}.tar", "x-{0..9999}{0..9999}.tar"):
        with pytest.raises(DatasetError, match="names more than 100000 shards"):
            shards_of(typed)
    assert [pattern_name(typed) for typed in ("d/birds-{0..3}.tar", "d/*.tar")] == ["birds", "d"]
    names = ("train-0.tar", "VAL_0.tar", "validation.tar", "test0.tar")
    assert parts_of([Path("/x") / name for name in names]) == ["train", "val", "val", "test"]
    for other in ("trainer-0.tar", "x-train.tar"):
        assert parts_of([Path("/x/train-0.tar"), Path("/x") / other]) == ["", ""]
    assert parts_of([Path("/x/train/0.tar"), Path("/x/test/0.tar")]) == ["train", "test"]
    assert parts_of([Path("/x/tests/0.tar"), Path("/x/test/1.tar")]) == ["", ""]
    assert parts_of([Path("/x/test/0.tar"), Path("/x/test/1.tar")]) == ["", ""]


def test_samples_are_told_from_class_folders() -> None:
    assert are_samples(["0.jpg", "0.cls"])
    assert are_samples(["0.jpg", "0.json"])
    assert are_samples(["a/0.jpg", "a/0.cls"])
    assert not are_samples(["cat/0.jpg", "cat/0.json", "dog/0.jpg"])
    assert not are_samples(["cat/0.jpg", "classes.txt"])


def test_what_webdataset_writes_is_read_as_it_reads_it(tmp_path: Path, pictures: list[bytes]) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(str(tmp_path / "own-%06d.tar"), maxcount=7, verbose=0) as writer:
        for number, picture in enumerate(pictures):
            writer.write({"__key__": f"sample/{number:05d}", "png": picture, "cls": number % 3})
    pattern = str(tmp_path / "own-{000000..000002}.tar")
    expected = {}
    for sample in webdataset.WebDataset(pattern, shardshuffle=False):
        path = f"{Path(sample['__url__']).name}/{sample['__key__']}.png"
        expected[path] = (int(sample["cls"]), sample["png"])
    dataset = load_dataset(pattern)
    items = [item for part in dataset.partitions.values() for item in part]
    assert {item.path: (item.label, dataset.source.content(item.path)) for item in items} == expected  # type: ignore[attr-defined]
    assert len(expected) == 20


texts = st.binary(max_size=30) | st.text(max_size=30).map(str.encode) | st.integers().map(lambda number: b"%d" % number)
values = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.lists(st.integers(), max_size=2)
)
objects = st.dictionaries(st.sampled_from(["label", "class", "cls", "x"]), values, max_size=3).map(json.dumps)
labels = st.tuples(st.sampled_from(["cls", "json", "txt"]), texts | objects.map(str.encode))


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.lists(labels, min_size=1, max_size=6), st.none() | st.binary(max_size=30))
def test_any_label_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, samples: list[tuple[str, bytes]], names: bytes | None
) -> None:
    folder = tmp_path_factory.getbasetemp() / "any-label"
    folder.mkdir(exist_ok=True)
    (folder / "classnames.txt").unlink(missing_ok=True)
    if names is not None:
        (folder / "classnames.txt").write_bytes(names)
    contents = {}
    for number, (suffix, content) in enumerate(samples):
        contents |= {f"{number}.png": b"x", f"{number}.{suffix}": content}
    tar_of(folder / "x.tar", contents)
    try:
        dataset = load_dataset(str(folder / "x.tar"))
    except TaskresError as error:
        assert "\n" not in str(error)
    else:
        used = sum(map(len, dataset.partitions.values()))
        unlabelled = [note for note in dataset.notes if "images without a label" in note]
        assert used == len(samples) or unlabelled
