"""Bases read from files: the authors' `model.pth.tar`, and safetensors files. Code in a file is never run.

Axes: C classes, D embedding, W width of the text tower.
"""

import pickle
import struct
import warnings
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from taskres_cache.errors import UnknownNameError, WeightsError
from taskres_cache.recipe import BUILT_BASES
from taskres_cache.system.names import shown

# Training scripts store objects of these modules next to the weights; inert placeholders replace them.
TRAINING_STATE = ("torch.optim.", "dassl.optim.", "numpy.")
NOT_A_CHECKPOINT = (  # what the loader raises for damaged files
    OSError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, AssertionError, struct.error,
    MemoryError, OverflowError,
)  # fmt: skip
Names = tuple[str, ...] | None


@dataclass(frozen=True)
class BaseFile:
    """A base read from a file.

    Parameters
    ----------
    path : Path
        The file.
    sha256 : str
        Digest of the base, or of the projection without a base, as float32.
    base : ndarray of shape (C, D), float32, optional
        Un-normalised; None if the file has only a projection.
    projection : ndarray of shape (W, D), float32, optional
        None if the file has only a base.
    """

    path: Path
    sha256: str
    base: np.ndarray | None
    projection: np.ndarray | None

    def base_for(
        self, pre_projection: np.ndarray | None, classes: int, dim: int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the base (C, D) for a cache, and the projection (W, D) that it was computed with, if known.

        Parameters
        ----------
        pre_projection : ndarray of shape (C, W), optional
            The cache's text features before the projection, mean over templates; None if the cache has none.
        classes, dim : int
            C and D of the cache.

        Raises
        ------
        WeightsError
            The base or projection does not have the cache's shape, or the cache has no input for the projection.
        """
        base, projection = self._parts_for(pre_projection, classes, dim)
        with np.errstate(over="ignore"):
            lengths = np.linalg.norm(base, axis=1)  # (C,)
        if not (np.isfinite(lengths) & (lengths > 0)).all():
            raise WeightsError(f"{self.path} gives a base with a row that is zero or too large; pass another file")
        return base, projection

    def _parts_for(
        self, pre_projection: np.ndarray | None, classes: int, dim: int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the base for a cache, and the projection if it is known."""
        if self.base is not None:
            return self._base_of_shape((classes, dim)), self._known_projection(pre_projection, dim)
        assert self.projection is not None
        if pre_projection is None:
            raise WeightsError(
                f"{self.path} holds a text projection, but the cache has no text/pre_projection to apply it to; pass a "
                "file with a base (classes, embedding)"
            )
        expected = (pre_projection.shape[1], dim)
        if self.projection.shape != expected:
            raise WeightsError(
                f"{self.path}: projection has shape {self.projection.shape}, expected {expected}, text width and "
                "embedding size of the cache; pass a projection of the cache's model"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            return pre_projection @ self.projection, self.projection

    def _base_of_shape(self, expected: tuple[int, int]) -> np.ndarray:
        assert self.base is not None
        if self.base.shape != expected:
            raise WeightsError(
                f"{self.path}: base has shape {self.base.shape}, expected {expected}, classes and embedding size of "
                "the cache; pass a base of the same classes and checkpoint"
            )
        return self.base

    def _known_projection(self, pre_projection: np.ndarray | None, dim: int) -> np.ndarray | None:
        """Return the projection if it fits the cache."""
        projection = self.projection
        if projection is None or pre_projection is None or projection.shape != (pre_projection.shape[1], dim):
            return None
        return projection


def read_base(name: str, classnames: tuple[str, ...], weights_sha256: str) -> BaseFile:
    """Read a base from a run folder, a safetensors file, or a checkpoint in the authors' format.

    Parameters
    ----------
    name : str
        Path of the file or folder.
    classnames : tuple of str
        Class names of the cache; a file with a base of other classes is refused.
    weights_sha256 : str
        Checkpoint of the cache; a file of another checkpoint is refused.

    Raises
    ------
    UnknownNameError
        The file does not exist.
    WeightsError
        The file is not a base, belongs to another checkpoint or other classes, or contains code.
    """
    path = Path(name)
    path = path / "classifier.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise UnknownNameError("base", name, BUILT_BASES, f"pass {', '.join(BUILT_BASES)}, or an existing file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path, classnames, weights_sha256)
    weight = _matrix(path, "state_dict.weight", _read_checkpoint(path))
    return _as_file(path, None, np.ascontiguousarray(weight.T))  # stored as the weight of a linear layer, (D, W)


def _read_safetensors(path: Path, classnames: tuple[str, ...], weights_sha256: str) -> BaseFile:
    """Return the base and projection of a file; the base only if it has the same classes."""
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in ("base", "projection") if name in stored.keys()}  # noqa: SIM118
        names: tuple[str, ...] | None = msgspec.json.decode(metadata.get("classnames", "null"), type=Names)
    except (
        SafetensorError,
        msgspec.MsgspecError,
        OSError,
        ValueError,
        TypeError,
        LookupError,
        RecursionError,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{path} is not a valid safetensors file ({reason}); pass another file") from error
    if not tensors:
        raise WeightsError(
            f"{path} has neither a tensor `base` (classes, embedding) nor `projection` (text width, embedding); pass "
            "another file"
        )
    made_with = metadata.get("weights_sha256", weights_sha256)
    if made_with != weights_sha256:
        raise WeightsError(
            f"{path} was made with another checkpoint: weights_sha256 {made_with[:16]}, expected {weights_sha256[:16]} "
            "of the cache; pass a base of the cache's checkpoint"
        )
    if names is not None and names != classnames and "projection" not in tensors:
        raise WeightsError(
            f"{path} has a base of other classes ({_listed(names[:3])}, ...), expected those of the cache "
            f"({_listed(classnames[:3])}, ...); pass a base of the same classes, in the same order"
        )
    arrays = {name: _matrix(path, name, tensor) for name, tensor in tensors.items()}
    return _as_file(path, arrays.get("base") if names in (None, classnames) else None, arrays.get("projection"))


def _read_checkpoint(path: Path) -> torch.Tensor:
    """Return `state_dict.weight` of a checkpoint written by torch.save, without running any code in it."""
    _refuse_compressed(path)
    try:
        with torch.serialization.safe_globals(_placeholders(path)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on odd tensors, which are refused below
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} contains objects other than tensors, which can run code when read, so it was not opened; if you "
            "trust it, save {'state_dict': {'weight': its tensor}} alone and pass that file"
        ) from error
    except NOT_A_CHECKPOINT as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{path} is not a checkpoint ({reason}); pass a .pth.tar or .safetensors file") from error
    state = stored.get("state_dict") if isinstance(stored, dict) else None
    weight = state.get("weight") if isinstance(state, dict) else None
    if not isinstance(weight, torch.Tensor):
        found = _listed(list(stored)[:5]) if isinstance(stored, dict) else type(stored).__name__
        raise WeightsError(f"{path} has no tensor state_dict.weight (found: {found}); pass an enhanced base of TaskRes")
    return weight


def _refuse_compressed(path: Path) -> None:
    """Raise WeightsError for a zip file with compressed members: torch.save writes none, and they may be any size."""
    try:
        with zipfile.ZipFile(path) as archive:
            compressed = [member for member in archive.infolist() if member.compress_type != zipfile.ZIP_STORED]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # an older format, or not a checkpoint: the loader raises the error
    if compressed:
        raise WeightsError(f"{path} is a compressed zip file, which torch.save does not write; pass a .pth.tar file")


def _listed(names: Iterable[object]) -> str:
    """Return names for a message, shortened."""
    return ", ".join(shown(str(name))[1:-1] for name in names)


def _placeholders(path: Path) -> list[Any]:
    """Return inert classes that replace the classes of training state in a checkpoint."""
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (*NOT_A_CHECKPOINT, pickle.UnpicklingError):
        return []  # an older format, or not a checkpoint: the loader raises the error
    containers = {"builtins.dict": dict, "collections.defaultdict": _plain_dict}
    inert = {name: type(name, (_Inert,), {}) for name in unknown if name.startswith(TRAINING_STATE)}
    return [(placeholder, name) for name, placeholder in {**containers, **inert}.items() if name in unknown]


def _plain_dict(*_: Any) -> dict[Any, Any]:
    """Replace `collections.defaultdict` by an empty dictionary."""
    return {}


class _Inert:
    """Accepts any arguments and state, and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _matrix(path: Path, name: str, tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor as a float32 matrix; raise WeightsError if it is not a floating-point matrix or not finite."""
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    if tensor.ndim != 2 or not tensor.is_floating_point() or not plain:
        raise WeightsError(
            f"{path}: {name} has shape {tuple(tensor.shape)} and type {tensor.dtype}, expected a floating-point matrix"
            "; pass another file"
        )
    stored = tensor.untyped_storage().nbytes()
    if tensor.numel() * tensor.element_size() > stored:
        raise WeightsError(
            f"{path}: {name} has shape {tuple(tensor.shape)}, but only {stored} bytes of values; pass another file"
        )
    array: np.ndarray = tensor.detach().resolve_neg().float().numpy()
    if not np.isfinite(array).all():
        raise WeightsError(f"{path}: {name} has NaN or infinite values; pass another file")
    return array


def _as_file(path: Path, base: np.ndarray | None, projection: np.ndarray | None) -> BaseFile:
    identifying = base if base is not None else projection
    assert identifying is not None
    digest = sha256(repr(identifying.shape).encode() + np.ascontiguousarray(identifying).tobytes()).hexdigest()
    return BaseFile(path, digest, base, projection)
