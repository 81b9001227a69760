"""Classify pictures with an exported run, onnxruntime and Pillow: python classify_with_onnx.py RUN.onnx IMAGE ..."""

import json
import sys

import numpy
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1])
classnames = json.loads(session.get_modelmeta().custom_metadata_map["classnames"])
for path in sys.argv[2:]:
    picture = ImageOps.exif_transpose(Image.open(path)).convert("RGB")  # upright, any size
    probabilities = session.run(None, {"picture": numpy.asarray(picture)})[0][0]
    best = int(probabilities.argmax())
    print(f"{path}: {classnames[best]} {100 * probabilities[best]:.1f} %")
