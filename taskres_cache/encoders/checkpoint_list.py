"""The checkpoints that open_clip offers, with their sizes, and which of them are on this machine."""

import re
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub

from taskres_cache.encoders.catalogue import default_tag, input_and_output, model_names, tags_of, weight_files
from taskres_cache.encoders.sizes import model_size


@dataclass(frozen=True)
class Checkpoint:
    """A model of open_clip with one of its tags.

    Parameters
    ----------
    model, tag : str
        What `--backbone` and `--pretrained` take.
    dim : int
        D, the embedding size.
    image_size : int
        Side of the images that it reads, in pixels.
    image_parameters : int
        Parameters of the image tower, which determine the time of an extraction.
    parameters : int or None
        Parameters of the whole model; None if its text tower comes from the hub.
    is_default : bool
        Whether the model is loaded with this tag unless the user names one.
    is_here : bool
        Whether the weights are on this machine: bundled or downloaded.
    """

    model: str
    tag: str
    dim: int
    image_size: int
    image_parameters: int
    parameters: int | None
    is_default: bool
    is_here: bool


def list_checkpoints(word: str = "") -> list[Checkpoint]:
    """Return the checkpoints whose model and tag contain a word, in open_clip's order.

    Upper case does not matter in the word, and `_`, `/` and a space are the same as `-`. No network is used.
    """
    wish = _plain(word)
    pairs = ((model, tag) for model in model_names() for tag in tags_of(model))
    return [_described(model, tag) for model, tag in pairs if wish in _plain(f"{model} {tag}")]


def is_here(model: str, tag: str) -> bool:
    """Return True if the weights of a tag are on this machine."""
    repository, files = weight_files(model, tag)
    if not repository:
        return any(Path(file).is_file() for file in files)
    return any(isinstance(huggingface_hub.try_to_load_from_cache(repository, file), str) for file in files)


def _described(model: str, tag: str) -> Checkpoint:
    image_size, dim = input_and_output(model)
    size = model_size(model)
    chosen = default_tag(model)[0] == tag
    return Checkpoint(model, tag, dim, image_size, size.image, size.total, chosen, is_here(model, tag))


def _plain(text: str) -> str:
    return re.sub(r"[-_/\s]+", "-", text).casefold()
