"""Bundled files for use without a network: a small CLIP (`glyph-clip`) and real images (`digits`)."""

from pathlib import Path

FOLDER = Path(__file__).parent
DIGITS_ARCHIVE = FOLDER / "digits.zip"
GLYPH_CLIP_CONFIG = FOLDER / "glyph-clip.json"
GLYPH_CLIP_WEIGHTS = FOLDER / "glyph-clip.safetensors"
