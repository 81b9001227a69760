"""A frozen CLIP on its device: encode images and prompts. `loading` builds it; this module does not know open_clip.

Axes: B images or prompts of a batch, H and W height and width of an image, D embedding, K width of the text tower.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from taskres_cache.encoders.projecting import ProjectedTower, recorded_inputs
from taskres_cache.errors import WeightsError
from taskres_cache.system.accelerator import free_memory, use_float32_convolutions

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

BATCH_ON_CPU = 16  # per thread; larger batches do not fit into the CPU's cache (measured)
TRIAL_BATCH = 8
SHARE_OF_FREE_MEMORY = 0.7
TOLERATED_ERROR = 1e-3  # float32 towers agree to 1e-5; stored float16 features of length 1 to 5e-4

SPARE = 2  # a prompt with more padding fits; some tokenizers replace the end token by padding

Tokenizer = Callable[..., Tensor]  # prompts, context_length=None


@dataclass(frozen=True)
class Framing:
    """open_clip's preprocessing of an image up to the conversion to numbers: resize and crop.

    It holds no reference to a model, so that it can be pickled and sent to decoding processes.

    Parameters
    ----------
    steps : tuple of callable
        Torchvision transforms from image to image.
    size : tuple of int
        Height and width (H, W) of the result.
    """

    steps: tuple[Callable[[Image.Image], Image.Image], ...]
    size: tuple[int, int]

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the image that the encoder sees, in RGB and at its size."""
        for step in self.steps:
            image = step(image)
        return image


@dataclass(frozen=True)
class TextFeatures:
    """Text features of B prompts.

    Parameters
    ----------
    embeddings : ndarray of shape (B, D), float32
        Un-normalised text features.
    pre_projection : ndarray of shape (B, K), float32, or None
        Inputs of the text projection; None if the tower does not end in a linear projection.
    """

    embeddings: np.ndarray
    pre_projection: np.ndarray | None


@dataclass(frozen=True)
class Backbone:
    """A frozen CLIP on its device, with everything that identifies it. Made by `load_backbone`.

    Parameters
    ----------
    name, pretrained : str
        The model and tag that the user asked for; for a local checkpoint the tag is the file's stem.
    model_config : str
        The open_clip config that was built. It differs from `name` if the tag needs QuickGELU.
    weights_sha256 : str
        Digest of the loaded weights, see `digest_of_weights`.
    logit_scale : float
        The factor of the cosines: exp of the model's logit_scale parameter, 100 for OpenAI's models.
    preprocess : dict
        open_clip's preprocessing as plain values.
    precision : str
        What the image tower computes in: fp32, bf16 or fp16. The text tower always computes in fp32.
    adapts : bool
        Whether the precision was chosen automatically, so that the precision of an existing cache may replace it.
    device : torch.device
        Where the model is.
    model : torch.nn.Module
        The open_clip model.
    framing : Framing
        open_clip's resize and crop.
    tokenizer : callable
        Prompts to tokens (B, context).
    notes : tuple of str, optional
        What was chosen for the user: tag, preprocessing, activation.
    """

    name: str
    pretrained: str
    model_config: str
    weights_sha256: str
    logit_scale: float
    preprocess: dict[str, Any]
    precision: str
    adapts: bool
    device: torch.device
    model: nn.Module
    framing: Framing
    tokenizer: Tokenizer
    notes: tuple[str, ...] = ()

    def on_device(self, pixels: np.ndarray) -> Tensor:
        """Return framed images (B, H, W, 3), uint8, on the device; float32 would be four times as large."""
        images = torch.from_numpy(pixels)
        if self.device.type != "cuda":
            return images.to(self.device)
        moved = images.pin_memory().to(self.device, non_blocking=True)
        torch.cuda.current_stream(self.device).synchronize()  # waits for this thread's stream only
        return moved

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> np.ndarray:
        """Return un-normalised image features (B, D), float32, of framed images (B, H, W, 3), uint8, on the device."""
        if self.precision == "fp32" and self.device.type == "cuda":
            use_float32_convolutions()
        mean, std = (torch.tensor(self.preprocess[name], device=self.device) for name in ("mean", "std"))
        scaled = pixels.float().div_(255).sub_(mean).div_(std)  # as open_clip's ToTensor and Normalize
        with _autocast(self.device, self.precision):
            features = self.model.encode_image(  # type: ignore[operator]
                scaled.permute(0, 3, 1, 2),  # channels last
                normalize=False,  # CoCa's default is True
            )
        return _as_array(features)  # (B, D)

    def encode_images_with_inputs(self, pixels: Tensor) -> tuple[np.ndarray, np.ndarray | None]:
        """Return image features, and the inputs (B, I) of the last linear map, float32, from one pass.

        The inputs are None if the tower does not end in a linear map. Several threads may encode at the same time.
        """
        with recorded_inputs() as inputs:
            features = self.encode_images(pixels)
        return features, _as_array(inputs[-1]) if inputs else None

    @property
    def image_projection(self) -> tuple[np.ndarray, np.ndarray | None] | None:
        """The last linear map of the image tower: weights (I, D) and bias (D,) or None, float32; None without one."""
        tower = self.model.visual
        if not isinstance(tower, ProjectedTower):
            return None
        return _as_array(tower.weight), None if tower.bias is None else _as_array(tower.bias)

    def batch_that_fits(self, most: int, at_once: int) -> int:
        """Return a good batch size, up to `most`, for `at_once` batches that are encoded in parallel.

        On a GPU it is the largest power of two that fits into the free memory.
        """
        if self.device.type != "cuda":
            return min(most, BATCH_ON_CPU)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        self.encode_images(self.on_device(np.zeros((TRIAL_BATCH, *self.framing.size, 3), np.uint8)))
        per_image = (torch.cuda.max_memory_allocated(self.device) - before) / TRIAL_BATCH
        fitting = max(1.0, SHARE_OF_FREE_MEMORY * (free_memory(self.device) or 0) / at_once / max(per_image, 1.0))
        return min(most, 1 << int(math.log2(fitting)))

    @torch.inference_mode()
    def encode_texts(self, prompts: Sequence[str]) -> TextFeatures:
        """Return the un-normalised text features of prompts, float32.

        If the tower ends in a linear projection, the features are computed as `pre_projection @ projection`, so that
        a cache's three text arrays agree to the last bit of float32.
        """
        tokens = self.tokenizer(list(prompts)).to(self.device)  # (B, context)
        tower, weight = _text_projection(self.model)
        if weight is None:
            return TextFeatures(self._text_output(tokens), None)
        with _without_projection(tower):
            pre_projection = self._text_output(tokens)  # (B, K)
        return TextFeatures(pre_projection @ _as_array(weight), pre_projection)

    def are_cut(self, prompts: Sequence[str], tokens: Tensor | None = None) -> list[bool]:
        """Return whether each prompt is longer than the text tower reads, so that its end is cut off.

        Tokenizers do not say so. A prompt that fits has the same tokens in twice the length, apart from padding.
        """
        short = self.tokenizer(list(prompts)) if tokens is None else tokens  # (B, L)
        padding = int(self.tokenizer([""]).mode().values)
        full = ((short == padding).sum(dim=1) <= SPARE).tolist()
        if not any(full):
            return [False] * len(full)
        long = self.tokenizer(list(prompts), context_length=2 * short.shape[1])  # (B, 2 L)
        pairs = zip(short, long, full, strict=True)
        return [is_full and not torch.equal(one[one != padding], two[two != padding]) for one, two, is_full in pairs]

    @torch.inference_mode()
    def refuse_text_not_raw(self, prompts: Sequence[str]) -> None:
        """Check on a few prompts that text features are un-normalised, and that the projection gives them.

        Raises
        ------
        WeightsError
            The text tower returns features of length 1, or its projection is not its last step.
        """
        features = self.encode_texts(prompts)
        complete = self._text_output(self.tokenizer(list(prompts)).to(self.device))  # (B, D)
        error = float(np.abs(complete - features.embeddings).max() / np.abs(complete).max())
        if not error < TOLERATED_ERROR:
            raise WeightsError(
                f"the text features of {self.model_config} are not its pre-projection features times its text "
                f"projection (relative error {error:.2g}, expected below {TOLERATED_ERROR}): this text tower is not "
                "supported; choose another --backbone"
            )
        self.refuse_unit_length(features.embeddings, "text")

    def refuse_unit_length(self, features: np.ndarray, kind: str) -> None:
        """Raise WeightsError if all of several features (B, D) have length 1: the method needs them un-normalised."""
        if have_unit_length(features):
            raise WeightsError(
                f"{self.model_config} returns {kind} features of length 1, expected un-normalised ones: its tower "
                "normalises them, and alpha would act as on no other model; choose another --backbone"
            )

    def _text_output(self, tokens: Tensor) -> np.ndarray:
        """Return what the text tower returns for tokens (B, context), un-normalised."""
        return _as_array(self.model.encode_text(tokens, normalize=False))  # type: ignore[operator]

    @property
    def projection(self) -> np.ndarray | None:
        """The text projection (K, D), float32; None if the tower does not end in a linear map."""
        weight = _text_projection(self.model)[1]
        return None if weight is None else _as_array(weight)


def have_unit_length(features: np.ndarray) -> bool:
    """Return True if all of at least two features (B, D) have length 1; one may have it by chance."""
    lengths = np.linalg.norm(features.astype(np.float32), axis=-1)
    return len(lengths) > 1 and bool(np.abs(lengths - 1).max() < TOLERATED_ERROR)


def _autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    # Not model.half(): its bits differ from those of caches that exist, and casting RN50's weights should take 0.1 ms
    # of a batch of 50 ms on a GPU. Nor cudnn.benchmark: it chooses algorithms by their time, so that a resumed run
    # could compute other bits than one that was not interrupted.
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, dtype=PRECISIONS[precision])


def _text_projection(model: Any) -> tuple[nn.Module, Tensor | None]:
    """Return the module that owns the text projection, and the projection (K, D) or None if it is not linear."""
    tower = model.text if isinstance(getattr(model, "text", None), nn.Module) else model
    projection = getattr(tower, "text_projection", None)
    if isinstance(projection, nn.Linear):  # with a bias it is affine: a cache cannot tune that
        return tower, projection.weight.T if getattr(projection, "bias", None) is None else None
    return tower, projection if isinstance(projection, Tensor) else None


@contextmanager
def _without_projection(tower: nn.Module) -> Iterator[None]:
    """Let a text tower return the inputs of its projection: open_clip's towers skip a projection that is None."""
    projection = tower.text_projection
    tower.text_projection = None  # type: ignore[assignment]
    try:
        yield
    finally:
        tower.text_projection = projection


def _as_array(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().float().cpu().numpy()
    return array
