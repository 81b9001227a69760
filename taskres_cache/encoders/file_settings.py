"""The settings of weights: the preprocessing of images, and whether the activation is QuickGELU.

A tag of open_clip brings its settings. A file of weights does not record them; computed with others, its features are
wrong without any error.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import open_clip
from open_clip.transform import PreprocessCfg

from taskres_cache.bundled import GLYPH_CLIP_CONFIG
from taskres_cache.encoders.checkpoints import is_torchscript, names_openai_sizes
from taskres_cache.errors import UnknownNameError, WeightsError

CONFIG_FILE = "open_clip_config.json"
SETTINGS = ("mean", "std", "interpolation", "resize_mode", "fill_color")  # the image size follows the model


@dataclass(frozen=True)
class Settings:
    """Settings of weights.

    Parameters
    ----------
    preprocess : dict
        Preprocessing of images, the keys of `SETTINGS`.
    quick_gelu : bool or None
        Whether the activation is QuickGELU; None follows the config of the model's name.
    origin : str
        Where the settings come from; empty if there is nothing to say.
    """

    preprocess: dict[str, Any]
    quick_gelu: bool | None
    origin: str


def settings_of_file(name: str, file: Path, pretrained_like: str | None = None) -> Settings:
    """Return the settings of the weights in a file, from the first of these places that has them.

    1. The tag that the user names. 2. `open_clip_config.json` in the file's folder, if it describes the same model.
    3. OpenAI's, for a TorchScript archive. 4. The tag of the model that the file is named after. 5. The tags of the
    model, if all agree. 6. open_clip's default, with a note that names the tags that differ.
    """
    if pretrained_like is not None:
        return _settings_of_tag(*_model_and_tag(name, pretrained_like), f"as {pretrained_like}")
    config_file = file.with_name(CONFIG_FILE)
    described = _settings_in_config(name, config_file)
    if described is not None:
        return described
    settings = _settings_without_config(name, file)
    if not config_file.is_file():
        return settings
    ignored = f"{config_file} describes another model than {name} and is not used"
    return replace(settings, origin=f"{settings.origin}; {ignored}" if settings.origin else ignored)


def _settings_without_config(name: str, file: Path) -> Settings:
    if is_torchscript(file):
        doubt = "OpenAI's, since it is a TorchScript archive; --pretrained-like TAG says otherwise"
        return Settings(_default_preprocess(), quick_gelu=True, origin="" if names_openai_sizes(file) else doubt)
    tags = open_clip.list_pretrained_tags_by_model(name)
    if file.stem in tags:
        return _settings_of_tag(name, file.stem, f"those of the tag {file.stem}, after which the file is named")
    return _settings_of_all_tags(name, tags)


def _settings_of_all_tags(name: str, tags: list[str]) -> Settings:
    """Return the settings in which all tags of a model agree, and open_clip's default for the others."""
    every = [_settings_of_tag(name, tag, "") for tag in tags]
    remedy = f"--pretrained-like TAG says otherwise, or {CONFIG_FILE} next to the file"
    default = Settings(_default_preprocess(), None, "")
    if name == GLYPH_CLIP_CONFIG.stem:
        return default
    if not every:
        return Settings(default.preprocess, None, f"open_clip's default, since {name} has no tag; {remedy}")
    one_preprocess = all(one.preprocess == every[0].preprocess for one in every)
    one_activation = all(one.quick_gelu == every[0].quick_gelu for one in every)
    preprocess = every[0].preprocess if one_preprocess else default.preprocess
    quick_gelu = every[0].quick_gelu if one_activation else None
    if one_preprocess and one_activation:
        changed = preprocess != default.preprocess or (quick_gelu and not has_quick_gelu(name))
        return Settings(preprocess, quick_gelu, f"those of all tags of {name}; {remedy}" if changed else "")
    assumed = Settings(preprocess, quick_gelu or has_quick_gelu(name), "")
    differing = [
        tag
        for tag, one in zip(tags, every, strict=True)
        if (one.preprocess, bool(one.quick_gelu)) != (assumed.preprocess, assumed.quick_gelu)
    ]
    return Settings(preprocess, quick_gelu, f"the tags {', '.join(differing)} of {name} have others; {remedy}")


def _model_and_tag(name: str, like: str) -> tuple[str, str]:
    """Return the model and tag that `--pretrained-like` names: TAG or MODEL:TAG."""
    model, _, tag = like.rpartition(":")
    model = (model or name).replace("/", "-")
    if not open_clip.is_pretrained_cfg(model, tag):
        known = open_clip.list_pretrained_tags_by_model(model)
        remedy = f"tags of {model}: {', '.join(known) or 'none'}; or pass --pretrained-like MODEL:TAG"
        raise UnknownNameError(f"tag of {model}", tag, known, remedy)
    return model, tag


def _settings_of_tag(name: str, tag: str, origin: str) -> Settings:
    known = open_clip.get_pretrained_cfg(name, tag)
    preprocess = {key: _plain(known[key]) for key in SETTINGS if known.get(key) is not None}
    return Settings({**_default_preprocess(), **preprocess}, bool(known.get("quick_gelu", False)), origin)


def _settings_in_config(name: str, file: Path) -> Settings | None:
    """Return the settings in an open_clip_config.json; None if there is none, or if it describes another model."""
    if not file.is_file():
        return None
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
        preprocess, model = described.get("preprocess_cfg", {}), described.get("model_cfg", {})
        preprocess = {key: _plain(preprocess[key]) for key in SETTINGS if preprocess.get(key) is not None}
        size = model.get("embed_dim"), model.get("vision_cfg", {}).get("image_size")
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise WeightsError(
            f"could not read {file} ({error}), which describes the weights next to it; replace or remove it"
        ) from error
    built: dict[str, Any] = open_clip.get_model_config(name) or {}
    if model and size != (built.get("embed_dim"), built.get("vision_cfg", {}).get("image_size")):
        return None
    quick_gelu = bool(model.get("quick_gelu", False)) if model else None
    return Settings({**_default_preprocess(), **preprocess}, quick_gelu, f"as {file} says")


def _default_preprocess() -> dict[str, Any]:
    """Return open_clip's default, which is OpenAI's preprocessing."""
    default = vars(PreprocessCfg())
    return {key: _plain(default[key]) for key in SETTINGS}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def has_quick_gelu(name: str) -> bool:
    """Return True if a config of open_clip has QuickGELU."""
    return bool((open_clip.get_model_config(name) or {}).get("quick_gelu", False))
