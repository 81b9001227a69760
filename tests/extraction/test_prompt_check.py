"""Prompts that the text tower cuts off, and classes that it cannot tell apart."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.datasets import Dataset
from taskres_cache.encoders.backbone import Backbone
from taskres_cache.errors import OptionError
from taskres_cache.extraction.extract import ExtractOptions, extract
from taskres_cache.extraction.prompt_check import checked_prompts

WORDS = "one two three four five six seven eight nine ten"  # with begin and end 12 of the 16 tokens of glyph-clip
OPTIONS = ExtractOptions(shots=(1,), seeds=(1,), workers=0)


def notes(backbone: Backbone, names: tuple[str, ...], *templates: str) -> tuple[str, ...]:
    named = SimpleNamespace(classnames=names, names_in_prompts=names, templates=templates or ("a photo of a {}.",))
    return checked_prompts(named, backbone, "spaces")


@pytest.mark.parametrize(
    ("prompt", "cut"),
    [(WORDS, False), (f"{WORDS} a b c d", False), (f"{WORDS} a b c d e", True), ("", False), ("! " * 30, True)],
)
def test_a_prompt_is_cut_if_its_tokens_do_not_fit(glyph_clip: Backbone, prompt: str, cut: bool) -> None:
    assert glyph_clip.are_cut([prompt, "short"]) == [cut, False]


@pytest.mark.parametrize("mode", ["eos", "class token last", "no eos", "end token as padding"])
def test_tokenizers_of_other_kinds(glyph_clip: Backbone, mode: str) -> None:
    """Padding other than 0, a class token at the end (`clips`), no end token: as Hugging Face tokenizers have them."""
    end, last = {
        "eos": ([2], []),
        "class token last": ([2], [3]),
        "no eos": ([], []),
        "end token as padding": ([1], []),
    }[mode]

    def tokenizer(prompts: list[str], context_length: int | None = None) -> torch.Tensor:
        length = (context_length or 8) - len(last)
        rows = [[10 + len(word) for word in prompt.split()][: length - len(end)] + end for prompt in prompts]
        return torch.tensor([row + [1] * (length - len(row)) + last for row in rows])

    backbone = replace(glyph_clip, tokenizer=tokenizer)
    fitting = 8 - len(end) - len(last)
    assert backbone.are_cut(["w " * fitting, "w " * (fitting + 1), "w"]) == [False, True, False]


def test_a_cut_class_name_is_refused_before_anything_is_encoded(
    dataset: Dataset, glyph_clip: Backbone, tmp_path: Path
) -> None:
    named = replace(dataset, templates=("a {}", f"{WORDS} a b c {{}}."))
    with pytest.raises(OptionError) as refused:
        extract(named, glyph_clip, OPTIONS, tmp_path / "cache" / "photos.h5")
    assert str(refused.value) == (
        "glyph-clip reads 16 tokens, and the prompt 'one two three four five six seven eight nine ten a b c {}.' is "
        "longer before the end of the class name 'black_cat', which is cut off; shorten the prompt (--templates FILE) "
        "or the name of the class"
    )
    assert not (tmp_path / "cache").exists()
    with pytest.raises(OptionError, match=r"the class name 'one two .* nine ten one two thr...', which is cut off"):
        notes(glyph_clip, (f"{WORDS} {WORDS} a", f"{WORDS} {WORDS} b", "c"))


def test_a_cut_end_is_a_note(dataset: Dataset, glyph_clip: Backbone, tmp_path: Path) -> None:
    named = replace(dataset, templates=(f"a {{}} {WORDS} a b", "a {}."))
    done = extract(named, glyph_clip, OPTIONS, tmp_path / "photos.h5")
    assert done.notes == (
        "2 of 6 prompts are longer than the 16 tokens that glyph-clip reads (the longest has 17); what comes after the "
        "class name is cut off, as in 'a black cat one two three four five six seven eight nine ten...'",
    )
    texts = FeatureCache(tmp_path / "photos.h5").text_features
    assert len({row.tobytes() for row in texts}) == 3


def test_classes_that_read_alike_get_a_note(glyph_clip: Backbone) -> None:
    same = "classes have the same text features: text cannot tell them apart: "
    assert notes(glyph_clip, ("Cat", "dog", "cat")) == (f"{same}'Cat' (0) and 'cat' (2)",)
    assert notes(glyph_clip, ("hot_dog", "hot dog", "x")) == (f"{same}'hot_dog' (0) and 'hot dog' (1)",)
    assert notes(glyph_clip, ("hotdog", "hot dog", "x")) == (
        "classes differ only in case, spaces or underscores: 'hotdog' (0) and 'hot dog' (1)",
    )
    assert notes(glyph_clip, ("crane", "x", "crane")) == (f"{same}'crane' (0) and 'crane' (2)",)
    many = tuple(f"{letter}{number}" for number in range(9) for letter in "aA")
    assert notes(glyph_clip, many)[0].endswith("'a4' (8) and 'A4' (9); and 4 more")
    assert notes(glyph_clip, ("cat", "dog", "bird")) == ()
