"""A run's classifier for other programs: safetensors, ONNX, open_clip's head, each compared with the run."""
