"""What hypothesis makes up as lists and exports is used, counted, or refused in one line; no path leads outside."""

import csv
import json
import re
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskres_cache.datasets import Dataset, load_dataset
from tests.conftest import save_image
from tests.test_properties import as_json, examples, texts, valid_or_refused_in_one_line, values

PARTS = ("train", "val", "test")
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32")
names = st.sampled_from(["a.png", "b/c.JPG", "d", "e.pdf", "./a.png", "b/../f.png", r"b\g.png", "ü .webp"])
hostile = st.sampled_from(
    ["../x.png", "/etc/x.png", "b/../../x.png", r"..\x.png", r"C:\x.png", "//h/x.png", "s3://b/x.png"]
)
paths = names | hostile | texts
labels = st.sampled_from(["cat", "dog", "3", "3.0", ""]) | texts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the image that every list names."""
    made = tmp_path_factory.mktemp("lists") / "deep" / "er"
    save_image(made / "a.png", 1, (4, 4))
    return made


def check(file: Path) -> list[Dataset]:
    """Return the data set of a file if it is not refused; all paths are below the folder."""
    found: list[Dataset] = []
    valid_or_refused_in_one_line(lambda: found.append(load_dataset(str(file))), file.stat().st_size)
    for dataset in found:
        for item in (item for items in dataset.partitions.values() for item in items):
            assert not PurePosixPath(item.path).is_absolute()
            assert ".." not in PurePosixPath(item.path).parts
            assert "\0" not in item.path
    return found


@examples
@given(content=st.binary(max_size=300), name=st.sampled_from(["x.csv", "x.tsv", "x.jsonl", "x.json"]))
def test_any_bytes(content: bytes, name: str, folder: Path) -> None:
    (folder / name).write_bytes(content)
    check(folder / name)


@examples
@given(
    rows=st.lists(st.tuples(paths, labels, st.sampled_from([*PARTS, "", "tset"])), max_size=8),
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
    header=st.booleans(),
    encoding=st.sampled_from(ENCODINGS),
)
def test_any_rows(rows: list, delimiter: str, header: bool, encoding: str, folder: Path) -> None:
    stream = StringIO()
    first = [("path", "label", "split")] if header else []
    csv.writer(stream, delimiter=delimiter).writerows([*first, ("a.png", "cat", "train"), *rows])
    (folder / "rows.csv").write_bytes(stream.getvalue().encode(encoding, "replace"))
    check(folder / "rows.csv")


@examples
@given(
    rows=st.lists(st.tuples(names, st.sampled_from(["cat", "dog"]), st.sampled_from(["train", "test"])), max_size=30),
    name=st.sampled_from(["count.csv", "count.jsonl", "count.json"]),
)
def test_every_row_is_used_or_counted(rows: list, name: str, folder: Path) -> None:
    whole = [("a.png", "cat", "train"), ("x.png", "dog", "train"), ("y.png", "dog", "test"), *rows]
    objects = [dict(zip(("path", "label", "split"), row, strict=True)) for row in whole]
    lines = "\n".join(map(json.dumps, objects)) if name.endswith("l") else json.dumps(objects)
    if name.endswith("csv"):
        lines = "\n".join(",".join(row) for row in (("path", "label", "split"), *whole))
    (folder / name).write_text(lines)
    for dataset in check(folder / name):
        counted = [re.match(r"(\d+) (?:files? not used|rows? repeat)", note) for note in dataset.notes]
        unused = sum(int(match[1]) for match in counted if match)
        assert sum(map(len, dataset.partitions.values())) + unused == len(whole)


identifiers = st.integers(0, 4) | st.text(max_size=2) | values


@examples
@given(data=st.data())
def test_any_coco(data: st.DataObject, folder: Path) -> None:
    image = st.fixed_dictionaries({"id": identifiers, "file_name": paths | values}, optional={"split": values})
    shown = st.fixed_dictionaries({"image_id": identifiers, "category_id": identifiers})
    category = st.fixed_dictionaries({"id": identifiers, "name": labels | values})
    content: dict[str, Any] = {
        "images": [{"id": 100, "file_name": "a.png"}, *data.draw(st.lists(image | values, max_size=4))],
        "annotations": [{"image_id": 100, "category_id": 9}, *data.draw(st.lists(shown | values, max_size=5))],
        "categories": [{"id": 9, "name": "cat"}, *data.draw(st.lists(category | values, max_size=3))],
    }
    (folder / "coco.json").write_text(as_json(content))
    check(folder / "coco.json")


@examples
@given(data=st.data())
def test_any_label_studio(data: st.DataObject, folder: Path) -> None:
    value = st.fixed_dictionaries({"choices": st.lists(labels | values, max_size=2) | values})
    result = st.fixed_dictionaries({"type": st.just("choices"), "from_name": st.just("kind"), "value": value | values})
    annotation = st.fixed_dictionaries(
        {"result": st.lists(result | values, max_size=2)}, optional={"ground_truth": values}
    )
    address = paths.map("/data/upload/{}".format) | paths.map("/data/local-files/?d={}".format) | paths | values
    task = st.fixed_dictionaries(
        {"data": st.fixed_dictionaries({"image": address}), "annotations": st.lists(annotation, max_size=2)},
        optional={"id": values},
    )
    sure = {"type": "choices", "from_name": "kind", "value": {"choices": ["cat"]}}
    first = {"id": 1, "data": {"image": "a.png"}, "annotations": [{"result": [sure]}]}
    (folder / "tasks.json").write_text(as_json([first, *data.draw(st.lists(task | values, max_size=4))]))
    check(folder / "tasks.json")
    record = st.fixed_dictionaries(
        {"image": address, "id": values, "annotation_id": values, "kind": labels | value | values}
    )
    minimal = [{"image": "a.png", "id": 1, "annotation_id": 1, "kind": "cat"}, *data.draw(st.lists(record, max_size=4))]
    (folder / "min.json").write_text(as_json(minimal))
    check(folder / "min.json")
