"""How many parameters open_clip's models have. Counting takes 0.3 s per model, so the counts are bundled.

`make clip-sizes` counts again after a new release of open_clip; until then new models are counted when asked for.
"""

import json
from functools import cache
from typing import NamedTuple

from torch import nn

from taskres_cache.bundled import CLIP_SIZES
from taskres_cache.encoders.catalogue import model_names
from taskres_cache.encoders.loading import model_without_values

# Text towers of the hub need its files; the image tower does not depend on the text tower.
TINY_TEXT = {"context_length": 8, "vocab_size": 8, "width": 64, "heads": 1, "layers": 1}


class ModelSize(NamedTuple):
    """Parameters of the image tower and of the whole model; None if the text tower comes from the hub."""

    image: int
    total: int | None


def model_size(name: str) -> ModelSize:
    """Return the number of parameters of a model."""
    known = _bundled_sizes().get(name)
    return counted(name) if known is None else known


def counted(name: str) -> ModelSize:
    """Return the number of parameters of a model, counted in its modules."""
    image = _parameters(model_without_values(name, text_cfg=TINY_TEXT).visual)  # type: ignore[arg-type]
    try:
        return ModelSize(image, _parameters(model_without_values(name)))
    except Exception:  # noqa: BLE001  text towers of the hub raise anything without a network or transformers
        return ModelSize(image, None)


@cache
def _bundled_sizes() -> dict[str, ModelSize]:
    return {name: ModelSize(*sizes) for name, sizes in json.loads(CLIP_SIZES.read_text()).items()}


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def main() -> None:
    """Count all models and write the bundled file."""
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(counted(name))}" for name in model_names())
    CLIP_SIZES.write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main()
