"""A run's classifier as one ONNX graph: the head alone, or the image tower and the head.

Axes: N images, C classes, D embedding, H and W height and width of the model's images.
"""

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from taskres_cache.encoders.backbone import Backbone
from taskres_cache.errors import ExportError
from taskres_cache.exporting.tensors import Shapes, as_text, directions, facts, sharpness
from taskres_cache.heads import normalise
from taskres_cache.runs.run import Classifier
from taskres_cache.system.extras import require

OPSET = 18  # what torch's exporter writes without converting, from torch 2.11 on
MOST_BYTES = 2**31 - 2**24  # one file, a protocol buffer, holds less than 2 GiB; some of it is the graph
OUTPUT = "probabilities"


@dataclass(frozen=True)
class OnnxForm:
    """A graph from un-normalised `image_features` (N, D), or from `pixels` where there is a backbone, to probabilities.

    Parameters
    ----------
    backbone : in fp32 on the CPU; its image tower becomes part of the graph. None for the head alone.
    """

    backbone: Backbone | None = None
    name: ClassVar[str] = "onnx"
    tolerance: ClassVar[float] = (
        1e-4  # float32 arithmetic: heads are up to 1.5e-5 from exact, the run's own too (measured)
    )

    def files(self, file: Path) -> tuple[Path, ...]:
        """Return the one file."""
        return (file,)

    def write(self, classifier: Classifier, files: Sequence[Path]) -> Shapes:
        """Write the graph; raises ExportError for one that cannot be had, which some image towers' cannot."""
        self._refuse_what_is_too_large()
        try:
            model = self._traced(classifier)
            content = model.SerializeToString()
        except Exception as error:  # tracing meets arbitrary code and fails in as many ways
            raise ExportError(f"{self._refusal()} ({_reason(error)}); {self._remedy()}") from error
        files[0].write_bytes(content)
        return {end.name: _shape(end) for end in (*model.graph.input, *model.graph.output)}

    def ask(self, files: Sequence[Path], inputs: np.ndarray) -> np.ndarray:
        """Return probabilities (N, C) by onnxruntime on the CPU; one image by itself, the others in one batch."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors alone
        session = onnxruntime.InferenceSession(str(files[0]), options, providers=["CPUExecutionProvider"])
        batches = [batch for batch in (inputs[:1], inputs[1:]) if len(batch)]
        name = session.get_inputs()[0].name
        return np.concatenate([session.run([OUTPUT], {name: batch})[0] for batch in batches])

    def usage(self, classifier: Classifier, file: Path) -> tuple[str, ...]:
        """Return how onnxruntime is asked."""
        name = self._input()
        return (
            "import json, onnxruntime",
            f'session = onnxruntime.InferenceSession("{file.name}")',
            f'(probabilities,) = session.run(None, {{"{name}": {name}}})  # {self._takes()}',
            'classnames = json.loads(session.get_modelmeta().custom_metadata_map["classnames"])',
        )

    def _traced(self, classifier: Classifier) -> Any:
        """Return the described graph."""
        head = _HeadGraph(classifier)
        if self.backbone is None:
            model = _traced(head, torch.ones(2, classifier.base.shape[1]), self._input())
        else:
            example = torch.rand(2, 3, *self.backbone.framing.size, generator=torch.Generator().manual_seed(0))
            model = _traced(_EncoderGraph(head, self.backbone), example, self._input())
        _describe(model, facts(classifier, self._sentence()), self._takes())
        return model

    def _refuse_what_is_too_large(self) -> None:
        """Raise ExportError for an image tower that one file cannot hold, before minutes go into tracing it."""
        if self.backbone is None:
            return
        visual: Any = self.backbone.model.visual
        size = sum(weight.numel() * weight.element_size() for weight in visual.state_dict().values())
        if size > MOST_BYTES:
            reason = f"its weights take {size / 2**30:.1f} GiB and one ONNX file holds 2 GiB"
            raise ExportError(f"{self._refusal()} ({reason}); {self._remedy()}")

    def _refusal(self) -> str:
        what = "this head" if self.backbone is None else f"the image tower of {self.backbone.model_config}"
        return f"{what} does not export to ONNX"

    def _remedy(self) -> str:
        if self.backbone is None:
            return "export it to .safetensors"
        return "export the head alone, without --with-encoder, and feed it what encode_image returns"

    def _input(self) -> str:
        return "image_features" if self.backbone is None else "pixels"

    def _takes(self) -> str:
        """Return what the input is."""
        if self.backbone is None:
            return "float32 (N, D), as encode_image returns them, un-normalised"
        height, width = self.backbone.framing.size
        return f"float32 (N, 3, {height}, {width}), RGB from 0 to 1, resized and cropped as preprocess says"

    def _sentence(self) -> str:
        return f"{OUTPUT} (N, C) are calibrated and in the order of classnames; {self._input()} are {self._takes()}"


class _HeadGraph(nn.Module):
    """From un-normalised image features (N, D) to calibrated probabilities (N, C)."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        head = classifier.head
        self.scale = sharpness(classifier)
        self.columns = nn.Buffer(torch.from_numpy(directions(head)).T.contiguous())  # (D, C)
        shift = head.image_shift
        self.shift = None if shift is None else nn.Buffer(shift.float())

    def forward(self, image_features: Tensor) -> Tensor:
        """Return what `Head.probabilities` returns; the columns are of length 1 already."""
        shifted = image_features if self.shift is None else image_features + self.shift
        features = self.scale * normalise(shifted)
        return (features @ self.columns).softmax(dim=-1)


class _EncoderGraph(nn.Module):
    """From framed pixels (N, 3, H, W), 0 to 1, to calibrated probabilities (N, C)."""

    def __init__(self, head: _HeadGraph, backbone: Backbone) -> None:
        super().__init__()
        self.head, self.model = head, backbone.model
        mean, std = (torch.tensor(backbone.preprocess[name])[:, None, None] for name in ("mean", "std"))
        self.mean, self.std = nn.Buffer(mean), nn.Buffer(std)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return probabilities; mean and deviation are those of the model's own preprocessing."""
        model: Any = self.model
        probabilities: Tensor = self.head(model.encode_image((pixels - self.mean) / self.std))
        return probabilities


def require_onnx(who: str) -> None:
    """Raise MissingExtraError unless what writes and reads ONNX is installed."""
    require(who, "onnx", ("onnx", "onnxscript", "onnxruntime"))


def _traced(graph: nn.Module, example: Tensor, name: str) -> Any:
    """Return a module as an ONNX model with any number of images."""
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


def _describe(model: Any, said: dict[str, Any], takes: str) -> None:
    """Put the facts into an ONNX model, and take out what the exporter notes of this machine's source files."""
    import onnx

    onnx.helper.set_model_props(model, as_text(said))
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.name = said["format"]
    graph.input[0].doc_string = takes
    graph.output[0].doc_string = "calibrated probabilities (N, C)"


def _shape(end: Any) -> tuple[int | str, ...]:
    """Return the shape of an input or output, a letter for what varies."""
    return tuple(size.dim_param or size.dim_value for size in end.type.tensor_type.shape.dim)


def _reason(error: Exception) -> str:
    """Return the innermost cause in a few words; the exporter wraps it in pages of advice."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)[:200]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter: its progress, log lines and warnings; what matters of them comes as an exception."""
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
