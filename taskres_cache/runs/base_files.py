"""Bases that lie in files: the authors' `model.pth.tar`, and safetensors of ours. No code in a file is ever run.

Axes: C classes, D embedding, W width of the text tower.
"""

import json
import pickle
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from taskres_cache.errors import UnknownNameError, WeightsError
from taskres_cache.recipe import BUILT_BASES

# What a training script keeps beside its weights are objects of these; inert ones take their place.
TRAINING_STATE = ("torch.optim.", "dassl.optim.", "numpy.")


@dataclass(frozen=True)
class BaseFile:
    """A base from a file.

    Parameters
    ----------
    path : the file.
    sha256 : of the tensor that counts, as float32.
    base : (C, D) un-normalised; None where the file has only a projection.
    projection : (W, D); None where the file has only a base.
    """

    path: Path
    sha256: str
    base: np.ndarray | None
    projection: np.ndarray | None

    def base_for(
        self, pre_projection: np.ndarray | None, classes: int, dim: int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the base (C, D) for a cache, and the projection (W, D) it was made with, if it was.

        Parameters
        ----------
        pre_projection : (C, W) of the cache, mean over templates; None where it has none.
        classes, dim : C and D of the cache.

        Raises
        ------
        WeightsError : a width or number of classes that is not the cache's.
        """
        if self.base is not None:
            if self.base.shape != (classes, dim):
                raise WeightsError(
                    f"{self.path}: base has shape {self.base.shape}, expected {(classes, dim)}, classes x width of the "
                    "cache; pass a base of the same classes and checkpoint"
                )
            made_with = self.projection
            if made_with is None or pre_projection is None or made_with.shape != (pre_projection.shape[1], dim):
                return self.base, None
            return self.base, made_with
        assert self.projection is not None
        if pre_projection is None:
            raise WeightsError(
                f"{self.path} holds a text projection, and the cache has no text/pre_projection to put it to; pass a "
                "file with a base (C, D)"
            )
        expected = (pre_projection.shape[1], dim)
        if self.projection.shape != expected:
            raise WeightsError(
                f"{self.path}: the projection has shape {self.projection.shape}, expected {expected}, text width x "
                "embedding of the cache; pass one of the same model"
            )
        return pre_projection @ self.projection, self.projection


def read_base(name: str, classnames: tuple[str, ...], weights_sha256: str) -> BaseFile:
    """Return the base of a file: a run folder, a safetensors file, or a checkpoint in the authors' format.

    Parameters
    ----------
    name : the path.
    classnames, weights_sha256 : of the cache that it is for; a file that says something else of itself is refused.

    Raises
    ------
    UnknownNameError : there is no such file, and it is no other base either.
    WeightsError : not a base, one of another checkpoint or other classes, or code where tensors should be.
    """
    path = Path(name)
    path = path / "classifier.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise UnknownNameError("base", name, BUILT_BASES, f"pass {', '.join(BUILT_BASES)}, or a file that is there")
    if path.suffix == ".safetensors":
        return _read_safetensors(path, classnames, weights_sha256)
    weight = _matrix(path, "state_dict.weight", _read_checkpoint(path))
    return _as_file(path, None, np.ascontiguousarray(weight.T))  # the authors keep it as a linear layer does, (D, W)


def _read_safetensors(path: Path, classnames: tuple[str, ...], weights_sha256: str) -> BaseFile:
    """Return the base where it is of the same classes, else the projection."""
    try:
        with safe_open(path, framework="pt") as stored:
            said = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in ("base", "projection") if name in stored.keys()}  # noqa: SIM118
        named = json.loads(said.get("classnames", "null"))
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise WeightsError(f"{path} is no safetensors file ({' '.join(str(error).split())}); pass another") from error
    if not tensors:
        raise WeightsError(f"{path} has neither a tensor `base` (classes x D) nor `projection` (text width x D)")
    if said.get("weights_sha256", weights_sha256) != weights_sha256:
        raise WeightsError(
            f"{path} was made with another checkpoint: weights_sha256 {said['weights_sha256'][:16]}, the cache has "
            f"{weights_sha256[:16]}; pass a base of the cache's own"
        )
    same_classes = named is None or tuple(named) == classnames
    if not same_classes and "projection" not in tensors:
        raise WeightsError(f"{path} has the base of other classes ({', '.join(named[:3])}, ...) than the cache")
    arrays = {name: _matrix(path, name, tensor) for name, tensor in tensors.items()}
    return _as_file(path, arrays.get("base") if same_classes else None, arrays.get("projection"))


def _read_checkpoint(path: Path) -> torch.Tensor:
    """Return `state_dict.weight` of a checkpoint as torch.save wrote it, without running anything that it holds."""
    try:
        with torch.serialization.safe_globals(_stand_ins(path)):
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} holds more than tensors, which could run code when it is read, so it is not opened; where you "
            "trust it, save {'state_dict': {'weight': its tensor}} alone, and pass that"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{path} is no checkpoint ({reason}); pass a .pth.tar or .safetensors file") from error
    state = stored.get("state_dict") if isinstance(stored, dict) else None
    weight = state.get("weight") if isinstance(state, dict) else None
    if not isinstance(weight, torch.Tensor):
        has = ", ".join(map(str, list(stored)[:5])) if isinstance(stored, dict) else type(stored).__name__
        raise WeightsError(f"{path} has no tensor state_dict.weight (it has {has}); pass an enhanced base")
    return weight


def _stand_ins(path: Path) -> list[Any]:
    """Return inert classes for those of a checkpoint's classes that belong to the state of a training."""
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (RuntimeError, ValueError, pickle.UnpicklingError, OSError):
        return []  # an older format, or no checkpoint at all: the loader says what there is to say
    containers = {"builtins.dict": dict, "collections.defaultdict": _plain_dict}
    inert = {name: type(name, (_Inert,), {}) for name in unknown if name.startswith(TRAINING_STATE)}
    return [(stand_in, name) for name, stand_in in {**containers, **inert}.items() if name in unknown]


def _plain_dict(*_: Any) -> dict[Any, Any]:
    """Return what stands in for a dictionary with defaults."""
    return {}


class _Inert:
    """Stands where an object was and does nothing, whatever it is built from."""

    def __new__(cls, *_: Any, **__: Any) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _matrix(path: Path, name: str, tensor: torch.Tensor) -> np.ndarray:
    """Return a matrix as float32; raises WeightsError for anything that is none, or not finite."""
    if tensor.ndim != 2 or not tensor.is_floating_point():
        raise WeightsError(
            f"{path}: {name} has shape {tuple(tensor.shape)} and type {tensor.dtype}, expected a floating-point matrix"
        )
    array: np.ndarray = tensor.detach().float().numpy()
    if not np.isfinite(array).all():
        raise WeightsError(f"{path}: {name} holds NaN or infinite values; pass another file")
    return array


def _as_file(path: Path, base: np.ndarray | None, projection: np.ndarray | None) -> BaseFile:
    counts = base if base is not None else projection
    assert counts is not None
    digest = sha256(repr(counts.shape).encode() + np.ascontiguousarray(counts).tobytes()).hexdigest()
    return BaseFile(path, digest, base, projection)
