"""A run's classifier for other programs: written, read again, compared with the run, and only then put into place."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from taskres_cache.errors import OptionError, UnknownNameError
from taskres_cache.exporting.comparison import Comparison, Trial, compared, head_trial, image_trial, tolerance_at
from taskres_cache.exporting.onnx_graph import OnnxForm, require_onnx
from taskres_cache.exporting.tensors import Form, OpenClipForm, SafetensorsForm, Shapes
from taskres_cache.runs.finding import CLASSIFIER_FILE, METRICS_FILE, find_run
from taskres_cache.runs.run import Classifier, read_classifier
from taskres_cache.system.files import replaced

FORMATS = {"safetensors": ".safetensors", "onnx": ".onnx", "open_clip": ".pt"}  # with their suffixes


@dataclass(frozen=True)
class Export:
    """What an export left.

    Parameters
    ----------
    files : the one that was asked for, and one beside it where a format takes two.
    format : of `FORMATS`.
    shapes : of tensors, or of inputs and outputs.
    usage : lines of Python that use it.
    """

    files: tuple[Path, ...]
    format: str
    bytes: int
    classes: int
    shapes: Shapes
    comparison: Comparison
    usage: tuple[str, ...]


def format_of(file: Path, asked: str | None) -> str:
    """Return the format that was asked for, else the one that a file's suffix means.

    Raises
    ------
    UnknownNameError : no such format.
    OptionError : nothing was asked for and the suffix means none.
    """
    if asked is not None:
        if asked not in FORMATS:
            raise UnknownNameError("format", asked, FORMATS, f"known are {', '.join(FORMATS)}")
        return asked
    for name, suffix in FORMATS.items():
        if file.suffix.lower() == suffix:
            return name
    known = ", ".join(f"{suffix} ({name})" for name, suffix in FORMATS.items())
    raise OptionError(f"{file}: its suffix names no format; known are {known}; use one, or pass --format")


def export_head(run: Path, file: Path, asked: str | None, cache_dir: Path) -> Export:
    """Write the classifier of a run for features that somebody else computes.

    Parameters
    ----------
    run : a run folder.
    file : to be written; what it was before is kept until the new one has been read again and agrees with the run.
    asked : a format, see `format_of`.
    cache_dir : where caches live; the test features of the run's own are what is compared, if it is there.

    Raises
    ------
    OptionError : several runs, a file that cannot be meant, or a classifier that the format cannot express.
    RunError : not a run.
    MissingExtraError : the format needs packages that are not installed.
    ExportError : the file, read again, does not say what the run says.
    """
    name = format_of(file, asked)
    _refuse_taken(file)
    if name == "onnx":
        require_onnx("`taskres export` to ONNX")
    folder = find_run(run)
    classifier = read_classifier(folder)
    form: dict[str, Form] = {"safetensors": SafetensorsForm(), "open_clip": OpenClipForm(), "onnx": OnnxForm()}
    return _export(classifier, form[name], file, head_trial(folder, classifier, cache_dir))


def export_with_encoder(run: Path, file: Path, pretrained: str | None) -> Export:
    """Write the image tower and the classifier of a run as one ONNX graph, from pixels to probabilities.

    Parameters
    ----------
    run, file : as for `export_head`.
    pretrained : the run's checkpoint as a tag or a local file; None for the tag that the run records.

    Raises
    ------
    OptionError, RunError, MissingExtraError : as for `export_head`; RunError for another checkpoint than the run's too.
    WeightsError : the checkpoint cannot be had.
    ExportError : the tower does not export, or the file, read again, does not say what the run says.
    """
    from taskres_cache.runs.encoder import load_encoder  # which takes seconds, and a head alone needs none

    _refuse_taken(file)
    require_onnx("`taskres export` to ONNX")
    classifier = read_classifier(find_run(run))
    backbone = load_encoder(classifier, pretrained, "cpu", "fp32")
    return _export(classifier, OnnxForm(backbone), file, image_trial(classifier, backbone))


def _refuse_taken(file: Path) -> None:
    """Raise OptionError for a file that would take the place of a folder, or be taken for a run."""
    if file.name in (CLASSIFIER_FILE, METRICS_FILE) or file.is_dir():
        taken = "a folder" if file.is_dir() else "what a run calls a file of its own"
        raise OptionError(f"cannot export to {file}: that is {taken}; choose another name")


def _export(classifier: Classifier, form: Form, file: Path, trial: Trial) -> Export:
    """Write the files of a form beside their places, compare, and put them into place."""
    files = form.files(file)
    with ExitStack() as stack:
        temporaries = [stack.enter_context(replaced(one)) for one in files]
        shapes = form.write(classifier, temporaries)
        tolerance = tolerance_at(form.tolerance, classifier)
        comparison = compared(form.ask, temporaries, trial, tolerance, file)
    size = sum(one.stat().st_size for one in files)
    usage = form.usage(classifier, file)
    return Export(files, form.name, size, len(classifier.classnames), shapes, comparison, usage)
