"""Cache files that somebody else wrote: refused in one line, whatever is in them, and cheaply."""

import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from taskres_cache.caches import schema
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.provenance import Provenance
from taskres_cache.caches.schema import ARRAYS
from taskres_cache.errors import CacheError, TaskresError
from taskres_cache.recipe import Recipe
from taskres_cache.system.names import unsafe_name
from tests.conftest import Taskres, one_line

Harm = Callable[[h5py.File], None]


def use(path: Path) -> None:
    """Read everything that a fit and an evaluation read."""
    cache = FeatureCache(path)
    for shots, seed in cache.splits:
        cache.train(shots, seed)
        cache.val(shots, seed)
    cache.test()
    cache.text_bases()
    cache.files()


def attribute(name: str, value: object) -> Harm:
    return lambda file: file.attrs.__setitem__(name, value)


def values(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Harm:
    return lambda file: file[name].__setitem__(..., change(file[name][:]))


def replaced(name: str, value: object, **options: object) -> Harm:
    def harm(file: h5py.File) -> None:
        if name in file:
            del file[name]
        file.create_dataset(name, data=value, **options)

    return harm


UNSAFE = ("../../x", "/abs", "..", ".", "", "a\\b", "a\nb", "a\x1b[31m", "x" * 256)


@pytest.mark.parametrize("name", ["dataset", "backbone", "pretrained"])
@pytest.mark.parametrize("value", UNSAFE)
def test_a_name_that_leads_out_of_its_folder_is_refused(cache_file: Path, name: str, value: str) -> None:
    with h5py.File(cache_file, "r+") as file:
        file.attrs[name] = np.bytes_(value.encode())
    with pytest.raises(CacheError, match=f"attribute {name} is .*, which .*; expected a plain name"):
        FeatureCache(cache_file)


@pytest.mark.parametrize("value", [*UNSAFE, "a\0b"])
def test_provenance_refuses_the_same_names(provenance: Provenance, value: str) -> None:
    with pytest.raises(ValueError, match="dataset"):
        Provenance.from_plain({**provenance.as_plain(), "dataset": value})


def test_names_that_people_have_are_safe() -> None:
    assert {name: unsafe_name(name) for name in ("ViT-B-32", "été", "..x", "x" * 255, "a b", "hf-hub_x", ".h")} == (
        dict.fromkeys(("ViT-B-32", "été", "..x", "x" * 255, "a b", "hf-hub_x", ".h"))
    )
    assert unsafe_name("a\0b") == "has a control character"
    assert unsafe_name("\udcff") == "is not UTF-8"


def test_a_crafted_name_writes_nothing(here: Path, cache_file: Path, taskres: Taskres) -> None:
    with h5py.File(cache_file, "r+") as file:
        file.attrs["dataset"] = np.bytes_(b"../../x")
    before = sorted(here.rglob("*"))
    failed = taskres("fit", cache_file, "--shots", 1, "--seeds", 1, "--out", here / "deep" / "runs")
    assert "attribute dataset is '../../x', which has a path separator" in one_line(failed)
    assert sorted(here.rglob("*")) == before


MEANINGLESS = {
    "features/center, row 0 has NaN": values(
        "features/center", lambda a: np.where(np.arange(len(a))[:, None], a, np.nan)
    ),
    "features/center, row 0 has only zeros": values("features/center", lambda a: a * 0),
    "features/center, row 0 has values up to 1e\\+30": values("features/center", lambda a: np.full_like(a, 1e30)),
    "the features of all 3 images are equal": values("features/center", lambda a: a * 0 + a[:1]),
    "text/embeddings of class 0 \\(prompt\\) has NaN": values("text/embeddings", lambda a: a * np.nan),
    "text/embeddings of class 0 \\(prompt\\) has only zeros": values("text/embeddings", lambda a: a * 0),
    "class 0 \\(mean over templates\\) has only zeros": values(
        "text/embeddings", lambda a: np.stack([a[:, 0], -a[:, 0]], 1)
    ),
    "text/embeddings are equal for all 3 classes": values("text/embeddings", lambda a: a * 0 + a[:1]),
    "text/projection has NaN": values("text/projection", lambda a: a * np.inf),
    "images/path has '0/été 0.png' 24 times": values("images/path", lambda a: np.repeat(a[:1], 24)),
}


@pytest.mark.parametrize("message", MEANINGLESS)
def test_features_that_mean_nothing_are_refused_when_they_are_read(cache_file: Path, message: str) -> None:
    with h5py.File(cache_file, "r+") as file:
        MEANINGLESS[message](file)
    FeatureCache(cache_file)  # opening reads no features
    with pytest.raises(CacheError, match=message):
        use(cache_file)


WRONG = {
    "attribute logit_scale is 0.0, expected a positive": attribute("logit_scale", 0.0),
    "attribute logit_scale is -3.0": attribute("logit_scale", -3.0),
    "attribute logit_scale is nan": attribute("logit_scale", np.nan),
    "attribute logit_scale is 1e\\+30": attribute("logit_scale", 1e30),
    "attribute logit_scale is '100'": attribute("logit_scale", np.bytes_(b"100")),
    "attribute logit_scale is <class 'numpy.ndarray'>": attribute("logit_scale", [100.0]),
    "attribute dataset is 3.0, expected text": attribute("dataset", 3),
    "attribute preprocess is '\\[1\\]', expected a JSON object": attribute("preprocess", np.bytes_(b"[1]")),
    "attribute versions is '{', expected a JSON object": attribute("versions", np.bytes_(b"{")),
    "attribute recipe is .*NaN.*, expected a JSON object": attribute("recipe", np.bytes_(b'{"alpha": NaN}')),
    "attribute format_version is 1.5": attribute("format_version", 1.5),
    "attribute format_version is <class": attribute("format_version", [1]),
    "has no attribute weights_sha256": lambda file: file.attrs.__delitem__("weights_sha256"),
    "splits/shots_1/seed_1/train has row 15, a test image": values("splits/shots_1/seed_1/train", lambda a: a * 0 + 15),
    "splits/shots_1/seed_1/val has row 0, a train image": values("splits/shots_1/seed_1/val", lambda a: a * 0),
    "images/partition has values outside 0-2": values("images/partition", lambda a: a + 3),
    "all 3 class names are": values("classnames", lambda a: np.repeat(a[:1], 3)),
    "images/label has type floats, expected integers": replaced("images/label", np.zeros(24)),
    "features/center has type int64, expected floats|type integers": replaced(
        "features/center", np.ones((24, 8), np.int64)
    ),
    "classnames has type integers, expected text": replaced("classnames", np.arange(3)),
    "classnames has shape \\(1,\\), expected C of at least 2": replaced("classnames", ["a"]),
    "images/partition has shape \\(2, 12\\), expected \\(24,\\)": replaced(
        "images/partition", np.zeros((2, 12), np.uint8)
    ),
    "has no array splits/shots_1/seed_1/val": lambda file: file.__delitem__("splits/shots_1/seed_1/val"),
    "unexpected array splits/all": replaced("splits/all", np.arange(3)),
    "has no array text/projection, which belongs to": lambda file: file.__delitem__("text/projection"),
    "images/label is a link": lambda file: (
        file.move("images/label", "x") or file.__setitem__("images/label", h5py.SoftLink("/x"))
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_types_shapes_and_values_are_refused_at_once(cache_file: Path, message: str) -> None:
    with h5py.File(cache_file, "r+") as file:
        WRONG[message](file)
    with pytest.raises(CacheError, match=message) as error:
        FeatureCache(cache_file)
    assert "\n" not in str(error.value)


def test_values_in_other_files_are_refused(cache_file: Path, tmp_path: Path) -> None:
    shutil.copy(cache_file, tmp_path / "secret.h5")
    (tmp_path / "secret.bin").write_bytes(bytes(24 * 8 * 4))
    layout = h5py.VirtualLayout((24, 8), np.float32)
    layout[:] = h5py.VirtualSource(tmp_path / "secret.h5", "features/center", (24, 8))
    external = [(tmp_path / "secret.bin", 0, 24 * 8 * 4)]
    original = cache_file.read_bytes()
    for message, put in (
        (
            "is a link",
            lambda file: file.__setitem__("features/center", h5py.ExternalLink("secret.h5", "features/center")),
        ),
        ("lie in another file", lambda file: file.create_virtual_dataset("features/center", layout)),
        ("lie in another file", lambda file: file.create_dataset("features/center", (24, 8), "f4", external=external)),
    ):
        cache_file.write_bytes(original)
        with h5py.File(cache_file, "r+") as file:
            del file["features/center"]
            put(file)
        with pytest.raises(
            CacheError, match=f"features/center.*{message}|{message}.*features/center|of features/center {message}"
        ):
            FeatureCache(cache_file)


@pytest.mark.parametrize("name", [name for name in ARRAYS if name.startswith("images/")])
def test_declared_sizes_are_checked_before_anything_is_allocated(cache_file: Path, name: str) -> None:
    with h5py.File(cache_file, "r+") as file:
        kind = file[name].dtype
        del file[name]
        file.create_dataset(name, (1 << 31,), kind, chunks=(1 << 20,), compression="gzip")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CacheError, match="declares arrays of .* bytes but has"):
        FeatureCache(cache_file)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 50_000  # KiB


def test_many_strings_that_share_their_bytes_are_refused(cache_file: Path) -> None:
    with h5py.File(cache_file, "r+") as file:
        del file["images/path"]
        file.create_dataset("images/path", data=["x"] * 24, dtype=h5py.string_dtype())
        file["images/path"][0] = "long" * 100_000
        raw = file["images/path"].id.get_offset()
    content = bytearray(cache_file.read_bytes())
    for row in range(1, 24):  # every entry points to the long text
        content[raw + 16 * row : raw + 16 * (row + 1)] = content[raw : raw + 16]
    cache_file.write_bytes(content)
    with pytest.raises(CacheError, match="more text than the file has bytes"):
        FeatureCache(cache_file).files()


def test_verify_names_arrays_without_checksum(cache_file: Path, taskres: Taskres) -> None:
    assert FeatureCache(cache_file).arrays_without_checksum() == ()
    with h5py.File(cache_file, "r+") as file:
        labels = file["images/label"][:]
        del file["images/label"]
        file["images/label"] = labels
    assert FeatureCache(cache_file).arrays_without_checksum() == ("images/label",)
    shown = taskres("inspect", cache_file, "--verify").out
    assert "not checked, no checksum: images/label" in " ".join(shown.split())
    assert "intact: 19 arrays" in shown


def mutated(file: h5py.File, draw: random.Random) -> None:
    """Put a random wrong thing in a random place."""
    name = draw.choice([*ARRAYS, "splits/shots_1/seed_1/train", "splits/shots_4/seed_2/val"])
    odd = [
        np.zeros((), "f4"), np.zeros(3), np.zeros((2, 2, 2, 2)), np.array([b"\xff\xfe"]), np.array([2**63], "u8"),
        np.full(24, -(2**62)), np.zeros((0, 8), "f2"), np.array([1 + 2j]), np.array([True] * 24), h5py.Empty("f4"),
        np.zeros(3, [("a", "i4")]), "scalar", np.full((24, 8), np.inf, "f2"), np.full((3, 2, 8), 1e300),
    ]  # fmt: skip
    attributes = [*(name for name in Provenance.__dataclass_fields__), "created_at", "format", "format_version"]
    words = [-1, 0, 1e308, np.nan, b"\xff", "", "x" * 70_000, "../x", "{", "[]", "null", "[" * 5000, [1, 2], True, 1j]
    action = draw.randrange(4)
    if action == 0:
        value = draw.choice(words)
        file.attrs[draw.choice(attributes)] = value[:60_000] if isinstance(value, str) else value
    elif action == 1 and name in file:
        del file[name]
    elif action == 2 and name in file and file[name].dtype.kind in "iuf":
        file[name][...] = draw.choice([0, 255, np.iinfo(np.int64).max, -1]) % 2 ** (8 * file[name].dtype.itemsize - 1)
    else:
        replaced(name, draw.choice(odd))(file)


@pytest.mark.parametrize("seed", range(60))
def test_a_random_mutation_is_valid_or_refused_in_one_line(cache_file: Path, seed: int) -> None:
    draw = random.Random(seed)
    with h5py.File(cache_file, "r+") as file:
        for _ in range(draw.randint(1, 2)):
            mutated(file, draw)
    try:
        use(cache_file)
    except TaskresError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 1000


@pytest.mark.parametrize("value", ['"x"', "null", "true", "[1]", "1e999", "{}"])
@pytest.mark.parametrize("name", ["alpha", "lr", "batch_size", "views"])
def test_a_recipe_of_wrong_types_is_refused(cache_file: Path, name: str, value: str) -> None:
    with h5py.File(cache_file, "r+") as file:
        file.attrs["recipe"] = np.bytes_(f'{{"{name}": {value}}}'.encode())
    with pytest.raises(CacheError, match=f"attribute recipe has {name} .*, of a wrong type"):
        FeatureCache(cache_file)


def test_every_field_of_a_recipe_has_a_rule() -> None:
    known = {*schema.RECIPE_NUMBERS, *schema.RECIPE_WHOLE, *schema.RECIPE_TEXTS, *schema.RECIPE_LISTS}
    assert known == set(Recipe.__dataclass_fields__)
