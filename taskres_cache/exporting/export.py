"""Export a run: write the files, read them again, compare with the run, and only then put them in place."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from taskres_cache.exporting.comparison import (
    Comparison,
    Reference,
    compare,
    head_reference,
    image_reference,
    picture_reference,
    tolerance_at,
)
from taskres_cache.exporting.destination import format_of, refuse_reserved
from taskres_cache.exporting.form import Form, Shapes
from taskres_cache.exporting.onnx_graph import OnnxForm, require_onnx
from taskres_cache.exporting.picture_graph import PictureForm
from taskres_cache.exporting.stored_pictures import stored_pictures
from taskres_cache.exporting.tensors import OpenClipForm, SafetensorsForm
from taskres_cache.runs.classifier import Classifier
from taskres_cache.runs.finding import find_run
from taskres_cache.runs.run import own_cache, read_classifier
from taskres_cache.system.files import replaced


@dataclass(frozen=True)
class Export:
    """What was written.

    Parameters
    ----------
    files : tuple of Path
        The requested file, and a second one if the format needs it.
    format : str
        Name of the format, a key of `destination.FORMATS`.
    bytes : int
        Size of all files.
    classes : int
        Number of classes.
    shapes : dict of str to tuple
        Shapes of the tensors, or of inputs and outputs, by name.
    comparison : Comparison
        How closely the files agree with the run.
    usage : tuple of str
        Lines of Python that use the file.
    """

    files: tuple[Path, ...]
    format: str
    bytes: int
    classes: int
    shapes: Shapes
    comparison: Comparison
    usage: tuple[str, ...]


def export_head(run: Path, file: Path, requested: str | None, cache_dir: Path) -> Export:
    """Write the classifier of a run, for features that another program computes.

    An existing file is replaced only if the new one has been read again and agrees with the run.

    Parameters
    ----------
    run : Path
        A run folder, or a folder above a single run.
    file : Path
        The file to write.
    requested : str or None
        Name of the format; None if the suffix decides.
    cache_dir : Path
        Folder of all caches. The test features of the run's cache are compared, if it is found.

    Returns
    -------
    Export
        What was written.

    Raises
    ------
    OptionError
        There are several runs, the file name is not allowed, or the format cannot express the classifier.
    RunError
        There is no run, or it is damaged.
    MissingExtraError
        The packages of the format are not installed.
    ExportError
        The written file gives other probabilities than the run.
    """
    name = format_of(file, requested)
    refuse_reserved(file)
    if name == "onnx":
        require_onnx("`taskres export` to ONNX")
    folder = find_run(run)
    classifier = read_classifier(folder)
    form: dict[str, Form] = {"safetensors": SafetensorsForm(), "open_clip": OpenClipForm(), "onnx": OnnxForm()}
    return _export(classifier, form[name], file, head_reference(folder, classifier, cache_dir))


def export_with_encoder(run: Path, file: Path, pretrained: str | None) -> Export:
    """Write the image tower and the classifier of a run as one ONNX graph, from pixels to probabilities.

    Parameters
    ----------
    run : Path
        A run folder, or a folder above a single run.
    file : Path
        The file to write.
    pretrained : str or None
        Tag or file of the run's checkpoint; None for the tag that the run records.

    Returns
    -------
    Export
        What was written.

    Raises
    ------
    OptionError
        There are several runs, the file name is not allowed, or the run's checkpoint is a file that was not given.
    RunError
        There is no run, it is damaged, or the checkpoint is not the run's.
    MissingExtraError
        The packages for ONNX are not installed.
    WeightsError
        The checkpoint could not be loaded.
    ExportError
        The image tower cannot be exported, or the written file gives other probabilities than the run.
    """
    from taskres_cache.runs.encoder import load_encoder  # imports open_clip, which takes seconds; only needed here

    refuse_reserved(file)
    require_onnx("`taskres export` to ONNX")
    classifier = read_classifier(find_run(run))
    backbone = load_encoder(classifier, pretrained, "cpu", "fp32")
    return _export(classifier, OnnxForm(backbone), file, image_reference(classifier, backbone))


def export_with_preprocessing(run: Path, file: Path, pretrained: str | None, cache_dir: Path) -> Export:
    """Write preprocessing, image tower and classifier of a run as one ONNX graph, from a picture to probabilities.

    It is compared with the run on up to 200 test images of the run's cache, if they are still there.

    Parameters
    ----------
    run : Path
        A run folder, or a folder above a single run.
    file : Path
        The file to write.
    pretrained : str or None
        Tag or file of the run's checkpoint; None for the tag that the run records.
    cache_dir : Path
        Folder of all caches.

    Returns
    -------
    Export
        What was written.

    Raises
    ------
    TaskresError
        As `export_with_encoder`; ExportError as well if the preprocessing cannot be expressed.
    """
    from taskres_cache.runs.encoder import load_encoder  # imports open_clip, which takes seconds; only needed here

    refuse_reserved(file)
    require_onnx("`taskres export` to ONNX")
    folder = find_run(run)
    classifier = read_classifier(folder)
    backbone = load_encoder(classifier, pretrained, "cpu", "fp32")
    pictures = stored_pictures(own_cache(folder, classifier, cache_dir), classifier.provenance)
    return _export(classifier, PictureForm(backbone), file, picture_reference(classifier, backbone, pictures))


def _export(classifier: Classifier, form: Form, file: Path, reference: Reference) -> Export:
    """Write the files of a format to temporary names, compare, and put them in place."""
    files = form.files(file)
    with ExitStack() as stack:
        temporaries = [stack.enter_context(replaced(one)) for one in files]
        shapes = form.write(classifier, temporaries)
        tolerance = tolerance_at(form.tolerance, classifier)
        comparison = compare(form.probabilities, temporaries, reference, tolerance, file)
    size = sum(one.stat().st_size for one in files)
    usage = form.usage(classifier, file)
    return Export(files, form.name, size, len(classifier.classnames), shapes, comparison, usage)
