"""The preprocessing of a model as ONNX nodes: a picture of any size in, resized and cropped pixels out.

onnxruntime resizes uint8 with antialiasing as Pillow does, in integers, if the cubic's coefficient is Pillow's -0.5
and weights outside the picture are left out: one of 3,000 pixels differs, by 1 of 255 (float32: every fifth pixel).
Where width and height are scaled differently (squash), Pillow 13 begins with the cheaper axis, onnxruntime with the
width: one of 8 pixels differs, by up to 4.

Axes: H and W height and width of the picture, S and R those of the model's images.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from taskres_cache.errors import ExportError
from taskres_cache.exporting.onnx_graph import OPSET, OUTPUT, OnnxForm, checked_session, describe
from taskres_cache.runs.classifier import Classifier

PICTURE, PREFIX = "picture", "preprocess_"
PILLOW_CUBIC = -0.5
MODES = {"bicubic": "cubic", "bilinear": "linear"}  # open_clip's name -> ONNX's
REMEDY = "export it without --with-preprocessing, and resize and crop as its metadata says"


@dataclass(frozen=True)
class PictureForm(OnnxForm):
    """A graph from one picture (H, W, 3), uint8, to probabilities (1, C): preprocessing, encoder and head.

    Parameters
    ----------
    backbone : Backbone
        In fp32 on the CPU.
    """

    tolerance: ClassVar[float] = 1e-2  # a pixel that is rounded otherwise moves probabilities by up to a thousandth

    def probabilities(self, files: Any, inputs: np.ndarray) -> np.ndarray:
        """Return probabilities (N, C) of pictures, an array (N,) of arrays (H, W, 3), from onnxruntime on the CPU."""
        session = checked_session(files[0])
        return np.concatenate([session.run([OUTPUT], {PICTURE: picture})[0] for picture in inputs])

    def usage(self, classifier: Classifier, file: Path) -> tuple[str, ...]:
        """Return lines that classify a picture with onnxruntime and Pillow."""
        return (
            "import json, numpy, onnxruntime",
            "from PIL import Image, ImageOps",
            f'session = onnxruntime.InferenceSession("{file.name}")',
            'picture = ImageOps.exif_transpose(Image.open("picture.jpg")).convert("RGB")',
            f'((*shares,),) = session.run(None, {{"{PICTURE}": numpy.asarray(picture)}})',
            'classnames = json.loads(session.get_modelmeta().custom_metadata_map["classnames"])',
        )

    def _model(self, classifier: Classifier) -> Any:
        """Return preprocessing and encoder graph as one."""
        import onnx

        assert self.backbone is not None
        encoder = self._encoder_model(classifier)
        before = preprocessing(self.backbone.preprocess, self.backbone.framing.size)
        before.ir_version = encoder.ir_version
        del before.opset_import[:]
        before.opset_import.extend(encoder.opset_import)
        joined = onnx.compose.merge_models(before, encoder, [(before.graph.output[0].name, "pixels")])
        batch = joined.graph.output[0].type.tensor_type.shape.dim[0]
        batch.Clear()
        batch.dim_value = 1
        return describe(joined, classifier, self._how_to_use(), self._input_description())

    def _input_name(self) -> str:
        return PICTURE

    def _input_description(self) -> str:
        return "uint8 (H, W, 3), one RGB picture of any size, upright"


def preprocessing(preprocess: Mapping[str, Any], size: tuple[int, int]) -> Any:
    """Return an ONNX model from a picture (H, W, 3), uint8, to pixels (1, 3, S, R), float32 from 0 to 1.

    Parameters
    ----------
    preprocess : mapping of str to object
        open_clip's preprocessing.
    size : (int, int)
        Height and width of the model's images.

    Raises
    ------
    ExportError
        The preprocessing has a part that cannot be expressed.
    """
    from onnx import TensorProto, checker, helper, numpy_helper

    mode, interpolation = preprocess.get("resize_mode", "shortest"), preprocess.get("interpolation", "bicubic")
    if mode not in ("shortest", "squash") or interpolation not in MODES or (mode == "shortest" and size[0] != size[1]):
        raise ExportError(
            f"could not export the preprocessing (resize_mode {mode}, interpolation {interpolation}, size {size}); "
            f"expected shortest to a square or squash, and bicubic or bilinear; {REMEDY}"
        )
    nodes = [
        *_resized(mode, MODES[interpolation]),
        *_cropped(),
        helper.make_node("Cast", ["cropped"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["numbers", "white"], ["framed"]),
    ]
    constants: dict[str, np.ndarray] = {
        "size": np.array(size, np.int64),
        "first": np.array([0], np.int64),
        "batch_and_channels": np.array([1, 3], np.int64),
        "height_and_width": np.array([2, 3], np.int64),
        "two": np.array(2, np.float32),
        "white": np.array(255, np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "preprocessing",
        [helper.make_tensor_value_info(PICTURE, TensorProto.UINT8, ["H", "W", 3])],
        [helper.make_tensor_value_info("framed", TensorProto.FLOAT, [1, 3, *size])],
        [numpy_helper.from_array(value, name) for name, value in constants.items() if _is_read(name, nodes)],
    )
    model = helper.make_model(_prefixed(graph), opset_imports=[helper.make_opsetid("", OPSET)])
    checker.check_model(model)
    return model


def _resized(mode: str, interpolation: str) -> list[Any]:
    """Return the nodes that resize a picture: to the size, or its shorter side to it, as torchvision rounds."""
    from onnx import helper

    sides = [("Identity", ["size"], ["sides"])]
    if mode == "shortest":
        sides = [
            ("ReduceMin", ["given"], ["shorter"]),
            ("Mul", ["given", "size"], ["scaled"]),
            ("Div", ["scaled", "shorter"], ["sides"]),  # integers: the longer side is rounded down
        ]
    return [
        helper.make_node("Shape", [PICTURE], ["given"], start=0, end=2),
        *(helper.make_node(kind, inputs, outputs) for kind, inputs, outputs in sides),
        helper.make_node("Transpose", [PICTURE], ["channels_first"], perm=[2, 0, 1]),
        helper.make_node("Unsqueeze", ["channels_first", "first"], ["batch"]),
        helper.make_node("Concat", ["batch_and_channels", "sides"], ["shape"], axis=0),
        helper.make_node(
            "Resize",
            ["batch", "", "", "shape"],
            ["resized"],
            mode=interpolation,
            antialias=1,
            cubic_coeff_a=PILLOW_CUBIC,
            exclude_outside=1,  # at borders, Pillow divides by the sum of the weights inside
            coordinate_transformation_mode="half_pixel",
        ),
    ]


def _cropped() -> list[Any]:
    """Return the nodes that cut out the centre; both ONNX and Python round halves to even."""
    from onnx import TensorProto, helper

    return [
        helper.make_node("Sub", ["sides", "size"], ["spare"]),
        helper.make_node("Cast", ["spare"], ["spare_number"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["spare_number", "two"], ["half"]),
        helper.make_node("Round", ["half"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], ["start"], to=TensorProto.INT64),
        helper.make_node("Add", ["start", "size"], ["end"]),
        helper.make_node("Slice", ["resized", "start", "end", "height_and_width"], ["cropped"]),
    ]


def _is_read(name: str, nodes: list[Any]) -> bool:
    return any(name in node.input for node in nodes)


def _prefixed(graph: Any) -> Any:
    """Return a graph whose names do not occur in the encoder's; the picture keeps its name."""
    from onnx import compose

    named = compose.add_prefix_graph(graph, PREFIX, inplace=True)
    for node in named.node:
        node.input[:] = [PICTURE if name == PREFIX + PICTURE else name for name in node.input]
    named.input[0].name = PICTURE
    return named
