"""open_clip's models and tags: which weights a name stands for, and with which config they are built.

`file_settings` finds the settings of a file of weights, which does not record them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

from taskres_cache.bundled import GLYPH_CLIP_CONFIG, GLYPH_CLIP_WEIGHTS
from taskres_cache.encoders.file_settings import CONFIG_FILE, SETTINGS, has_quick_gelu, settings_of_file
from taskres_cache.errors import OptionError, UnknownNameError, WeightsError

BUNDLED_TAG = "bundled"
OPENAI_TAG = "openai"
FINETUNED = "finetuned"  # part of the tags of weights that were tuned to another task, such as captions
DOWNLOADS = Path("~/.cache/clip").expanduser()  # open_clip's folder for weights that are not on the hub
IMAGE_SIZE = 224  # of configs that leave it out
HUB, LOCAL = "hf-hub:", "local-dir:"  # prefixes of open_clip for models that bring their own config

open_clip.add_model_config(GLYPH_CLIP_CONFIG)


@dataclass(frozen=True)
class Weights:
    """Which weights to load, and with which settings.

    Parameters
    ----------
    name, label : str
        Names of model and checkpoint that make up paths.
    config : str
        The open_clip config to build, or a model with a prefix (`hf-hub:`, `local-dir:`).
    source : str or None
        Tag or file; None for a model with a prefix, which brings its weights.
    is_file : bool
        Whether `source` is a file.
    preprocess : dict
        Settings of the preprocessing that open_clip does not know; empty if it knows them.
    notes : tuple of str
        What was chosen for the user.
    """

    name: str
    label: str
    config: str
    source: str | None
    is_file: bool = False
    preprocess: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def find_weights(name: str, pretrained: str | None, pretrained_like: str | None = None) -> Weights:
    """Return the weights that a model and a tag or file stand for; nothing is read or downloaded yet.

    Parameters
    ----------
    name : str
        A model of open_clip, with or without prefix, or `glyph-clip`.
    pretrained : str or None
        A tag, a file, or None for the model's `default_tag`.
    pretrained_like : str, optional
        Tag of the model, or MODEL:TAG, whose settings a file shares.

    Raises
    ------
    UnknownNameError
        There is no such model or tag.
    WeightsError
        The file does not exist, or there is no config with the activation that the weights need.
    OptionError
        `pretrained_like` without a file, or a model with prefix and `pretrained`.
    """
    if has_own_config(name):
        return _with_own_config(name, pretrained, pretrained_like)
    name = name.replace("/", "-")
    if name not in open_clip.list_models():
        remedy = f"pass an open_clip model, {HUB}OWNER/MODEL, {LOCAL}FOLDER or glyph-clip"
        raise UnknownNameError("backbone", name, open_clip.list_models(), remedy)
    if pretrained is None:
        tag, note = default_tag(name)
        return _of_tag(name, tag, pretrained_like, (note,))
    if has_tag(name, pretrained):
        return _of_tag(name, pretrained, pretrained_like)
    if Path(pretrained).is_file():
        return _of_file(name, Path(pretrained), pretrained_like)
    if Path(pretrained).suffix or len(Path(pretrained).parts) > 1:
        raise WeightsError(f"checkpoint {pretrained} does not exist; pass the path of a local file or a tag of {name}")
    known = tags_of(name)
    remedy = f"tags of {name}: {', '.join(known) or 'none'}; or pass the path of a local checkpoint file"
    raise UnknownNameError(f"tag of {name}", pretrained, known, remedy)


def recorded_weights(name: str, config: str, file: str, preprocess: Mapping[str, Any]) -> Weights:
    """Return weights with the settings that were recorded for them; a tag has its own settings."""
    if has_own_config(config):
        folder = Path(file) if Path(file).is_dir() else Path(file).parent
        return _with_own_config(f"{LOCAL}{folder}", None, None)
    if not Path(file).is_file():
        return find_weights(config, file)
    forced = {key: value for key, value in preprocess.items() if key in SETTINGS}
    return Weights(name, Path(file).stem, config, file, is_file=True, preprocess=forced)


def has_own_config(config: str) -> bool:
    """Return True for a model from the hub or a folder, which brings its config, weights and settings."""
    return config.startswith((HUB, LOCAL))


def model_names() -> list[str]:
    """Return the names of open_clip's models and the bundled model."""
    names: list[str] = open_clip.list_models()
    return names


def input_and_output(name: str) -> tuple[int, int]:
    """Return the side of the images that a model reads, in pixels, and its embedding size."""
    config: dict[str, Any] = open_clip.get_model_config(name) or {}
    size = config["vision_cfg"].get("image_size", IMAGE_SIZE)
    return max(size) if isinstance(size, list | tuple) else size, config["embed_dim"]


def tags_of(name: str) -> list[str]:
    """Return the tags of a model, in open_clip's order."""
    return [BUNDLED_TAG] if name == GLYPH_CLIP_CONFIG.stem else open_clip.list_pretrained_tags_by_model(name)


def has_tag(name: str, tag: str) -> bool:
    """Return True if a backbone has weights under that tag; the stem of a local file is no tag."""
    bundled = name == GLYPH_CLIP_CONFIG.stem and tag == BUNDLED_TAG
    return bundled or bool(open_clip.is_pretrained_cfg(name, tag))


def weight_files(name: str, tag: str) -> tuple[str, tuple[str, ...]]:
    """Return the hub's repository of a tag, and the files of which open_clip loads the first that exists.

    The repository is empty for a file on this machine, or one that open_clip downloads from an address of its own.
    """
    if name == GLYPH_CLIP_CONFIG.stem:
        return "", (str(GLYPH_CLIP_WEIGHTS),)
    known = open_clip.get_pretrained_cfg(name, tag)
    repository, _, file = known.get("hf_hub", "").rpartition("/")
    if not repository:
        return "", (str(DOWNLOADS / known.get("url", "").rpartition("/")[2]),)
    if not file:
        return repository, (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME)
    safe = f"{Path(file).stem}.safetensors"
    return repository, (safe, file) if Path(file).suffix in (".bin", ".pth") else (file,)


def default_tag(name: str) -> tuple[str, str]:
    """Return the tag that a model is loaded with unless the user names one, and a note that says so.

    It is `openai` if the model has it (the paper's), else the last one in open_clip's list, to which new and better
    weights are appended. Tags that were fine-tuned to another task are left out.

    Raises
    ------
    OptionError
        The model has no tag.
    """
    tags = tags_of(name)
    if not tags:
        raise OptionError(f"open_clip has no weights for {name}; pass a checkpoint file: --pretrained PATH")
    general = [tag for tag in tags if FINETUNED not in tag] or tags
    chosen = OPENAI_TAG if OPENAI_TAG in tags else general[-1]
    others = [tag for tag in tags if tag != chosen]
    listed = f"--pretrained takes another: {', '.join(others)}" if others else "its only one"
    return chosen, f"{name} is loaded with the tag {chosen} ({listed})"


def _with_own_config(name: str, pretrained: str | None, pretrained_like: str | None) -> Weights:
    """Return the weights of a model that brings its config, weights and settings: from the hub or a folder."""
    if pretrained is not None or pretrained_like is not None:
        raise OptionError(f"{name} brings its own weights and settings; leave out --pretrained and --pretrained-like")
    prefix, place = (HUB, name.removeprefix(HUB)) if name.startswith(HUB) else (LOCAL, name.removeprefix(LOCAL))
    if prefix == LOCAL:
        folder = Path(place).absolute()
        if not (folder / CONFIG_FILE).is_file():
            raise WeightsError(
                f"{folder} has no {CONFIG_FILE}; pass the folder that has it: --backbone {LOCAL}FOLDER, or for a run "
                "--pretrained FOLDER"
            )
        name, place = f"{LOCAL}{folder}", folder.resolve().name
    plain = re.sub(r"[^\w.+-]+", "-", place).strip("-.")
    if not plain:
        raise OptionError(f"{name!r} names no model; pass {HUB}OWNER/MODEL or {LOCAL}FOLDER")
    return Weights(f"{prefix[:-1]}-{plain}", "own", name, None)


def _of_tag(name: str, tag: str, pretrained_like: str | None, notes: tuple[str, ...] = ()) -> Weights:
    """Return the weights of a tag.

    OpenAI's and some other weights need QuickGELU. If the config does not have it, open_clip only warns and computes
    with the wrong activation; each such model has a sibling config with the right one.
    """
    if pretrained_like is not None:
        raise OptionError(f"--pretrained-like is for checkpoint files; {tag} is a tag, which has its own settings")
    if name == GLYPH_CLIP_CONFIG.stem:
        return Weights(name, BUNDLED_TAG, name, str(GLYPH_CLIP_WEIGHTS), is_file=True, notes=notes)
    needs_quick_gelu = open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False)
    return Weights(name, tag, _with_quick_gelu(name) if needs_quick_gelu else name, tag, notes=notes)


def _of_file(name: str, file: Path, pretrained_like: str | None) -> Weights:
    """Return the weights in a file, with a note on their settings unless these are open_clip's default."""
    settings = settings_of_file(name, file, pretrained_like)
    config = _with_quick_gelu(name) if settings.quick_gelu else name
    shown = ", ".join(f"{key} {_shown(settings.preprocess[key])}" for key in SETTINGS[:4])
    activation = "QuickGELU" if has_quick_gelu(config) else "GELU"
    notes = (f"{file.name} is used with {shown}, {activation}: {settings.origin}",) if settings.origin else ()
    return Weights(name, file.stem, config, str(file), is_file=True, preprocess=settings.preprocess, notes=notes)


def _shown(value: Any) -> str:
    return " ".join(f"{part:.4g}" for part in value) if isinstance(value, list | tuple) else str(value)


def _with_quick_gelu(name: str) -> str:
    if has_quick_gelu(name):
        return name
    sibling = f"{name}-quickgelu"
    if sibling not in open_clip.list_models():
        raise WeightsError(f"these weights need QuickGELU, but open_clip has no config {sibling}; choose another tag")
    return sibling
