"""Checkpoint files and the identity of weights, without open_clip."""

import hashlib
from pathlib import Path
from zipfile import ZipFile, is_zipfile

import torch
from torch import Tensor, nn

MOST_CODE = 1 << 24  # bytes of a code member that is read


def digest_of_weights(model: nn.Module) -> str:
    """Return the SHA-256 over the names, shapes and values of a model's weights, sorted by name.

    The digest covers the weights, not the file: the same weights are published in several containers (OpenAI's
    archives, safetensors copies of them) and must count as the same checkpoint.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{name}:{array.dtype}:{array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def is_torchscript(file: Path) -> bool:
    """Return True for a TorchScript archive, the format of OpenAI's checkpoints."""
    if file.suffix == ".safetensors" or not is_zipfile(file):
        return False
    with ZipFile(file) as archive:
        return any("/code/" in member for member in archive.namelist())


def names_openai_sizes(file: Path) -> bool:
    """Return True if the code in a TorchScript archive names the model's sizes as OpenAI's models do.

    A hint only: other programs write TorchScript archives too, and none of their metadata says whose weights they are.
    """
    with ZipFile(file) as archive:
        code = (member for member in archive.infolist() if "/code/" in member.filename)
        return any(b"input_resolution" in archive.read(member) for member in code if member.file_size <= MOST_CODE)


def torchscript_weights(file: Path) -> dict[str, Tensor]:
    """Return the weights of a TorchScript archive in float32, on the CPU."""
    state = torch.jit.load(str(file), map_location="cpu").state_dict()
    for no_weight in ("input_resolution", "context_length", "vocab_size", "attn_mask"):
        state.pop(no_weight, None)
    return {name: tensor.float() for name, tensor in state.items()}
