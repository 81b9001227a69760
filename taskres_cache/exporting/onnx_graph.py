"""Export format ONNX: the head alone, or the image tower with the head, as one graph.

Axes: N images, C classes, D embedding, H and W height and width of the model's images.
"""

import io
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from taskres_cache.encoders.backbone import Backbone
from taskres_cache.errors import ExportError
from taskres_cache.exporting.form import DIGEST, Shapes, as_text, cosine_scale, metadata, refuse_changed, unit_weights
from taskres_cache.heads.formulas import normalise
from taskres_cache.heads.head import Head, Reads
from taskres_cache.heads.kinds import CosineHead
from taskres_cache.runs.classifier import Classifier
from taskres_cache.system.extras import require

OPSET = 18  # written without conversion by torch 2.11 and newer
MAX_BYTES = 2**31 - 2**24  # a protocol buffer holds less than 2 GiB, part of which is the graph
OUTPUT = "probabilities"


@dataclass(frozen=True)
class OnnxForm:
    """A graph from un-normalised `image_features` (N, D), or from `pixels` with a backbone, to probabilities.

    Parameters
    ----------
    backbone : Backbone, optional
        In fp32 on the CPU; its image tower becomes part of the graph. None for the head alone.
    """

    backbone: Backbone | None = None
    name: ClassVar[str] = "onnx"
    tolerance: ClassVar[float] = 1e-4  # float32 arithmetic; heads, the run's too, are within 1.5e-5 (measured)

    def files(self, file: Path) -> tuple[Path, ...]:
        """Return the one file."""
        return (file,)

    def write(self, classifier: Classifier, files: Sequence[Path]) -> Shapes:
        """Write the graph and return its shapes; raises ExportError if torch cannot export the image tower."""
        self._refuse_large_towers()
        try:
            model = self._model(classifier)
            content = model.SerializeToString()
        except Exception as error:  # the exporter traces arbitrary code and raises many kinds
            raise ExportError(f"{self._refusal()} ({_reason(error)}); {self._remedy()}") from error
        files[0].write_bytes(content)
        return {end.name: _shape(end) for end in (*model.graph.input, *model.graph.output)}

    def probabilities(self, files: Sequence[Path], inputs: np.ndarray) -> np.ndarray:
        """Return probabilities (N, C) from onnxruntime on the CPU; the first input alone, the others in one batch."""
        session = checked_session(files[0])
        batches = [batch for batch in (inputs[:1], inputs[1:]) if len(batch)]
        name = session.get_inputs()[0].name
        return np.concatenate([session.run([OUTPUT], {name: batch})[0] for batch in batches])

    def usage(self, classifier: Classifier, file: Path) -> tuple[str, ...]:
        """Return lines that compute probabilities with onnxruntime."""
        name = self._input_name()
        return (
            "import json, onnxruntime",
            f'session = onnxruntime.InferenceSession("{file.name}")',
            f'(probabilities,) = session.run(None, {{"{name}": {name}}})  # {self._input_description()}',
            'classnames = json.loads(session.get_modelmeta().custom_metadata_map["classnames"])',
        )

    def _model(self, classifier: Classifier) -> Any:
        """Return the graph with its metadata."""
        if self.backbone is None:
            model = _traced(_graph_of(classifier), torch.ones(2, classifier.head.width), self._input_name())
        else:
            model = self._encoder_model(classifier)
        return describe(model, classifier, self._how_to_use(), self._input_description())

    def _encoder_model(self, classifier: Classifier) -> Any:
        """Return the graph from pixels to probabilities, without metadata."""
        assert self.backbone is not None
        example = torch.rand(2, 3, *self.backbone.framing.size, generator=torch.Generator().manual_seed(0))
        graph = _EncoderGraph(_graph_of(classifier), self.backbone, classifier.head.input)
        return _traced(graph, example, "pixels")

    def _refuse_large_towers(self) -> None:
        """Raise ExportError for an image tower that one file cannot hold, before it is traced for minutes."""
        if self.backbone is None:
            return
        visual: Any = self.backbone.model.visual
        size = sum(weight.numel() * weight.element_size() for weight in visual.state_dict().values())
        if size > MAX_BYTES:
            reason = f"its weights take {size / 2**30:.1f} GiB and one ONNX file holds 2 GiB"
            raise ExportError(f"{self._refusal()} ({reason}); {self._remedy()}")

    def _refusal(self) -> str:
        name = "this head" if self.backbone is None else f"the image tower of {self.backbone.model_config}"
        return f"could not export {name} to ONNX"

    def _remedy(self) -> str:
        if self.backbone is None:
            return "export it to .safetensors"
        return "export the head alone, without --with-encoder, and pass it the output of encode_image"

    def _input_name(self) -> str:
        return "image_features" if self.backbone is None else "pixels"

    def _input_description(self) -> str:
        if self.backbone is None:
            return "float32 (N, D), as encode_image(..., normalize=False) returns them"
        height, width = self.backbone.framing.size
        return f"float32 (N, 3, {height}, {width}), RGB from 0 to 1, resized and cropped as in preprocess"

    def _how_to_use(self) -> str:
        inputs = f"{self._input_name()} are {self._input_description()}"
        return f"{OUTPUT} (N, C) are calibrated and in the order of classnames; {inputs}"


def _graph_of(classifier: Classifier) -> nn.Module:
    """Return a module from what the head reads to calibrated probabilities (N, C)."""
    head = classifier.head
    return _CosineGraph(classifier, head) if isinstance(head, CosineHead) else _HeadGraph(head)


class _HeadGraph(nn.Module):
    """From what a head reads (N, W) to calibrated probabilities (N, C)."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the head's own probabilities."""
        return self.head.probabilities(inputs)


class _CosineGraph(nn.Module):
    """From un-normalised image features (N, D) to calibrated probabilities (N, C)."""

    def __init__(self, classifier: Classifier, head: CosineHead) -> None:
        super().__init__()
        self.scale = cosine_scale(classifier)
        self.columns = nn.Buffer(torch.from_numpy(unit_weights(head)).T.contiguous())  # (D, C)
        shift = head.image_shift
        self.shift = None if shift is None else nn.Buffer(shift.float())

    def forward(self, image_features: Tensor) -> Tensor:
        """Return the same as `Head.probabilities`; the columns already have length 1."""
        shifted = image_features if self.shift is None else image_features + self.shift
        features = self.scale * normalise(shifted)
        return (features @ self.columns).softmax(dim=-1)


class _EncoderGraph(nn.Module):
    """From resized and cropped pixels (N, 3, H, W), 0 to 1, to calibrated probabilities (N, C)."""

    def __init__(self, head: nn.Module, backbone: Backbone, reads: Reads) -> None:
        super().__init__()
        self.head, self.model, self.reads = head, backbone.model, reads
        mean, std = (torch.tensor(backbone.preprocess[name])[:, None, None] for name in ("mean", "std"))
        self.mean, self.std = nn.Buffer(mean), nn.Buffer(std)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return probabilities; pixels are normalised by mean and deviation of the model's preprocessing."""
        probabilities: Tensor = self.head(self._inputs((pixels - self.mean) / self.std))
        return probabilities

    def _inputs(self, normalised: Tensor) -> Any:
        """Return what the head reads: image features, or the input of their last projection."""
        model: Any = self.model
        if self.reads == "features":
            return model.encode_image(normalised, normalize=False)
        output = model.visual.tower(normalised)
        return output[0] if isinstance(output, tuple) else output


def require_onnx(who: str) -> None:
    """Raise MissingExtraError unless the packages that write and read ONNX are installed."""
    require(who, "onnx", ("onnx", "onnxscript", "onnxruntime"))


def _traced(graph: nn.Module, example: Tensor, name: str) -> Any:
    """Return a module as an ONNX model for any number of images."""
    with _quiet(), torch.no_grad():
        program: Any = torch.onnx.export(
            graph.eval(),
            (example,),
            input_names=[name],
            output_names=[OUTPUT],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("N")},),
            verbose=False,
        )
        return program.model_proto


def checked_session(file: Path) -> Any:
    """Return an onnxruntime session on the CPU for an exported file; raises ValueError if the file was changed."""
    import onnx
    import onnxruntime

    model = onnx.load(str(file))
    refuse_changed({one.key: one.value for one in model.metadata_props}, _digest(model))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def describe(model: Any, classifier: Classifier, how_to_use: str, input_description: str) -> Any:
    """Return an ONNX model with the run's metadata, and without the exporter's notes on source files of this machine.

    Parameters
    ----------
    model : onnx.ModelProto
        The model, which is changed.
    classifier : Classifier
        The classifier of the run.
    how_to_use, input_description : str
        What goes in and comes out.
    """
    import onnx

    values, graph = metadata(classifier, how_to_use), model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.name = values["format"]
    graph.input[0].doc_string = input_description
    graph.output[0].doc_string = "calibrated probabilities (N, C)"
    onnx.helper.set_model_props(model, as_text(values))
    onnx.helper.set_model_props(model, {**as_text(values), DIGEST: _digest(model)})
    return model


def _digest(model: Any) -> str:
    """Return the SHA-256 of a graph and its metadata, one part after the other, since weights may take gigabytes."""
    graph = model.graph
    parts = (graph.node, graph.initializer, graph.input, graph.output, graph.value_info, model.opset_import)
    described = sorted((one.key, one.value) for one in model.metadata_props if one.key != DIGEST)
    digest = sha256(json.dumps([described, graph.name, model.ir_version, *map(len, parts)]).encode())
    for part in (one for several in parts for one in several):
        digest.update(part.SerializeToString(deterministic=True))
    return digest.hexdigest()


def _shape(end: Any) -> tuple[int | str, ...]:
    """Return the shape of an input or output, with a letter for a free size."""
    return tuple(size.dim_param or size.dim_value for size in end.type.tensor_type.shape.dim)


def _reason(error: Exception) -> str:
    """Return the innermost cause in one line; the exporter wraps it in pages of advice."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)[:200]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence progress, log lines and warnings of the exporter; failures are raised as exceptions."""
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
