"""Runs for other programs: safetensors, ONNX, open_clip's zero-shot head; each compared with the run."""
