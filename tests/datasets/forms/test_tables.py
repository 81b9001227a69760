"""Data sets as `datasets` writes them, tables of other programs, and names on the hub."""

import io
import json
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from taskres_cache.datasets import load_dataset
from taskres_cache.datasets.forms.hugging_face import HubName, hub_name
from taskres_cache.datasets.images import ABSENT, PackedSource
from taskres_cache.datasets.packed import tables
from taskres_cache.errors import DatasetError, UnknownNameError
from tests.datasets.forms.packing import class_folders

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub-cache")
    datasets.disable_progress_bars()


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def table_of(count: int, seed: int = 0, **columns: Any) -> Any:
    """Return a `datasets` data set of images with alternating labels."""
    content = {
        "image": [{"bytes": picture(seed + number), "path": None} for number in range(count)],
        "label": [number % 2 for number in range(count)],
        **columns,
    }
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["red cat", "dog"])}
    others = {name: datasets.Value("string") for name in columns if name not in kinds}
    return datasets.Dataset.from_dict(content, features=datasets.Features({**kinds, **others}))


def three_parts() -> Any:
    sizes = {"train": 12, "validation": 6, "test": 8}
    return datasets.DatasetDict({part: table_of(size, 100 * row) for row, (part, size) in enumerate(sizes.items())})


def check_three_parts(typed: str) -> Any:
    dataset = load_dataset(typed)
    assert {part: len(items) for part, items in dataset.partitions.items()} == {"train": 12, "val": 6, "test": 8}
    assert (dataset.classnames, dataset.split) == (("dog", "red cat"), "given")
    assert isinstance(dataset.source, PackedSource)
    for row, items in enumerate(dataset.partitions.values()):
        for number, item in enumerate(items):
            assert dataset.source.content(item.path) == picture(100 * row + number)
            assert dataset.classnames[item.label] == ["red cat", "dog"][number % 2]
    copy = pickle.loads(pickle.dumps(dataset.source))
    last = dataset.test[-1].path
    assert copy.read(last).tobytes() == dataset.source.read(last).tobytes()
    assert copy.stamp(last) == dataset.source.stamp(last) != dataset.source.stamp(dataset.test[0].path)
    return dataset


def test_what_save_to_disk_writes(tmp_path: Path) -> None:
    three_parts().save_to_disk(str(tmp_path / "own"), num_shards={"train": 3, "validation": 1, "test": 2})
    dataset = check_three_parts(str(tmp_path / "own"))
    assert (dataset.name, dataset.train[5].path) == ("own", "train/5")
    single = load_dataset(str(tmp_path / "own" / "train"))
    assert single.split.startswith("60/20/20")
    assert sum(map(len, single.partitions.values())) == 12


@pytest.mark.parametrize("name", ["data/{}-00000-of-00001.parquet", "{}/0000.parquet", "{}.parquet"])
def test_folders_of_parquet_files(tmp_path: Path, name: str) -> None:
    for part, table in three_parts().items():
        file = tmp_path / "own" / name.format(part)
        file.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(str(file), batch_size=5)  # several row groups
    check_three_parts(str(tmp_path / "own"))


def test_row_groups_are_read_in_any_order_and_few_are_kept(tmp_path: Path) -> None:
    table_of(40).to_parquet(str(tmp_path / "own.parquet"), batch_size=4)
    source = load_dataset(str(tmp_path / "own.parquet")).source
    for number in np.random.default_rng(0).permutation(40).tolist():
        assert source.content(f"own.parquet/{number}") == picture(number)  # type: ignore[attr-defined]
    for path in ("own.parquet/40", "own.parquet/-1", "own.parquet/x", "other/1"):
        assert source.stamp(path) == ABSENT
    groups = source.tables["own.parquet"][0]._file.get()  # type: ignore[attr-defined]
    assert len(groups._kept) == tables.GROUPS_KEPT


def test_a_changed_file_has_other_stamps(tmp_path: Path) -> None:
    file = tmp_path / "own.parquet"
    table_of(20).to_parquet(str(file))
    before = load_dataset(str(file)).source.stamp("own.parquet/3")
    assert load_dataset(str(file)).source.stamp("own.parquet/3") == before
    time.sleep(0.02)
    table_of(20, 7).to_parquet(str(file))
    assert load_dataset(str(file)).source.stamp("own.parquet/3") != before


def test_tables_of_other_programs(tmp_path: Path) -> None:
    pictures = [picture(number) for number in range(20)]
    content = {"img": pictures, "species": ["cat", "dog"] * 10, "split": ["train"] * 12 + ["test"] * 8}
    parquet.write_table(pyarrow.table(content), tmp_path / "plain.parquet")
    dataset = load_dataset(str(tmp_path / "plain.parquet"))
    assert (dataset.classnames, len(dataset.train), len(dataset.test)) == (("cat", "dog"), 12, 8)
    assert load_dataset(str(tmp_path / "plain.parquet"), split_column="").split.startswith("60/20/20")
    with pyarrow.OSFile(str(tmp_path / "plain.arrow"), "wb") as sink:
        table = pyarrow.table(content)
        with pyarrow.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    assert load_dataset(str(tmp_path / "plain.arrow")).source.content("plain.arrow/3") == pictures[3]  # type: ignore[attr-defined]


def test_columns_are_asked_for_where_several_are_possible(tmp_path: Path) -> None:
    pictures = [picture(number) for number in range(20)]
    content = {"left": pictures, "right": pictures, "fine": [0, 1] * 10, "coarse": ["a", "b"] * 10}
    parquet.write_table(pyarrow.table(content), tmp_path / "own.parquet")
    typed = str(tmp_path / "own.parquet")
    with pytest.raises(DatasetError, match="has image columns 'left', 'right'; name .* with --path-column"):
        load_dataset(typed)
    with pytest.raises(DatasetError, match="has no label column, but 'left', .*; name .* with --label-column"):
        load_dataset(typed, path_column="left")
    assert load_dataset(typed, path_column="left", label_column="coarse").classnames == ("a", "b")
    assert load_dataset(typed, path_column="right", label_column="fine").classnames == ("0", "1")
    with pytest.raises(UnknownNameError, match="'fin'"):
        load_dataset(typed, path_column="left", label_column="fin")


def test_parts_without_labels_or_with_other_names_are_counted(tmp_path: Path) -> None:
    several = three_parts()
    several["test"] = table_of(8, 200, label=[-1] * 8)
    several["extra"] = table_of(3, 300)
    several.save_to_disk(str(tmp_path / "own"))
    dataset = load_dataset(str(tmp_path / "own"))
    assert dataset.notes[:3] == (
        "3 rows of the split 'extra' are not used",
        "there is no test part; the images of train and val are split 60/20/20",
        "8 rows not used: without a label",
    )
    assert sum(map(len, dataset.partitions.values())) == 18


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("kept", [0, 3, 200, -50])
def test_damaged_files_are_named_in_one_line(tmp_path: Path, suffix: str, kept: int) -> None:
    three_parts()["train"].to_parquet(str(tmp_path / "own.parquet"))
    three_parts()["train"].save_to_disk(str(tmp_path / "saved"))
    whole = next((tmp_path / "saved").glob("*.arrow")) if suffix == ".arrow" else tmp_path / "own.parquet"
    (tmp_path / f"cut{suffix}").write_bytes(whole.read_bytes()[:kept])
    with pytest.raises(DatasetError, match=f"could not read the table .*cut{suffix}") as raised:
        load_dataset(str(tmp_path / f"cut{suffix}"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "listing", ["{", "[]", '{"_data_files": []}', '{"_data_files": [{"filename": "../x.arrow"}]}', '{"_data_files": 3}']
)
def test_a_listing_that_leads_outside_or_is_damaged_is_refused(tmp_path: Path, listing: str) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "state.json").write_text(listing)
    (tmp_path / "own" / "dataset_info.json").write_text("{}")
    with pytest.raises(DatasetError, match="save the data set again with save_to_disk"):
        load_dataset(str(tmp_path / "own"))


def test_a_row_with_only_a_path_reads_no_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture(1))
    content = {"image": [{"bytes": None, "path": str(secret)}] * 20, "label": ["a", "b"] * 10}
    parquet.write_table(pyarrow.table(content), tmp_path / "own.parquet")
    with pytest.raises(OSError, match="only the path of a file elsewhere"):
        load_dataset(str(tmp_path / "own.parquet")).source.read("own.parquet/0")


def test_labels_of_other_types_are_refused(tmp_path: Path) -> None:
    content = {"image": [picture(1)], "label": [[1, 2]]}
    parquet.write_table(pyarrow.table(content), tmp_path / "own.parquet")
    with pytest.raises(DatasetError, match="row 0: the label is '.1, 2.', expected a number or a name"):
        load_dataset(str(tmp_path / "own.parquet"))


def test_a_table_without_any_label_is_refused(tmp_path: Path) -> None:
    table_of(4, label=[-1] * 4).to_parquet(str(tmp_path / "own.parquet"))
    with pytest.raises(DatasetError, match="has no row with a label in the column 'label'"):
        load_dataset(str(tmp_path / "own.parquet"))


def test_names_on_the_hub() -> None:
    assert hub_name("hf:cifar10") == HubName("cifar10")
    assert hub_name("hf:uoft-cs/cifar100/cifar100") == HubName("uoft-cs/cifar100", "cifar100")
    assert hub_name("hf:./own") == HubName(str(Path("own").absolute()), is_local=True)
    for typed in ("hf:", "hf:a//b", "hf:a/b/c/d"):
        with pytest.raises(DatasetError, match="is no name on the hub"):
            hub_name(typed)


def test_a_local_builder_goes_the_way_of_the_hub(tmp_path: Path) -> None:
    pets = class_folders(tmp_path / "pets")
    by_builder, by_folder = load_dataset(f"hf:{pets}"), load_dataset(str(pets))
    assert by_builder.classnames == by_folder.classnames
    assert sum(map(len, by_builder.partitions.values())) == 16
    images = {by_builder.source.content(item.path) for items in by_builder.partitions.values() for item in items}  # type: ignore[attr-defined]
    assert images == {file.read_bytes() for file in pets.rglob("*.png")}
    assert by_builder.source.reference == f"hf:{pets}"  # type: ignore[attr-defined]


def test_a_data_set_of_the_hub_by_its_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    three_parts().save_to_disk(str(tmp_path / "own"))
    asked = []

    def loaded(*arguments: Any) -> Any:
        asked.append(arguments)
        return datasets.load_from_disk(str(tmp_path / "own"))

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(datasets, "load_dataset", loaded)
    dataset = check_three_parts("hf:someone/pets/small")
    assert (asked, dataset.name) == ([("someone/pets", "small")], "pets-small")


def test_without_a_network_it_fails_soon_and_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(
        DatasetError, match="could not reach the Hugging Face hub .*hf:none/none is not on this"
    ) as raised:
        load_dataset("hf:none/none")
    assert time.monotonic() - started < 15
    assert "\n" not in str(raised.value)
    assert not datasets.config.HF_HUB_OFFLINE


def test_what_was_downloaded_before_is_read_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pets = class_folders(tmp_path / "pets")
    cache = tmp_path / "hub-cache"
    load_dataset(f"hf:{pets}")  # builds the files that a download would leave, under another name
    (cache / "pets").rename(cache / "someone___pets")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    dataset = load_dataset("hf:someone/pets")
    assert (dataset.name, sum(map(len, dataset.partitions.values()))) == ("pets", 16)


def test_a_damaged_json_of_several_parts(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "dataset_dict.json").write_text(json.dumps({"splits": ["../up"]}))
    with pytest.raises(DatasetError, match="has no table"):
        load_dataset(str(tmp_path / "own"))


def test_a_folder_of_class_folders_stays_one(tmp_path: Path) -> None:
    pets = class_folders(tmp_path / "pets")
    table_of(4).to_parquet(str(pets / "cat" / "stray.parquet"))
    table_of(4).to_parquet(str(pets / "stray.parquet"))
    (pets / "state.json").write_text("{}")
    dataset = load_dataset(str(pets))
    assert (dataset.classnames, dataset.notes) == (("cat", "dog"), ("3 files not used: 2 .parquet, 1 .json",))


DAMAGING = """
import random, sys
from pathlib import Path
from taskres_cache.datasets import load_dataset
from taskres_cache.errors import TaskresError

whole, changed = Path(sys.argv[1]), Path(sys.argv[2])
content = whole.read_bytes()
for seed in range(40):
    rng, damaged = random.Random(seed), bytearray(content)
    for _ in range(rng.randint(1, 6)):
        place = rng.choice((rng.randrange(len(damaged)), rng.randrange(3000), -1 - rng.randrange(3000)))
        damaged[place] = rng.randrange(256)
    changed.write_bytes(damaged)
    try:
        dataset = load_dataset(str(changed))
    except TaskresError as error:
        assert "\\n" not in str(error)
        continue
    for items in dataset.partitions.values():
        for item in items:
            try:
                dataset.source.content(item.path)
            except OSError:
                pass
"""


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_damage_anywhere_ends_neither_in_a_traceback_nor_in_a_crash(tmp_path: Path, suffix: str) -> None:
    table_of(60).to_parquet(str(tmp_path / "own.parquet"), batch_size=20)
    table_of(60).save_to_disk(str(tmp_path / "saved"))
    whole = next((tmp_path / "saved").glob("*.arrow")) if suffix == ".arrow" else tmp_path / "own.parquet"
    command = [sys.executable, "-c", DAMAGING, str(whole), str(tmp_path / f"changed{suffix}")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr[-300:]) == (0, "")


def test_a_position_outside_of_the_file_is_refused(tmp_path: Path) -> None:
    table_of(20).save_to_disk(str(tmp_path / "saved"))
    whole = next((tmp_path / "saved").glob("*.arrow")).read_bytes()
    ends = np.cumsum([len(picture(number)) for number in range(20)]).astype("<i4").tobytes()
    assert whole.count(ends) == 1
    at = whole.find(ends) + 4 * 10
    (tmp_path / "damaged.arrow").write_bytes(whole[:at] + b"\xff\xff\xff\x7f" + whole[at + 4 :])
    with pytest.raises(DatasetError, match="could not read the table .*damaged.arrow"):
        load_dataset(str(tmp_path / "damaged.arrow"))
