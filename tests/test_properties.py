"""Properties of every reader and of the options: what hypothesis makes up is valid, or refused in one line.

Never a traceback, a hang, or much more memory than the file has bytes.
"""

import csv
import io
import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.foreign.importing import ImportOptions, contents_of_arrays
from taskres_cache.caches.foreign.npz import OPTIONAL, REQUIRED, read_arrays
from taskres_cache.datasets.paper.listing import read_split_file
from taskres_cache.datasets.text.class_descriptions import read_class_descriptions
from taskres_cache.errors import OptionError, TaskresError
from taskres_cache.recipe import CHOICES, Recipe
from taskres_cache.runs.classifier_file import recipe_of
from taskres_cache.runs.fitting.base_files import read_base
from taskres_cache.runs.fitting.study import fit_each
from taskres_cache.runs.run import load_run
from taskres_cache.system.names import unsafe_name
from tests.conftest import Taskres, make_earlier
from tests.runs.conftest import CPU, RECIPE

examples = settings(
    max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
LONGEST_LINE = 1500
MOST_GROWTH, SLACK_BYTES = 10, 1 << 24

numbers = st.integers() | st.floats() | st.sampled_from([0, -1, 1, 2**31, 2**63, 10**400, 1e-320, 1e308])
texts = st.text(max_size=20) | st.sampled_from(["", "../x", "a/b", "\x1b[31m", "\0", "NaN", "x" * 5000, "[/b]"])
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
dtypes = st.sampled_from(["f2", "f4", "f8", "i1", "i4", "i8", "u8", "?", "c8", "S3"])
odd_arrays = dtypes.flatmap(lambda dtype: arrays(dtype, array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=25)))


def as_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=True)


def valid_or_refused_in_one_line(use: Callable[[], object], size: int) -> bool:
    """Return True if `use` succeeds; check the error if it is refused, and the memory that it takes."""
    tracemalloc.start()
    try:
        use()
    except TaskresError as error:
        assert len(str(error).splitlines()) == 1, str(error)
        assert len(str(error)) < LONGEST_LINE
        return False
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MOST_GROWTH * size + SLACK_BYTES
    return True


flipped = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4)


def flip(file: Path, places: list[tuple[float, int]]) -> None:
    raw = bytearray(file.read_bytes())
    for share, change in places:
        raw[int(share * len(raw))] ^= change
    file.write_bytes(raw)


def read_whole_cache(file: Path) -> None:
    cache = FeatureCache(file)
    for shots, seed in cache.splits:
        cache.train(shots, seed)
        cache.val(shots, seed)
    cache.test()
    cache.text_bases()
    cache.files()
    cache.verify()


@examples
@given(data=st.data())
def test_caches(data: st.DataObject, tmp_path: Path, cache_file: Path) -> None:
    file = Path(shutil.copy(cache_file, tmp_path / "changed.h5"))
    with h5py.File(file, "r+") as stored:
        names: list[str] = []
        stored.visit(lambda name: names.append(name) if isinstance(stored[name], h5py.Dataset) else None)
        for name in data.draw(st.lists(st.sampled_from(names), max_size=2, unique=True)):
            del stored[name]
            if data.draw(st.booleans()):
                stored[name] = data.draw(odd_arrays)
        for name in data.draw(st.lists(st.sampled_from(sorted(stored.attrs)), max_size=2)):
            value = data.draw(values)
            stored.attrs[name] = value if isinstance(value, float) else np.bytes_(as_json(value)[:60_000].encode())
    valid_or_refused_in_one_line(lambda: read_whole_cache(file), file.stat().st_size)


@pytest.fixture
def run(tmp_path: Path, cache_file: Path) -> Path:
    """The folder of a run without digests, which would refuse any change; a copy of it is changed."""
    (fitted,) = fit_each(FeatureCache(cache_file), [(4, 1)], [RECIPE], CPU, tmp_path / "runs")
    make_earlier(fitted.folder)
    return fitted.folder


def use_run(folder: Path) -> None:
    probabilities = load_run(folder).probabilities(np.ones((2, 8), np.float32))
    assert np.isfinite(probabilities).all()


@examples
@given(data=st.data())
def test_classifiers(data: st.DataObject, run: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(run, tmp_path / "changed", dirs_exist_ok=True))
    file = changed / "classifier.safetensors"
    with safe_open(file, framework="numpy") as stored:
        metadata = stored.metadata()
    tensors = load_file(file)
    for name in data.draw(st.lists(st.sampled_from([*sorted(metadata), "prompts", "unknown"]), max_size=2)):
        metadata[name] = as_json(data.draw(values))
    if data.draw(st.booleans()):
        name = data.draw(st.sampled_from([*tensors, "image_residual", "projection"]))
        tensors[name] = data.draw(arrays("f4", array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9)))
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, file, metadata)
    valid_or_refused_in_one_line(lambda: use_run(changed), file.stat().st_size)


@examples
@given(places=flipped, name=st.sampled_from(["classifier.safetensors", "metrics.json"]))
def test_flipped_bytes_of_runs_are_found(
    places: list[tuple[float, int]], name: str, tmp_path: Path, cache_file: Path
) -> None:
    if not (tmp_path / "runs").exists():
        list(fit_each(FeatureCache(cache_file), [(4, 1)], [RECIPE], CPU, tmp_path / "runs"))
    (whole,) = (tmp_path / "runs").rglob("seed_1")
    changed = Path(shutil.copytree(whole, tmp_path / "changed", dirs_exist_ok=True))
    flip(changed / name, places)
    if (changed / name).read_bytes() != (whole / name).read_bytes():
        assert not valid_or_refused_in_one_line(lambda: use_run(changed), (changed / name).stat().st_size)


@examples
@given(data=st.data())
def test_metrics(data: st.DataObject, run: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(run, tmp_path / "changed", dirs_exist_ok=True))
    file = changed / "metrics.json"
    metrics = json.loads(file.read_text())
    for name in data.draw(st.lists(st.sampled_from([*metrics, "unknown"]), max_size=3)):
        metrics[name] = data.draw(values)
    file.write_text(as_json(data.draw(st.just(metrics) | values)))
    valid_or_refused_in_one_line(lambda: load_run(changed), file.stat().st_size)


@examples
@given(tensor=odd_arrays, name=st.sampled_from(["base", "projection", "x"]), names=values, places=st.none() | flipped)
def test_base_files(
    tensor: np.ndarray, name: str, names: object, places: list[tuple[float, int]] | None, tmp_path: Path
) -> None:
    file = tmp_path / "base.safetensors"
    numeric = tensor if tensor.dtype.kind not in "Sc" else np.ones((3, 8), np.float32)
    save_file({name: np.ascontiguousarray(numeric)}, file, {"classnames": as_json(names)})
    flip(file, places or [])
    valid_or_refused_in_one_line(
        lambda: read_base(str(file), ("a", "b", "c"), "ab").base_for(np.ones((3, 4), np.float32), 3, 8),
        file.stat().st_size,
    )


entries = st.tuples(texts | values, st.integers(-1, 3) | values, texts | values).map(list)


@examples
@given(document=st.fixed_dictionaries({}, optional=dict.fromkeys(("train", "val", "test"), st.lists(entries))) | values)
def test_split_files(document: object, tmp_path: Path) -> None:
    file = tmp_path / "split_zhou_toy.json"
    file.write_text(as_json(document))
    valid_or_refused_in_one_line(lambda: read_split_file(file, "images"), file.stat().st_size)


names_of_classes = st.sampled_from(["a", "b_c", "B c", "été"]) | texts
described = st.dictionaries(names_of_classes, texts | st.lists(texts, max_size=3) | values, max_size=5)
cells = st.lists(st.lists(st.sampled_from(["class", "name", "prompt", "a", "b_c"]) | texts, max_size=4), max_size=6)


@examples
@given(document=described | values, rows=cells, suffix=st.sampled_from(["json", "yaml", "csv", "tsv"]), places=flipped)
def test_class_descriptions(
    document: object, rows: list[list[str]], suffix: str, places: list[tuple[float, int]], tmp_path: Path
) -> None:
    file = tmp_path / f"text.{suffix}"
    listed = "\n".join((";" if row[:1] == ["a"] else {"tsv": "\t"}.get(suffix, ",")).join(row) for row in rows)
    for content in (as_json(document), listed, f"class,name,prompt\n{listed}"):
        file.write_bytes(content.encode(errors="surrogatepass"))
        valid_or_refused_in_one_line(lambda: read_class_descriptions(file, ("a", "b_c")), file.stat().st_size)
        flip(file, places if content else [])
        valid_or_refused_in_one_line(lambda: read_class_descriptions(file, ("a", "b_c")), file.stat().st_size)


plain = st.text(st.characters(blacklist_categories=["C", "Z"]), min_size=1, max_size=9)


@examples
@given(
    described=st.lists(st.tuples(plain, st.lists(plain, min_size=1, max_size=3, unique=True)), min_size=2, max_size=2)
)
def test_what_is_written_is_read_again(described: tuple[tuple[str, list[str]], ...], tmp_path: Path) -> None:
    classes = ("black_cat", "été")
    entries = dict(zip(classes, described, strict=True))
    document = {key: {"name": name, "prompts": prompts} for key, (name, prompts) in entries.items()}
    table = io.StringIO()
    csv.writer(table).writerows(
        [("class", "name", "prompt"), *((key, name, one) for key, (name, every) in entries.items() for one in every)]
    )
    written = json.dumps(document, ensure_ascii=False)
    for suffix, content in (("json", as_json(document)), ("yaml", written), ("csv", table.getvalue())):
        file = tmp_path / f"text.{suffix}"
        file.write_text(content, encoding="utf-8", newline="")
        found = read_class_descriptions(file, classes)
        assert found.names == tuple(name for name, _ in described)
        assert found.prompts == tuple(tuple(prompts) for _, prompts in described)


@examples
@given(data=st.data())
def test_imported_arrays(data: st.DataObject, tmp_path: Path) -> None:
    file, rng = tmp_path / "arrays.npz", np.random.default_rng(3)
    given_arrays: dict[str, Any] = {"text_features": rng.normal(size=(2, 4)), "classnames": np.array(["a", "b"])}
    for part in ("train", "val", "test"):
        given_arrays |= {f"{part}_features": rng.normal(size=(6, 4)), f"{part}_labels": np.arange(6) % 2}
    for name in data.draw(st.lists(st.sampled_from(REQUIRED + OPTIONAL), max_size=2)):
        given_arrays[name] = data.draw(odd_arrays)
    np.savez(file, **given_arrays)
    flip(file, data.draw(st.just([]) | flipped))
    options = ImportOptions("toy", shots=(1,), seeds=(1,))
    valid_or_refused_in_one_line(lambda: contents_of_arrays(read_arrays(file), options), file.stat().st_size)


candidates = st.lists(st.floats(-1e9, 1e9), max_size=60).map(tuple)
recipes = st.fixed_dictionaries(
    {},
    optional={
        "alpha": st.floats(), "lr": st.floats(), "weight_decay": st.floats(), "batch_size": st.integers(-1),
        "epochs": st.none() | st.integers(-1, 10**6), "alphas": candidates, "lrs": candidates,
        "weight_decays": candidates,
        "patience": st.none() | st.integers(-1, 99), "views": st.integers(-1, 99),
        **{name: st.sampled_from([*choices, "x"]) for name, choices in CHOICES.items()},
    },
)  # fmt: skip


@examples
@given(chosen=recipes)
def test_a_recipe_has_a_name_that_a_folder_can_have_and_survives_json(chosen: dict[str, Any]) -> None:
    try:
        recipe = Recipe(**chosen)
        name = recipe.method_name()
    except OptionError as error:
        assert len(str(error).splitlines()) == 1
        assert len(str(error)) < LONGEST_LINE
        return
    assert unsafe_name(f"{name}-base-classes") is None
    assert recipe_of(json.loads(json.dumps(recipe.as_dict()))) == recipe


OPTIONS = ("--shots", "--seeds", "--lr", "--alpha", "--epochs", "--batch-size", "--weight-decay", "--base", "--views")


@settings(examples, max_examples=100)
@given(option=st.sampled_from(OPTIONS), value=numbers.map(str) | texts)
def test_options_of_fit(option: str, value: str, taskres: Taskres, cache_file: Path) -> None:
    if "\0" in value:  # no program can be started with it
        return
    outcome = taskres("fit", cache_file, f"{option}={value}", "--epochs=1", "--json", "--out", cache_file.parent / "r")
    assert "Traceback" not in outcome.err
    assert outcome.status in (0, 1, 2)
    if outcome.status:
        lines = [line for line in outcome.err.splitlines() if line.startswith("taskres: ")]
        assert len(lines) == 1, outcome.err
