"""Bases from files: the authors' format, the format of this tool, and files that are neither."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from taskres_cache.errors import UnknownNameError, WeightsError
from taskres_cache.runs.fitting.base_files import BaseFile, read_base

CLASSNAMES = ("cat", "dog", "jay")
WIDTH, DIM = 4, 6
PRE_PROJECTION = np.random.default_rng(0).normal(size=(3, WIDTH)).astype(np.float32)


def read(path: Path, sha256: str = "ab" * 32) -> BaseFile:
    return read_base(str(path), CLASSNAMES, sha256)


def weight(rows: int = DIM, columns: int = WIDTH) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))


def saved(path: Path, stored: Any, **options: Any) -> Path:
    torch.save(stored, path, **options)
    return path


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_authors_checkpoint_stores_the_transpose(
    tmp_path: Path, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    path = saved(tmp_path / "model.pth.tar", {"state_dict": {"weight": weight().to(dtype)}}, **options)
    base, projection = read(path).base_for(PRE_PROJECTION, 3, DIM)
    assert projection is not None
    assert projection.dtype == base.dtype == np.float32
    assert np.array_equal(projection, weight().to(dtype).float().numpy().T)
    layer = torch.nn.Linear(WIDTH, DIM, bias=False)  # the authors store its weight
    layer.load_state_dict({"weight": weight().to(dtype).float()})
    assert np.allclose(base, layer(torch.from_numpy(PRE_PROJECTION)).detach().numpy(), atol=1e-6)


def test_a_square_projection_is_transposed_too(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pth.tar", {"state_dict": {"weight": weight(WIDTH, WIDTH)}})
    _, projection = read(path).base_for(PRE_PROJECTION, 3, WIDTH)
    assert np.array_equal(projection, weight(WIDTH, WIDTH).numpy().T)


def test_training_state_in_a_checkpoint_is_ignored(tmp_path: Path) -> None:
    layer = torch.nn.Linear(WIDTH, DIM, bias=False)
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 50)
    layer(torch.ones(1, WIDTH)).sum().backward()
    optimiser.step()
    stored = {
        "state_dict": {"weight": weight()}, "epoch": 50, "optimizer": optimiser.state_dict(),
        "scheduler": {"successor": schedule, "last_epoch": 50}, "val_result": np.float64(71.5),
    }  # fmt: skip
    path = saved(tmp_path / "model.pth.tar-50", stored)
    assert len(torch.serialization.get_unsafe_globals_in_checkpoint(path)) >= 4  # otherwise the test would prove little
    file = read(path)
    assert np.array_equal(file.projection, weight().numpy().T)
    assert file.sha256 == read(saved(tmp_path / "other", {"state_dict": {"weight": weight()}})).sha256


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (self.command,)


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, options: dict[str, Any]) -> None:
    proof = tmp_path / "ran"
    stored = {"state_dict": {"weight": weight()}, "scheduler": Evil(f"touch {proof}")}
    with pytest.raises(WeightsError, match="contains objects other than tensors.* so it was not opened") as raised:
        read(saved(tmp_path / "model.pth.tar", stored, **options))
    assert "\n" not in str(raised.value)
    assert not proof.exists()


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"weight": weight()}, "has no tensor state_dict.weight .found: weight."),
        ({"state_dict": {"bias": weight()}}, "has no tensor state_dict.weight"),
        ({"state_dict": {"weight": [1.0, 2.0]}}, "has no tensor state_dict.weight"),
        (weight(), "has no tensor state_dict.weight .found: Tensor."),
        ({"state_dict": {"weight": weight()[0]}}, r"shape \(4,\) and type torch.float32, expected a floating-point"),
        ({"state_dict": {"weight": torch.ones(DIM, WIDTH, dtype=torch.int64)}}, "type torch.int64, expected"),
        ({"state_dict": {"weight": weight() * float("nan")}}, "NaN or infinite"),
    ],
)
def test_checkpoints_without_a_base_raise(tmp_path: Path, stored: Any, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        read(saved(tmp_path / "model.pth.tar", stored))


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 but no archive", b"\x80\x02}q\x00."])
def test_files_that_are_not_checkpoints_raise(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.pth.tar").write_bytes(content)
    with pytest.raises(WeightsError, match="model.pth.tar") as raised:
        read(tmp_path / "model.pth.tar")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("rows", "columns"), [(WIDTH, DIM), (DIM, WIDTH + 1), (DIM + 1, WIDTH)])
def test_wrong_shapes_raise(tmp_path: Path, rows: int, columns: int) -> None:
    file = read(saved(tmp_path / "model.pth.tar", {"state_dict": {"weight": weight(rows, columns)}}))
    with pytest.raises(WeightsError, match=rf"projection has shape \({columns}, {rows}\), expected \(4, 6\)"):
        file.base_for(PRE_PROJECTION, 3, DIM)


def test_a_projection_needs_the_caches_pre_projection(tmp_path: Path) -> None:
    file = read(saved(tmp_path / "model.pth.tar", {"state_dict": {"weight": weight()}}))
    with pytest.raises(WeightsError, match="the cache has no text/pre_projection"):
        file.base_for(None, 3, DIM)


def test_safetensors_files(tmp_path: Path) -> None:
    base, projection = weight(3, DIM), weight(WIDTH, DIM)
    save_file({"base": base.bfloat16()}, tmp_path / "base.safetensors")
    found, made_with = read(tmp_path / "base.safetensors").base_for(None, 3, DIM)
    assert np.array_equal(found, base.bfloat16().float().numpy())
    assert made_with is None
    save_file({"projection": projection}, tmp_path / "projection.safetensors")
    found, made_with = read(tmp_path / "projection.safetensors").base_for(PRE_PROJECTION, 3, DIM)
    assert np.allclose(found, PRE_PROJECTION @ projection.numpy())  # (W, D) as in the cache: not transposed
    with pytest.raises(WeightsError, match=r"base has shape \(3, 6\), expected \(5, 6\)"):
        read(tmp_path / "base.safetensors").base_for(PRE_PROJECTION, 5, DIM)


def as_metadata(**metadata: Any) -> dict[str, str]:
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}


def test_metadata_of_a_file_is_compared_with_the_cache(tmp_path: Path) -> None:
    path, tensors = tmp_path / "classifier.safetensors", {"base": weight(3, DIM), "projection": weight(WIDTH, DIM)}
    save_file(tensors, path, as_metadata(classnames=CLASSNAMES, weights_sha256="ab" * 32))
    base, projection = read_base(str(tmp_path), CLASSNAMES, "ab" * 32).base_for(PRE_PROJECTION, 3, DIM)  # a run folder
    assert np.array_equal(base, tensors["base"].numpy())
    assert np.array_equal(projection, tensors["projection"].numpy())
    with pytest.raises(WeightsError, match="made with another checkpoint: weights_sha256 abab"):
        read(path, "cd" * 32)
    save_file(tensors, path, as_metadata(classnames=("jay", "dog", "cat")))
    base, _ = read(path).base_for(PRE_PROJECTION, 3, DIM)  # of other classes: the projection gives the cache's
    assert np.allclose(base, PRE_PROJECTION @ tensors["projection"].numpy())
    save_file({"base": tensors["base"]}, path, as_metadata(classnames=("jay", "dog", "cat")))
    with pytest.raises(WeightsError, match="base of other classes .jay, dog, cat"):
        read(path)


def test_other_safetensors_files_raise(tmp_path: Path) -> None:
    save_file({"weight": weight()}, tmp_path / "one.safetensors")
    with pytest.raises(WeightsError, match="neither a tensor `base` .* nor `projection`"):
        read(tmp_path / "one.safetensors")
    (tmp_path / "two.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(WeightsError, match="is not a valid safetensors file"):
        read(tmp_path / "two.safetensors")


def test_names_that_are_neither_a_base_nor_a_file_raise(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown base 'enhancd'; did you mean 'enhanced'"):
        read(Path("enhancd"))
    with pytest.raises(UnknownNameError, match="or an existing file"):
        read(tmp_path)  # a folder without a run
