"""The renderer and the training of the bundled glyph-clip, with Pillow's font: no system font is needed."""

import string
from math import exp, log
from pathlib import Path

import glyphs
import numpy as np
import pytest
import torch
import train_glyph_clip
from PIL import Image, ImageFont
from train_glyph_clip import Images, multi_positive_loss

from taskres_cache.encoders.loading import untrained_model


@pytest.fixture
def font() -> ImageFont.FreeTypeFont:
    default = ImageFont.load_default(glyphs.FONT_SIZE)
    assert isinstance(default, ImageFont.FreeTypeFont)
    return default


def pens(seed: int) -> np.ndarray:
    rng, ways = np.random.default_rng(seed), glyphs.ways_to_write()
    return np.stack([glyphs.pen_bitmap(rng, ways[digit], glyphs.Distortion()) for digit in string.digits * 3])


def prints(seed: int, font: ImageFont.FreeTypeFont) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([glyphs.font_bitmap(rng, font, glyph, glyphs.Distortion()) for glyph in glyphs.GLYPHS])


def test_every_pixel_depends_on_the_seed(font: ImageFont.FreeTypeFont) -> None:
    assert np.array_equal(pens(1), pens(1))
    assert not np.array_equal(pens(1), pens(2))
    assert np.array_equal(prints(1, font), prints(1, font))
    assert not np.array_equal(prints(1, font), prints(2, font))


def test_every_image_has_ink_and_paper(font: ImageFont.FreeTypeFont) -> None:
    for bitmaps in (pens(3), prints(3, font)):
        assert bitmaps.shape[1:] == (32, 32)
        ink = bitmaps.mean(axis=(1, 2))
        assert ink.min() > 0.02
        assert ink.max() < 0.8


def test_pen_strokes_fill_the_height_unless_squeezed() -> None:
    rng, ways = np.random.default_rng(0), glyphs.ways_to_write()
    calm = glyphs.Distortion(squeezed=0.0, broken=0.0, turn=0.0)
    for digit in string.digits:
        rows = np.flatnonzero(glyphs.pen_bitmap(rng, ways[digit], calm).any(axis=1))
        assert rows[0] <= 2
        assert rows[-1] >= 29


def test_a_character_missing_in_a_font_is_named(font: ImageFont.FreeTypeFont) -> None:
    with pytest.raises(ValueError, match="has no glyph for ' '"):
        glyphs.font_bitmap(np.random.default_rng(0), font, " ", glyphs.Distortion())


def test_counts_are_the_ink_of_4x4_blocks() -> None:
    bitmap = np.zeros((32, 32), dtype=bool)
    bitmap[0:4, 4:8] = True
    bitmap[9, 30] = True
    counts = glyphs.block_counts(bitmap)
    assert counts.shape == (8, 8)
    assert counts[0, 1] == 16
    assert counts[2, 7] == 1
    assert counts.sum() == 17
    assert glyphs.as_pixels(np.array([0, 1, 8, 16])).tolist() == [0, 16, 128, 255]


def test_every_digit_has_several_ways_to_write_it() -> None:
    ways = glyphs.ways_to_write()
    assert sorted(ways) == list(string.digits)
    assert min(len(list_of_ways) for list_of_ways in ways.values()) >= 5
    assert all(len(stroke) >= 2 for several in ways.values() for _, strokes in several for stroke in strokes)


def test_captions_are_distinct_and_fit_the_context() -> None:
    every = [caption for glyph in glyphs.GLYPHS for caption in glyphs.captions(glyph)]
    assert len(set(every)) == len(every)
    assert "a handwritten digit 3." in every
    assert "a photo of the digit three." in every
    assert "a handwritten letter k." in every
    _, tokenizer = untrained_model("glyph-clip", 0)
    tokens = tokenizer(every)  # (M, context)
    assert len({tuple(row) for row in tokens.tolist()}) == len(every)
    assert bool((tokens[:, -1] == 0).all())  # none is truncated


def test_multi_positive_loss_against_a_hand_computed_value() -> None:
    images = torch.tensor([[2.0, 0.0], [0.0, 3.0]])  # two images at right angles; their lengths must not matter
    texts = torch.tensor([[1.0, 0.0], [5.0, 0.0], [0.0, 1.0]])  # the first two captions belong to the first image
    truth = torch.tensor([[True, True, False], [False, False, True]])
    first, second = log(2 * exp(2) + 1) - 2, log(exp(2) + 2) - 2  # logits 2 2 0 and 0 0 2
    captions = log(exp(2) + 1) - 2  # each caption sees logits 2 and 0
    expected = ((first + second) / 2 + captions) / 2
    assert multi_positive_loss(images, texts, truth, 2.0).item() == pytest.approx(expected, abs=1e-6)


def test_a_caption_without_an_image_is_ignored() -> None:
    images, texts = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    loss = multi_positive_loss(images, texts, torch.tensor([[True, False]]), 1.0)
    assert loss.item() == pytest.approx((log(exp(1) + 1) - 1) / 2, abs=1e-6)


def test_training_images_match_the_preprocessing() -> None:
    bitmap = pens(5)[0]
    small = Image.fromarray(glyphs.as_pixels(glyphs.block_counts(bitmap)))
    enlarged = train_glyph_clip._small_picture(bitmap)
    assert np.array_equal(enlarged, np.asarray(small.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC))[..., 0])


def test_missing_fonts_give_one_line_with_the_packages(tmp_path: Path) -> None:
    with pytest.raises(
        SystemExit, match=r"^fonts are missing below .*apt-get install .*fonts-bwht .*fonts-lato"
    ) as end:
        train_glyph_clip.find_fonts(tmp_path)
    assert "\n" not in str(end.value)


def trained(seed: int) -> tuple[torch.nn.Module, torch.Tensor]:
    bitmaps = torch.from_numpy(pens(0)).to(torch.uint8) * 255
    images = Images(bitmaps, torch.arange(10).repeat(3))
    model, tokenizer = untrained_model("glyph-clip", 0)
    train_glyph_clip.train(model, tokenizer, images, train_glyph_clip.Options(steps=3, batch=30, warmup=1, seed=seed))
    train_glyph_clip.rescale_like_openai(model.eval(), tokenizer)
    return model, train_glyph_clip.prompt_features(model, tokenizer)


def test_training_depends_on_its_seed_and_ends_with_openai_magnitudes() -> None:
    model, features = trained(seed=1)
    assert torch.equal(features, trained(seed=1)[1])
    assert not torch.equal(features, trained(seed=2)[1])
    assert features.square().mean().sqrt().item() == pytest.approx(0.3, rel=1e-3)
    assert model.state_dict()["logit_scale"].exp().item() == pytest.approx(100, rel=1e-3)
