"""Train the bundled glyph-clip: a small CLIP, from scratch, on rendered glyphs and their captions.

Run as `python examples/glyph_clip/train_glyph_clip.py`; needs the Debian packages in `fonts.txt`. It reads no real
digits. Axes: N images, B images per batch, M captions per batch, D embedding, S = 32 rows and columns.
"""

import argparse
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import cos, log, pi
from pathlib import Path
from typing import Any

import glyphs
import numpy as np
import safetensors.torch
import torch
from PIL import Image, ImageFont
from torch import Tensor, nn
from torch.nn import functional

from taskres_cache.bundled import GLYPH_CLIP_CONFIG, GLYPH_CLIP_WEIGHTS
from taskres_cache.encoders.loading import untrained_model
from taskres_cache.system.files import replaced

FONTS_FILE = Path(__file__).parent / "fonts.txt"
FONT_FOLDER = Path("/usr/share/fonts")
DIGITS = 10
SHARES = {"pen": 0.52, "hand": 0.16, "print": 0.10, "letter": 0.22}  # of all images
WHOLE_SHARE, DARK_SHARE = 0.12, 0.08  # images at full resolution; images with dark ink on light paper
CHUNK = 2000  # images rendered under one seed
PROXY_IMAGES = 2000
DIGIT_CAPTIONS, LETTER_CAPTIONS = 8, 3  # per glyph and step
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # open_clip's own
FIRST_SCALE, LAST_SCALE = 20.0, 100.0  # exp(logit_scale): low while weights are random, at the end OpenAI's
TEXT_RMS = 0.3  # per coordinate of un-normalised text features, about OpenAI's
PROMPTS = ("a handwritten digit {}.", "a photo of the digit {}.", "the number {}.")

Tokenizer = Callable[[list[str]], Tensor]


@dataclass(frozen=True)
class Options:
    """Options of a training run.

    Parameters
    ----------
    out : Path
        Checkpoint to write.
    images : int
        Number of images to render before training; steps draw from these.
    steps, batch : int
        Number of steps, and of images per step.
    lr : float
        Maximum learning rate.
    weight_decay : float
        Weight decay of matrices.
    warmup : int
        Steps until the maximum learning rate; then it follows a cosine to zero.
    seed : int
        Seed of rendering, initial weights and batches.
    threads : int
        Threads for training; one by default, so sums do not depend on the number of cores.
    workers : int
        Processes for rendering; their number does not change the images.
    fonts : Path
        Folder above the fonts in `fonts.txt`.
    """

    out: Path = GLYPH_CLIP_WEIGHTS
    images: int = 120_000
    steps: int = 600
    batch: int = 384
    lr: float = 2e-3
    weight_decay: float = 0.05
    warmup: int = 150
    seed: int = 0
    threads: int = 1
    workers: int = 2
    fonts: Path = FONT_FOLDER


@dataclass(frozen=True)
class Images:
    """Grey images with their glyphs.

    Parameters
    ----------
    pixels : Tensor of shape (N, S, S), uint8
        Grey levels.
    glyph : Tensor of shape (N,), int64
        Positions in `GLYPHS`.
    """

    pixels: Tensor
    glyph: Tensor


@dataclass(frozen=True)
class FontFile:
    """A font in `fonts.txt`.

    Parameters
    ----------
    package : str
        Debian package.
    path : Path
        Font file.
    use : {"hand", "print", "held"}
        What it is used for, see `fonts.txt`.
    """

    package: str
    path: Path
    use: str


def find_fonts(folder: Path) -> list[FontFile]:
    """Return the fonts in `fonts.txt`; exit with one line that names the packages of missing fonts."""
    lines = [line.split() for line in FONTS_FILE.read_text(encoding="ascii").splitlines() if not line.startswith("#")]
    installed = {path.name: path for path in sorted(folder.rglob("*"), reverse=True)}
    missing = sorted({package for package, file, _ in lines if file not in installed})
    if missing:
        sys.exit(f"fonts are missing below {folder}; install them: apt-get install {' '.join(missing)}")
    return [FontFile(package, installed[file], use) for package, file, use in lines]


def render_chunk(seed: Sequence[int], count: int, fonts: Sequence[FontFile], shares: dict[str, float]) -> Images:
    """Render `count` images with one seed; `shares` gives the share of each kind (pen, letter, or a use of fonts)."""
    rng, ways, distortion = np.random.default_rng(seed), glyphs.ways_to_write(), glyphs.Distortion()
    faces = {use: [_open(font) for font in fonts if font.use == use] for use in ("hand", "print", "held")}
    kinds = rng.choice(list(shares), size=count, p=list(shares.values()))
    pixels, labels = np.empty((count, glyphs.SIDE, glyphs.SIDE), np.uint8), np.empty(count, np.int64)
    for row, kind in enumerate(kinds):
        labels[row] = rng.integers(DIGITS, len(glyphs.GLYPHS)) if kind == "letter" else rng.integers(DIGITS)
        glyph = glyphs.GLYPHS[labels[row]]
        if kind == "pen":
            bitmap = glyphs.pen_bitmap(rng, ways[glyph], distortion)
        else:
            choice = faces["hand"] + faces["print"] if kind == "letter" else faces[kind]
            character = glyph.upper() if rng.random() < 0.5 else glyph
            bitmap = glyphs.font_bitmap(rng, choice[rng.integers(len(choice))], character, distortion)
        pixels[row] = _picture(rng, bitmap) if "held" not in shares else _small_picture(bitmap)
    return Images(torch.from_numpy(pixels), torch.from_numpy(labels))


def render(options: Options, stream: int, count: int, shares: dict[str, float]) -> Images:
    """Render `count` images in parallel; they depend on the seed, not on the number of processes."""
    fonts = find_fonts(options.fonts)
    chunks = [((options.seed, stream, chunk), CHUNK, fonts, shares) for chunk in range(-(-count // CHUNK))]
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        parts = pool.starmap(_render_plain, chunks, chunksize=1)
    pixels, labels = (torch.from_numpy(np.concatenate(arrays)[:count]) for arrays in zip(*parts, strict=True))
    return Images(pixels, labels)


def multi_positive_loss(image_features: Tensor, text_features: Tensor, truth: Tensor, scale: float) -> Tensor:
    """Return CLIP's loss with several captions per image, averaged over both directions.

    Parameters
    ----------
    image_features : Tensor of shape (B, D)
        Un-normalised.
    text_features : Tensor of shape (M, D)
        Un-normalised.
    truth : Tensor of shape (B, M), bool
        True where a caption describes an image; rows and columns without True are ignored.
    scale : float
        Multiplier of the cosine similarities.

    Returns
    -------
    Tensor of shape ()
        The loss.

    Notes
    -----
    The target distribution is uniform over the positives, so a row's cross-entropy is the mean over its positives.
    """
    directions = functional.normalize(image_features, dim=-1), functional.normalize(text_features, dim=-1)
    logits = scale * directions[0] @ directions[1].T  # (B, M)
    return (_one_way(logits, truth) + _one_way(logits.T, truth.T)) / 2


def train(model: nn.Module, tokenizer: Tokenizer, images: Images, options: Options) -> None:
    """Train a model in place: AdamW, linear warm-up, cosine to zero, logit scale on a fixed schedule."""
    texts = [(caption, index) for index, glyph in enumerate(glyphs.GLYPHS) for caption in glyphs.captions(glyph)]
    tokens, owner = tokenizer([text for text, _ in texts]), torch.tensor([index for _, index in texts])
    generator = torch.Generator().manual_seed(options.seed)
    optimiser = torch.optim.AdamW(_parameter_groups(model, options.weight_decay), lr=options.lr, betas=(0.9, 0.98))
    towers: Any = model.train().to(memory_format=torch.channels_last)
    started = time.perf_counter()
    for step, rows in zip(range(options.steps), _batches(len(images.glyph), options.batch, generator), strict=False):
        for group in optimiser.param_groups:
            group["lr"] = options.lr * _lr_factor(step, options)
        chosen = _choose_captions(owner, generator)  # (M,)
        truth = images.glyph[rows][:, None] == owner[chosen]  # (B, M)
        image_features = towers.encode_image(as_input(images.pixels[rows]))  # (B, D)
        loss = multi_positive_loss(image_features, towers.encode_text(tokens[chosen]), truth, _scale(step, options))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % 200 == 0 or step + 1 == options.steps:
            print(f"step {step:5d} loss {loss.item():.4f} {time.perf_counter() - started:6.0f} s", flush=True)


def as_input(pixels: Tensor) -> Tensor:
    """Return grey images (B, S, S), uint8, as the model's input (B, 3, S, S), float32."""
    grey = pixels[:, None].float() / 255
    inputs = (grey - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    return inputs.contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def zero_shot_accuracy(model: Any, tokenizer: Tokenizer, images: Images) -> float:
    """Return the zero-shot accuracy on digits in percent, with the mean text features of the three prompts."""
    weights = prompt_features(model, tokenizer).mean(dim=1)  # (10, D)
    features = torch.cat([model.encode_image(as_input(part)) for part in images.pixels.split(500)])  # (N, D)
    predictions = (features @ functional.normalize(weights, dim=-1).T).argmax(dim=-1)
    return 100 * (predictions == images.glyph).float().mean().item()


@torch.inference_mode()
def prompt_features(model: Any, tokenizer: Tokenizer) -> Tensor:
    """Return the text features (10, 3, D) of the ten digits in the three prompts, un-normalised."""
    prompts = [prompt.format(digit) for digit in glyphs.GLYPHS[:DIGITS] for prompt in PROMPTS]
    features: Tensor = model.encode_text(tokenizer(prompts)).unflatten(0, (DIGITS, len(PROMPTS)))
    return features


@torch.no_grad()
def rescale_like_openai(model: Any, tokenizer: Tokenizer) -> None:
    """Rescale text features and logit scale to the magnitudes of OpenAI's models; rankings do not change."""
    rms = prompt_features(model, tokenizer).square().mean().sqrt()
    model.text_projection.mul_(TEXT_RMS / rms)
    model.logit_scale.fill_(log(LAST_SCALE))


def save(model: nn.Module, path: Path) -> None:
    """Save a model's weights as float16; the file appears complete or not at all."""
    state = {name: _as_float16(tensor) for name, tensor in model.state_dict().items()}
    with replaced(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(state))


def main(arguments: Sequence[str] | None = None) -> None:
    """Render, train, print the accuracy on held-out fonts, and save."""
    options = _parse(arguments)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(options.threads)
    started = time.perf_counter()
    images = render(options, 0, options.images, SHARES)
    held = render(options, 1, PROXY_IMAGES, {"held": 1.0})
    print(f"{len(images.glyph)} images rendered in {time.perf_counter() - started:.0f} s", flush=True)
    model, tokenizer = untrained_model(GLYPH_CLIP_CONFIG.stem, options.seed)
    train(model, tokenizer, images, options)
    rescale_like_openai(model.eval(), tokenizer)
    save(model, options.out)
    print(f"zero-shot on held-out handwriting fonts: {zero_shot_accuracy(model, tokenizer, held):.1f} %")


def _render_plain(
    seed: Sequence[int], count: int, fonts: Sequence[FontFile], shares: dict[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    images = render_chunk(seed, count, fonts, shares)  # as arrays: sending tensors keeps files open
    return images.pixels.numpy(), images.glyph.numpy()


def _open(font: FontFile) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(font.path), glyphs.FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)


def _picture(rng: np.random.Generator, bitmap: np.ndarray) -> np.ndarray:
    pixels = bitmap.astype(np.uint8) * 255 if rng.random() < WHOLE_SHARE else _small_picture(bitmap)
    return 255 - pixels if rng.random() < DARK_SHARE else pixels


def _small_picture(bitmap: np.ndarray) -> np.ndarray:
    """Return a bitmap's 8x8 counts as pixels (S, S), enlarged as in the model's preprocessing."""
    small = Image.fromarray(glyphs.as_pixels(glyphs.block_counts(bitmap)))
    return np.asarray(small.resize((glyphs.SIDE, glyphs.SIDE), Image.Resampling.BICUBIC))


def _one_way(logits: Tensor, truth: Tensor) -> Tensor:
    target = truth.float() / truth.sum(dim=1, keepdim=True).clamp(min=1)
    return -(target * logits.log_softmax(dim=1)).sum(dim=1)[truth.any(dim=1)].mean()


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the parameters in two groups: matrices have weight decay; gains, biases and embeddings do not."""
    trained = {name: parameter for name, parameter in model.named_parameters() if name != "logit_scale"}
    decays = {name: parameter.ndim > 1 and "embedding" not in name for name, parameter in trained.items()}
    return [
        {"params": [trained[name] for name in trained if decays[name]], "weight_decay": weight_decay},
        {"params": [trained[name] for name in trained if not decays[name]], "weight_decay": 0.0},
    ]


def _batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    while True:
        order = torch.randperm(count, generator=generator)
        yield from (rows for rows in order.split(size) if len(rows) == min(size, count))


def _choose_captions(owner: Tensor, generator: torch.Generator) -> Tensor:
    """Return the rows of a step's captions (M,), a few per glyph."""
    order = torch.randperm(len(owner), generator=generator)
    chosen = []
    for glyph in range(len(glyphs.GLYPHS)):
        count = DIGIT_CAPTIONS if glyph < DIGITS else LETTER_CAPTIONS
        chosen.append(order[owner[order] == glyph][:count])
    return torch.cat(chosen)


def _lr_factor(step: int, options: Options) -> float:
    warm = (step + 1) / options.warmup
    return min(warm, 0.5 + 0.5 * cos(pi * step / options.steps))


def _scale(step: int, options: Options) -> float:
    share = min(1.0, 2 * step / options.steps)
    return float(FIRST_SCALE * (LAST_SCALE / FIRST_SCALE) ** share)


def _as_float16(tensor: Tensor) -> Tensor:
    return (tensor.half() if tensor.is_floating_point() else tensor).contiguous().clone()


def _parse(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(description="Train glyph-clip on rendered glyphs.")
    for name, default in vars(Options()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    return Options(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
