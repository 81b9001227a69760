"""Bundled files for use without a network: a small CLIP (`glyph-clip`), real images (`digits`), open_clip's sizes."""

from pathlib import Path

FOLDER = Path(__file__).parent
DIGITS_ARCHIVE = FOLDER / "digits.zip"
CLIP_SIZES = FOLDER / "clip-sizes.json"  # written by `make clip-sizes`
GLYPH_CLIP_CONFIG = FOLDER / "glyph-clip.json"
GLYPH_CLIP_WEIGHTS = FOLDER / "glyph-clip.safetensors"
