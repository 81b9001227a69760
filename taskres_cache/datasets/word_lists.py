"""Word lists from other libraries: ImageNet's class names and identifiers, prompt ensembles, model names.

They are read from the libraries' files, because importing open_clip or timm imports torch.
"""

import ast
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Literal

from taskres_cache.bundled import GLYPH_CLIP_CONFIG

QUICK_GELU = "-quickgelu"  # suffix of open_clip's models
Subset = Literal["imagenet", "imagenet_a", "imagenet_r"]


@cache
def imagenet_wnids(subset: Subset = "imagenet") -> tuple[str, ...]:
    """Return the WordNet identifiers of ImageNet's 1,000 classes, or of ImageNet-A's or -R's 200, sorted (timm's)."""
    return tuple((_package("timm") / "data" / "_info" / f"{subset}_synsets.txt").read_text().split())


@cache
def imagenet_names() -> dict[str, str]:
    """Return class names by identifier, in label order (OpenAI's, from open_clip); two names occur twice."""
    return dict(zip(imagenet_wnids(), _zero_shot_metadata().IMAGENET_CLASSNAMES, strict=True))


@cache
def clip_models() -> tuple[str, ...]:
    """Return the names of open_clip's models and the bundled model, sorted."""
    configs = (_package("open_clip") / "model_configs").glob("*.json")
    return tuple(sorted(file.stem for file in [*configs, GLYPH_CLIP_CONFIG]))


@cache
def clip_tags(model: str) -> tuple[str, ...]:
    """Return the tags of a model's weights as open_clip lists them; empty if its file does not tell."""
    if model == GLYPH_CLIP_CONFIG.stem:
        return ("bundled",)
    lists = _clip_weights()
    derived = [tag for tag, quick_gelu in lists.get(model.removesuffix(QUICK_GELU), {}).items() if quick_gelu]
    if model.endswith(QUICK_GELU) and derived:
        return tuple(derived)
    return tuple(lists.get(model, ()))


@cache
def _clip_weights() -> dict[str, dict[str, bool]]:
    """Return the tags of each model in open_clip's file, and whether their weights need QuickGELU.

    When imported, that file adds models with the suffix `-quickgelu` for the tags that need it.
    """
    source = ast.parse((_package("open_clip") / "pretrained.py").read_text(encoding="utf-8"))
    values = {
        assigned.targets[0].id: assigned.value
        for assigned in source.body
        if isinstance(assigned, ast.Assign) and isinstance(assigned.targets[0], ast.Name)
    }
    models, found = values.get("_PRETRAINED"), dict[str, dict[str, bool]]()
    if not isinstance(models, ast.Dict):
        return found
    for name, listed in zip(models.keys, models.values, strict=True):
        tags = values.get(listed.id) if isinstance(listed, ast.Name) else listed
        if isinstance(name, ast.Constant) and isinstance(tags, ast.Call):
            found[str(name.value)] = {tag.arg or "": _needs_quick_gelu(tag.value) for tag in tags.keywords}
    return found


def _needs_quick_gelu(weights: ast.expr) -> bool:
    options = weights.keywords if isinstance(weights, ast.Call) else []
    return any(
        one.arg == "quick_gelu" and isinstance(one.value, ast.Constant) and one.value.value is True for one in options
    )


@cache
def prompt_ensemble(name: str) -> tuple[str, ...]:
    """Return the templates in one of open_clip's lists, such as `OPENAI_IMAGENET_TEMPLATES`."""
    return tuple(fill("{}") for fill in getattr(_zero_shot_metadata(), name))


@cache
def _zero_shot_metadata() -> ModuleType:
    """Return open_clip's file of word lists, loaded without open_clip."""
    spec = spec_from_file_location("zero_shot_metadata", _package("open_clip") / "zero_shot_metadata.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _package(name: str) -> Path:
    """Return the folder of an installed package without importing it."""
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent
