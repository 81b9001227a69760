"""Exports of Label Studio and COCO: one class per image, all else counted."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from taskres_cache.datasets import Dataset, load_dataset
from taskres_cache.errors import DatasetError, OptionError
from tests.conftest import save_image

KINDS = ("cat", "dog, small")


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """The media folder of a server: uploaded files have a prefix."""
    for number in range(20):
        save_image(tmp_path / "media" / "upload" / "1" / f"0123abcd-{number}.png", number, (8, 8))
    return tmp_path / "media"


def annotation(*choices: str, **known: Any) -> dict[str, Any]:
    """Return an annotation as Label Studio exports it."""
    value = {"type": "choices", "from_name": "kind", "to_name": "image", "value": {"choices": list(choices)}}
    return {"result": [value] if choices else [], "was_cancelled": False, "ground_truth": False, "id": 1, **known}


def tasks() -> list[dict[str, Any]]:
    """Return 20 tasks: 4, 5, 6 and 7 have no single choice, 8 has a ground truth, 2 has the same choice twice."""
    found = [
        {
            "id": number + 100,
            "data": {"image": f"/data/upload/1/0123abcd-{number}.png"},
            "annotations": [annotation(KINDS[number % 2])],
            "file_upload": f"0123abcd-{number}.png",
            "meta": {},
        }
        for number in range(20)
    ]
    found[2]["annotations"] *= 2
    found[4]["annotations"] += [annotation(KINDS[1])]
    found[5]["annotations"] = [annotation(*KINDS)]
    found[6]["annotations"] = []
    found[7]["annotations"] = [annotation(KINDS[0], was_cancelled=True)]
    found[8]["annotations"] = [annotation(KINDS[1]), annotation(KINDS[0], ground_truth=True)]
    return found


def records() -> list[dict[str, Any]]:
    """Return the same tasks as label_studio_sdk's converter writes JSON-MIN: one record per annotation."""
    found = []
    for task in tasks():
        given = [one for one in task["annotations"] if not one["was_cancelled"]]
        for one in given or ([{"result": [], "id": None}] if not task["annotations"] else []):
            choices = one["result"][0]["value"]["choices"] if one["result"] else []
            kind = {"kind": choices[0] if len(choices) == 1 else {"choices": choices}} if choices else {}
            about = {"annotator": 1, "annotation_id": one["id"], "lead_time": 1.5}
            found.append({"image": task["data"]["image"], "id": task["id"], **kind, **about})
    return found


def as_csv(file: Path) -> None:
    columns = ["annotation_id", "annotator", "id", "image", "kind", "lead_time"]
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns, quoting=csv.QUOTE_NONNUMERIC)
        writer.writeheader()
        for record in records():
            kind = record.get("kind", "")
            text = kind if isinstance(kind, str) else json.dumps(kind, separators=(",", ":"))
            writer.writerow({**record, "kind": text})


def export(folder: Path, name: str) -> str:
    if name.endswith(".csv"):
        as_csv(folder / name)
    else:
        (folder / name).write_text(json.dumps(tasks() if name == "export.json" else records()))
    return str(folder / name)


def labels(dataset: Dataset) -> dict[str, str]:
    items = [item for part in dataset.partitions.values() for item in part]
    return {item.path: dataset.classnames[item.label] for item in items}


@pytest.mark.parametrize("name", ["export.json", "min.json", "export.csv"])
def test_label_studio(media: Path, name: str) -> None:
    dataset = load_dataset(export(media.parent, name), media)
    unused = {4, 5, 6, 7} if name == "export.json" else {4, 5, 6, 7, 8}  # the other forms do not mark ground truth
    prefix = "upload/1/0123abcd-"
    assert labels(dataset) == {f"{prefix}{number}.png": KINDS[number % 2] for number in set(range(20)) - unused}
    (note,) = (note for note in dataset.notes if "not used" in note)
    if name == "export.json":
        assert note.startswith("4 tasks not used: 2 without a choice")
    else:  # a task that was only cancelled is not in the file
        assert note.startswith("4 tasks not used: 2 with different choices of annotators")
    assert dataset.source.read(dataset.train[0].path).size == (8, 8)


def test_files_of_label_studio_are_found_where_users_have_them(media: Path) -> None:
    typed = export(media.parent, "export.json")
    (media / "upload" / "1").rename(media / "1")
    assert "1/0123abcd-0.png" in labels(load_dataset(typed, media))
    assert "0123abcd-0.png" in labels(load_dataset(typed, media / "1"))
    for number in range(20):
        (media / "1" / f"0123abcd-{number}.png").rename(media / "1" / f"{number}.png")
    assert "0.png" in labels(load_dataset(typed, media / "1"))
    listed = json.loads(Path(typed).read_text().replace("/data/upload/1/0123abcd-", "/data/local-files/?d=1%2F"))
    Path(typed).write_text(json.dumps(listed))
    assert "1/0.png" in labels(load_dataset(typed, media))
    listed[0]["data"]["image"] = "/data/local-files/?d=../secret.png"
    Path(typed).write_text(json.dumps(listed))
    with pytest.raises(DatasetError, match=r"task 100: '\.\./secret\.png' is outside of"):
        load_dataset(typed, media)


def test_several_questions_need_a_choice(media: Path) -> None:
    listed = tasks()
    for number, task in enumerate(listed):
        other = {"type": "choices", "from_name": "light", "value": {"choices": [("day", "night")[number % 2]]}}
        task["annotations"] = [{"result": [*annotation(KINDS[number % 2])["result"], other]}]
    typed = media.parent / "two.json"
    typed.write_text(json.dumps(listed))
    with pytest.raises(DatasetError, match="several questions, 'kind', 'light'; choose one with --label-column"):
        load_dataset(str(typed), media)
    assert load_dataset(str(typed), media, label_column="light").classnames == ("day", "night")
    with pytest.raises(OptionError, match="unknown question 'lihgt'; did you mean 'light'"):
        load_dataset(str(typed), media, label_column="lihgt")
    for task in listed:
        task["annotations"][0]["result"] = [{"type": "rectanglelabels", "from_name": "box", "value": {}}]
    typed.write_text(json.dumps(listed))
    with pytest.raises(DatasetError, match="has no choices, expected a classification of images"):
        load_dataset(str(typed), media)


def coco() -> dict[str, Any]:
    """Return 20 images of which 18 and 19 have no single category; the category `animal` has no image."""
    images = [{"id": number, "file_name": f"upload/1/0123abcd-{number}.png", "width": 8} for number in range(20)]
    shown = [(number, number % 2 + 1) for number in range(19)] + [(18, 2), (0, 1)]
    annotations = [
        {"id": place, "image_id": image, "category_id": category, "bbox": [0, 0, 8, 8]}
        for place, (image, category) in enumerate(shown)
    ]
    names = enumerate(("animal", *KINDS))
    categories = [{"id": place, "name": name, "supercategory": "animal"} for place, name in names]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def test_coco_with_one_category_per_image(media: Path) -> None:
    typed = media / "_annotations.coco.json"
    typed.write_text(json.dumps(coco()))
    dataset = load_dataset(str(typed))
    assert labels(dataset) == {f"upload/1/0123abcd-{number}.png": KINDS[number % 2] for number in range(18)}
    assert dataset.name == "_annotations"
    assert "2 images not used: 1 with several categories, 1 without a category" in dataset.notes
    assert "categories without an image are left out: 'animal'" in dataset.notes


def test_a_coco_file_per_part(media: Path) -> None:
    """Paths are relative to the file that lists them, as in exports with a folder per part."""
    for part, first in (("train", 0), ("valid", 12), ("test", 15)):
        folder = media / part
        folder.mkdir()
        content = coco()
        kept = {number for number in range(18) if number >= first and number < {0: 12, 12: 15, 15: 18}[first]}
        content["images"] = [{"id": number, "file_name": f"{number}.png"} for number in kept]
        content["annotations"] = [one for one in content["annotations"] if one["image_id"] in kept]
        for number in kept:
            (media / "upload" / "1" / f"0123abcd-{number}.png").rename(folder / f"{number}.png")
        (folder / "_annotations.coco.json").write_text(json.dumps(content))
    dataset = load_dataset(str(media / "{train,valid,test}" / "_annotations.coco.json"))
    assert {part: len(items) for part, items in dataset.partitions.items()} == {"train": 12, "val": 3, "test": 3}
    assert labels(dataset)["valid/13.png"] == KINDS[1]
    assert dataset.source.location == media


@pytest.mark.parametrize(
    ("place", "entry", "said"),
    [
        ("annotations", {"image_id": 99, "category_id": 1}, "annotations[21]: image_id 99 is not among the images"),
        (
            "annotations",
            {"image_id": 1, "category_id": 9},
            "annotations[21]: category_id 9 is not among",
        ),
        ("images", {"id": 3, "file_name": "a.png"}, "images[20]: id 3 is used twice"),
        ("categories", {"id": 1, "name": "cow"}, "categories[3]: id 1 is used twice"),
        ("categories", {"id": 7}, "Object missing required field `name` - at `$.categories[3]`"),
        ("images", {"id": [], "file_name": "a.png"}, "at `$.images[20].id`"),
        ("images", 7, "at `$.images[20]`"),
    ],
)
def test_a_bad_entry_of_coco_is_refused_with_its_place(media: Path, place: str, entry: object, said: str) -> None:
    content = coco()
    content[place].append(entry)
    (media / "a.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError) as raised:
        load_dataset(str(media / "a.json"))
    assert said in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_a_path_of_coco_never_leads_outside(media: Path) -> None:
    content = coco()
    content["images"][1]["file_name"] = "../../secret.png"
    (media / "a.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=r"images\[1\]: '\.\./\.\./secret\.png' is outside of"):
        load_dataset(str(media / "a.json"))


def test_a_plain_list_of_objects_in_json(media: Path) -> None:
    rows = [{"file": f"upload/1/0123abcd-{number}.png", "class": number % 2} for number in range(20)]
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (media / "a.json").write_bytes(json.dumps(rows).encode(encoding))
        assert load_dataset(str(media / "a.json")).classnames == ("0", "1")
    rows[3]["class"] = None
    (media / "a.json").write_text(json.dumps(rows))
    with pytest.raises(DatasetError, match="entry 3: no class"):
        load_dataset(str(media / "a.json"))


@pytest.mark.parametrize("content", ["", "7", "{}", "[7]", '{"images": []}', "[" * 90_000, "nonsense", "[]", '"x"'])
def test_other_json_is_refused_in_one_line(media: Path, content: str) -> None:
    (media / "a.json").write_text(content)
    with pytest.raises(DatasetError, match=r"a\.json") as raised:
        load_dataset(str(media / "a.json"))
    assert len(str(raised.value).splitlines()) == 1
