"""Import of files of every form, and of tables: the same cache from each, and one line for each mistake."""

import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from taskres_cache import import_arrays
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.foreign.files import read_classnames, read_files
from taskres_cache.caches.foreign.importing import ImportOptions, contents_of_arrays
from taskres_cache.caches.foreign.tables import ColumnNames, MemoryColumns, arrays_of_table
from taskres_cache.errors import ArraysError, MissingExtraError, TaskresError
from tests.conftest import Taskres, one_line

Arrays = dict[str, np.ndarray]
OPTIONS = ImportOptions("birds", shots=(1,), seeds=(1,))
NAMES = ["jay", "owl", "tit"]
COUNT, DIM = 60, 6


def vectors() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(COUNT, DIM)).astype(np.float32)


def labels() -> list[str]:
    return [NAMES[row % 3] for row in range(COUNT)]


def one_set() -> Arrays:
    return {"features": vectors(), "labels": np.array(labels())}


def same(arrays: Arrays) -> bool:
    """Return True if arrays give the cache of `one_set`."""
    found, expected = (contents_of_arrays(one, OPTIONS) for one in (arrays, one_set()))
    return found.classnames == expected.classnames and all(
        np.array_equal(getattr(found, name), getattr(expected, name))
        for name in ("labels", "partitions", "image_features")
    )


def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table(columns), path, **options)
    return path


def write_npz(folder: Path) -> list[str | Path]:
    np.savez(folder / "birds.npz", **one_set())
    return [folder / "birds.npz"]


def write_npy(folder: Path) -> list[str | Path]:
    np.save(folder / "features.npy", one_set()["features"])
    np.save(folder / "y.npy", one_set()["labels"])
    return [folder / "features.npy", f"labels={folder / 'y.npy'}"]


def write_safetensors(folder: Path) -> list[str | Path]:
    metadata = {"labels": json.dumps(labels()), "format": "np"}
    save_file({"features": vectors()}, folder / "birds.safetensors", metadata)
    return [folder / "birds.safetensors"]


def write_lists(folder: Path) -> list[str | Path]:
    columns = {"Embedding": vectors().tolist(), "label": labels()}
    return [write_parquet(folder / "lists.parquet", columns, row_group_size=7)]


def write_fixed(folder: Path) -> list[str | Path]:
    pyarrow = pytest.importorskip("pyarrow")
    rows = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors().ravel()), DIM)
    return [write_parquet(folder / "fixed.parquet", {"emb": rows, "class": labels()}, row_group_size=7)]


def write_wide(folder: Path) -> list[str | Path]:
    columns: dict[str, Any] = {f"f{number}": vectors()[:, number] for number in reversed(range(DIM))}
    return [write_parquet(folder / "wide.parquet", {"y": labels(), "row_7": list(range(COUNT)), **columns})]


@pytest.mark.parametrize("write", [write_npz, write_npy, write_safetensors, write_lists, write_fixed, write_wide])
def test_every_form_gives_the_same_cache(write: Callable[[Path], list[str | Path]], tmp_path: Path) -> None:
    assert same(read_files(write(tmp_path)))


def test_tables_in_memory() -> None:
    assert same(arrays_of_table(MemoryColumns({"embedding": list(vectors()), "label": labels()})))
    assert same(arrays_of_table(MemoryColumns({"embedding": vectors(), "label": labels()})))
    wide = {f"f{number}": vectors()[:, number] for number in range(DIM)}
    assert same(arrays_of_table(MemoryColumns({"kind": labels(), **wide}), ColumnNames(labels="kind")))


def test_a_data_frame(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"embedding": list(vectors()), "label": labels()})
    table["split"] = ["train"] * 30 + ["val"] * 12 + ["test"] * 18
    for name, changed in (("plain", table), ("category", table.astype({"label": "category"}))):
        cache = FeatureCache(import_arrays(changed, name, options=OPTIONS, cache_dir=tmp_path).path)
        assert (cache.classnames, cache.provenance.dataset) == (("jay", "owl", "tit"), name)
        assert [len(cache.rows(part)) for part in ("train", "val", "test")] == [30, 12, 18]
        assert np.array_equal(cache.image_features(cache.rows("test")), vectors()[42:])
    twice = table.copy()
    twice.columns = ["embedding", "label", "label"]
    with pytest.raises(ArraysError, match="column 'label' occurs twice; rename or drop one"):
        import_arrays(twice, "birds", cache_dir=tmp_path)


def test_text_and_class_names_from_elsewhere(tmp_path: Path) -> None:
    text = np.random.default_rng(1).normal(size=(3, DIM)).astype(np.float32)
    done = import_arrays(one_set(), "birds", classnames=["owl", "jay", "tit"], text_features=text, cache_dir=tmp_path)
    cache = FeatureCache(done.path)
    assert cache.classnames == ("owl", "jay", "tit")
    assert np.array_equal(cache.text_features, text)
    with pytest.raises(ArraysError, match="classnames is given twice"):
        import_arrays({**one_set(), "classnames": np.array(NAMES)}, "birds", classnames=NAMES, cache_dir=tmp_path)


def test_bfloat16_of_safetensors_is_exact(tmp_path: Path) -> None:
    torch, torch_files = pytest.importorskip("torch"), pytest.importorskip("safetensors.torch")
    rounded = torch.from_numpy(vectors()).bfloat16()
    torch_files.save_file({"features": rounded, "labels": torch.arange(COUNT) % 3}, tmp_path / "b.safetensors")
    read = read_files([tmp_path / "b.safetensors"])
    assert np.array_equal(read["features"], rounded.float().numpy())
    assert read["labels"].tolist() == [row % 3 for row in range(COUNT)]


def test_the_command(here: Path, taskres: Taskres) -> None:
    write_npy(here)
    (here / "names.txt").write_text("owl\njay\n\ntit\n")
    np.save(here / "text_features.npy", np.random.default_rng(1).normal(size=(3, DIM)).astype(np.float32))
    files = ("features.npy", "labels=y.npy", "text_features.npy")
    done = taskres("import", *files, "--name", "birds", "--classnames", "names.txt", "--split-seed", "3")
    assert done.status == 0, done.err
    assert "drawn by row with seed 3" in done.err
    cache = FeatureCache("cache/imported-arrays/birds.h5")
    assert (cache.classnames, cache.has_text) == (("owl", "jay", "tit"), True)
    assert "features.npy has array features, which another" in one_line(
        taskres("import", "features.npy", "features=features.npy", "--name", "birds")
    )


PARQUET: list[tuple[dict[str, Any], str]] = [
    ({"embedding": [[1.0, 2.0], [3.0]], "label": ["a", "b"]}, "column 'embedding', row 1 has 1 values, expected 2"),
    ({"embedding": [[1.0], None], "label": ["a", "b"]}, "column 'embedding', row 1 has no vector, expected 1"),
    ({"embedding": [["x"], ["y"]], "label": ["a", "b"]}, "column 'embedding' has list<.*string>, expected a list of"),
    ({"embedding": [1.0, 2.0], "label": ["a", "b"]}, "column 'embedding' has double, expected a list of numbers"),
    ({"embedding": [[1.0], [2.0]], "label": ["a", None]}, "column 'label' has no value in row 1; fill it or drop it"),
    ({"embedding": [[1.0], [2.0]], "kind": ["a", "b"]}, "has no column of labels .*has 'embedding', 'kind'"),
    ({"label": ["a", "b"]}, "has no column of features .*name it with --features-column"),
    ({"label": ["a"], "f0": [1.0], "f2": [2.0]}, "there are columns 'f0' to 'f2', but none for number 1"),
    ({"label": ["a"], "f0": [1.0], "f1": ["x"]}, "column 'f1' has values that are no numbers"),
    ({"embedding": [], "label": []}, "column 'embedding'"),
]  # fmt: skip


@pytest.mark.parametrize(("columns", "message"), PARQUET)
def test_mistakes_in_a_parquet_file(columns: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "t.parquet", columns)
    with pytest.raises(ArraysError, match=message) as error:
        read_files([file])
    assert "\n" not in str(error.value)
    with pytest.raises(ArraysError, match="has no column 'labl'; did you mean"):
        read_files([file], ColumnNames(labels="labl"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.npy", b"1,2,3", "text.npy is not a usable .npy file"),
        ("features.npy", b"1,2,3", "is not a usable .npy file"),
        ("features.npy", b"", "is not a usable .npy file"),
        ("features.npy", pickle.dumps([1]), "is not a usable .npy file"),
        ("x.safetensors", b"", "is not a usable safetensors file"),
        ("x.safetensors", b"label,path\n", "is not a usable safetensors file"),
        ("x.safetensors", b"\xff" * 20, "is not a usable safetensors file"),
    ],
)
def test_files_with_other_content(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    message = "unknown array 'text'" if name == "text.npy" else message
    with pytest.raises(ArraysError, match=message) as error:
        read_files([tmp_path / name])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", b"PAR1" + b"\0" * 20 + b"PAR1"])
def test_parquet_files_with_other_content(content: bytes, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "t.parquet").write_bytes(content)
    with pytest.raises(ArraysError, match="could not read the table") as error:
        read_files([tmp_path / "t.parquet"])
    assert "\n" not in str(error.value)


def test_a_missing_extra_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(MissingExtraError, match=r"pip install 'taskres-cache\[datasets\]'"):
        read_files([tmp_path / "t.parquet"])


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.array(labels(), dtype=object), allow_pickle=True)
    with pytest.raises(ArraysError, match="holds pickled objects, which can run code"):
        read_files([tmp_path / "labels.npy"])
    for missing in ("none.npy", "none.safetensors", "none.parquet", "none.npz"):
        with pytest.raises(ArraysError, match="does not exist"):
            read_files([tmp_path / missing])


def test_class_names_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "names.json").write_text('["a", "b"]')
    assert read_classnames(tmp_path / "names.json").tolist() == ["a", "b"]
    for name, content in (
        ("names.json", b'{"a": 1}'),
        ("names.json", b"["),
        ("n.txt", b"\xff\xfe\xff"),
        ("n.txt", b""),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ArraysError, match="expected a list of text|could not read the class names") as error:
            read_classnames(tmp_path / name)
        assert "\n" not in str(error.value)


WRITERS = [write_npy, write_safetensors, write_lists, write_fixed, write_wide]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("seed", range(12))
def test_a_damaged_or_truncated_file_is_refused_in_one_line(
    write: Callable[[Path], list[str | Path]], seed: int, tmp_path: Path
) -> None:
    draw = random.Random(seed)
    given_files = write(tmp_path)
    file = Path(str(given_files[0]))
    content = bytearray(file.read_bytes())
    if seed % 3 == 0:
        content = content[: draw.randrange(len(content))]
    for _ in range(draw.choice([1, 30]) if content and seed % 3 else 0):
        content[draw.randrange(len(content))] ^= draw.randrange(1, 256)
    file.write_bytes(content)
    try:
        import_arrays([str(one) for one in given_files], "birds", options=OPTIONS, cache_dir=tmp_path / "cache")
    except TaskresError as error:
        assert "\n" not in str(error)


cells = st.none() | st.text(max_size=5) | st.integers(-3, 3) | st.floats() | st.lists(st.floats(), max_size=4)


@settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(
    table=st.dictionaries(st.sampled_from(["embedding", "label", "split", "path", "f0", "f1", "y"]), st.lists(cells))
)
def test_any_table_is_valid_or_refused_in_one_line(table: dict[str, list[Any]], tmp_path: Path) -> None:
    objects = {name: _objects(column) for name, column in table.items()}
    try:
        contents_of_arrays(arrays_of_table(MemoryColumns(objects)), OPTIONS)
    except ArraysError as error:
        assert len(str(error).splitlines()) == 1


def _objects(column: list[Any]) -> np.ndarray:
    found = np.empty(len(column), object)
    found[:] = column
    return found
