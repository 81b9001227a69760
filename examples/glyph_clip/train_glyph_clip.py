"""Trains the bundled glyph-clip: a small CLIP, from scratch, contrastively, on rendered glyphs and their captions.

Run as `python examples/glyph_clip/train_glyph_clip.py`; needs the Debian packages that `fonts.txt` lists. No real
digit is read here. Axes: N images, B images of a batch, M captions of a batch, D embedding, S = 32 rows and columns.
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
SHARES = {"pen": 0.52, "hand": 0.16, "print": 0.10, "letter": 0.22}  # of the images
WHOLE_SHARE, DARK_SHARE = 0.12, 0.08  # images at full resolution; images with dark ink on light paper
CHUNK = 2000  # images rendered under one seed
PROXY_IMAGES = 2000
DIGIT_CAPTIONS, LETTER_CAPTIONS = 8, 3  # of a glyph, in each step
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # open_clip's own
FIRST_SCALE, LAST_SCALE = 20.0, 100.0  # exp(logit_scale): low while all is random, in the end what OpenAI's CLIPs have
TEXT_RMS = 0.3  # of a coordinate of an un-normalised text feature, about OpenAI's
PROMPTS = ("a handwritten digit {}.", "a photo of the digit {}.", "the number {}.")

Tokenizer = Callable[[list[str]], Tensor]


@dataclass(frozen=True)
class Options:
    """What a training run can be told.

    Parameters
    ----------
    out : the checkpoint to write.
    images : how many are rendered before training starts; steps draw from these.
    lr, warmup : the highest learning rate, and after how many steps it is reached; then it follows a cosine to zero.
    threads : of the training; one, so that no number of cores changes the order of a sum.
    workers : processes that render; their number changes nothing but the time.
    fonts : the folder below which the fonts of `fonts.txt` lie.
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
    """Grey images (N, S, S), uint8, and the index of each one's glyph (N,), int64."""

    pixels: Tensor
    glyph: Tensor


@dataclass(frozen=True)
class FontFile:
    """A font of the manifest: its Debian package, its file and its use (hand, print or held)."""

    package: str
    path: Path
    use: str


def find_fonts(folder: Path) -> list[FontFile]:
    """Return the manifest's fonts; ends the program with one line that names the packages of those not installed."""
    lines = [line.split() for line in FONTS_FILE.read_text(encoding="ascii").splitlines() if not line.startswith("#")]
    installed = {path.name: path for path in sorted(folder.rglob("*"), reverse=True)}
    missing = sorted({package for package, file, _ in lines if file not in installed})
    if missing:
        sys.exit(f"fonts are missing below {folder}; install them: apt-get install {' '.join(missing)}")
    return [FontFile(package, installed[file], use) for package, file, use in lines]


def render_chunk(seed: Sequence[int], count: int, fonts: Sequence[FontFile], shares: dict[str, float]) -> Images:
    """Return `count` images drawn under one seed, in the shares given (pen, letter, or a use of fonts)."""
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
    """Return `count` images, rendered in parallel; the same for the same seed, however many processes there are."""
    fonts = find_fonts(options.fonts)
    chunks = [((options.seed, stream, chunk), CHUNK, fonts, shares) for chunk in range(-(-count // CHUNK))]
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        parts = pool.starmap(_render_plain, chunks, chunksize=1)
    pixels, labels = (torch.from_numpy(np.concatenate(arrays)[:count]) for arrays in zip(*parts, strict=True))
    return Images(pixels, labels)


def multi_positive_loss(image_features: Tensor, text_features: Tensor, truth: Tensor, scale: float) -> Tensor:
    """Return CLIP's loss, averaged over both directions, where several captions are true of an image.

    Parameters
    ----------
    image_features, text_features : (B, D) and (M, D), any length.
    truth : (B, M) bool, which caption is true of which image; rows and columns without any count for nothing.
    scale : multiplier of the cosines.

    Notes
    -----
    The wanted distribution is even over what is true, so a row's cross-entropy is the mean over its positives.
    """
    directions = functional.normalize(image_features, dim=-1), functional.normalize(text_features, dim=-1)
    logits = scale * directions[0] @ directions[1].T  # (B, M)
    return (_one_way(logits, truth) + _one_way(logits.T, truth.T)) / 2


def train(model: nn.Module, tokenizer: Tokenizer, images: Images, options: Options) -> None:
    """Train a model in place: AdamW, linear warm-up, cosine to zero, logit scale on a fixed course."""
    texts = [(caption, index) for index, glyph in enumerate(glyphs.GLYPHS) for caption in glyphs.captions(glyph)]
    tokens, owner = tokenizer([text for text, _ in texts]), torch.tensor([index for _, index in texts])
    generator = torch.Generator().manual_seed(options.seed)
    optimiser = torch.optim.AdamW(_parameter_groups(model, options.weight_decay), lr=options.lr, betas=(0.9, 0.98))
    towers: Any = model.train().to(memory_format=torch.channels_last)
    started = time.perf_counter()
    for step, rows in zip(range(options.steps), _batches(len(images.glyph), options.batch, generator), strict=False):
        for group in optimiser.param_groups:
            group["lr"] = options.lr * _rate(step, options)
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
    """Return grey images (B, S, S), uint8, as the model's input (B, 3, S, S)."""
    grey = pixels[:, None].float() / 255
    inputs = (grey - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    return inputs.contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def zero_shot_accuracy(model: Any, tokenizer: Tokenizer, images: Images) -> float:
    """Return the percentage of digits that the three prompts' mean text features name rightly."""
    weights = prompt_features(model, tokenizer).mean(dim=1)  # (10, D)
    features = torch.cat([model.encode_image(as_input(part)) for part in images.pixels.split(500)])  # (N, D)
    guesses = (features @ functional.normalize(weights, dim=-1).T).argmax(dim=-1)
    return 100 * (guesses == images.glyph).float().mean().item()


@torch.inference_mode()
def prompt_features(model: Any, tokenizer: Tokenizer) -> Tensor:
    """Return the un-normalised text features of the ten digits in the three prompts (10, 3, D)."""
    prompts = [prompt.format(digit) for digit in glyphs.GLYPHS[:DIGITS] for prompt in PROMPTS]
    features: Tensor = model.encode_text(tokenizer(prompts)).unflatten(0, (DIGITS, len(PROMPTS)))
    return features


@torch.no_grad()
def give_magnitudes(model: Any, tokenizer: Tokenizer) -> None:
    """Give text features and logit scale the magnitudes of OpenAI's models; no ranking changes by that."""
    rms = prompt_features(model, tokenizer).square().mean().sqrt()
    model.text_projection.mul_(TEXT_RMS / rms)
    model.logit_scale.fill_(log(LAST_SCALE))


def save(model: nn.Module, path: Path) -> None:
    """Save a model's weights as float16; the file appears whole or not at all."""
    state = {name: _halved(tensor) for name, tensor in model.state_dict().items()}
    with replaced(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(state))


def main(arguments: Sequence[str] | None = None) -> None:
    """Render, train, report the proxy accuracy and save."""
    options = _parse(arguments)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(options.threads)
    started = time.perf_counter()
    images = render(options, 0, options.images, SHARES)
    held = render(options, 1, PROXY_IMAGES, {"held": 1.0})
    print(f"{len(images.glyph)} images rendered in {time.perf_counter() - started:.0f} s", flush=True)
    model, tokenizer = untrained_model(GLYPH_CLIP_CONFIG.stem, options.seed)
    train(model, tokenizer, images, options)
    give_magnitudes(model.eval(), tokenizer)
    save(model, options.out)
    print(f"zero-shot on held-out handwriting fonts: {zero_shot_accuracy(model, tokenizer, held):.1f} %")


def _render_plain(
    seed: Sequence[int], count: int, fonts: Sequence[FontFile], shares: dict[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    images = render_chunk(seed, count, fonts, shares)  # as arrays, which travel between processes without open files
    return images.pixels.numpy(), images.glyph.numpy()


def _open(font: FontFile) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(font.path), glyphs.FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)


def _picture(rng: np.random.Generator, bitmap: np.ndarray) -> np.ndarray:
    pixels = bitmap.astype(np.uint8) * 255 if rng.random() < WHOLE_SHARE else _small_picture(bitmap)
    return 255 - pixels if rng.random() < DARK_SHARE else pixels


def _small_picture(bitmap: np.ndarray) -> np.ndarray:
    """Return a bitmap's 8x8 counts as pixels, enlarged as the model's preprocessing will enlarge them: (S, S)."""
    small = Image.fromarray(glyphs.as_pixels(glyphs.block_counts(bitmap)))
    return np.asarray(small.resize((glyphs.SIDE, glyphs.SIDE), Image.Resampling.BICUBIC))


def _one_way(logits: Tensor, truth: Tensor) -> Tensor:
    wanted = truth.float() / truth.sum(dim=1, keepdim=True).clamp(min=1)
    return -(wanted * logits.log_softmax(dim=1)).sum(dim=1)[truth.any(dim=1)].mean()


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the parameters in two groups: matrices decay; gains, biases and embeddings do not."""
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
    """Return the rows of a step's captions (M,), a few of each glyph's."""
    order = torch.randperm(len(owner), generator=generator)
    chosen = []
    for glyph in range(len(glyphs.GLYPHS)):
        count = DIGIT_CAPTIONS if glyph < DIGITS else LETTER_CAPTIONS
        chosen.append(order[owner[order] == glyph][:count])
    return torch.cat(chosen)


def _rate(step: int, options: Options) -> float:
    warm = (step + 1) / options.warmup
    return min(warm, 0.5 + 0.5 * cos(pi * step / options.steps))


def _scale(step: int, options: Options) -> float:
    share = min(1.0, 2 * step / options.steps)
    return float(FIRST_SCALE * (LAST_SCALE / FIRST_SCALE) ** share)


def _halved(tensor: Tensor) -> Tensor:
    return (tensor.half() if tensor.is_floating_point() else tensor).contiguous().clone()


def _parse(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(description="Train glyph-clip on rendered glyphs.")
    for name, default in vars(Options()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    return Options(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
