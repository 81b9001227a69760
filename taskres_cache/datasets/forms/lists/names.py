"""The usual names of the columns of image, class and part, best first."""

import os
import re

from taskres_cache.datasets.folder import PARTITION_NAMES
from taskres_cache.datasets.images import HEIC_SUFFIXES, IMAGE_SUFFIXES

PATH_NAMES = (
    "path", "filepath", "file", "filename", "fname", "imagepath", "imagefile", "imagefilename", "imagename", "image",
    "images", "imgpath", "imgfile", "imgname", "img", "relpath", "relativepath", "photo", "picture", "src", "url",
    "imageurl", "imageid",
)  # fmt: skip
# Names before numbers: a class name goes into the prompts.
LABEL_NAMES = (
    "classname", "labelname", "categoryname", "labeltext", "class", "label", "labels", "category", "species", "breed",
    "choice", "target", "tag", "y", "classid", "labelid", "categoryid", "classindex", "labelindex",
)  # fmt: skip
SPLIT_NAMES = ("split", "partition", "subset", "part", "datasplit")
USUAL_NAMES = frozenset((*PATH_NAMES, *LABEL_NAMES, *SPLIT_NAMES))


def plain(name: str) -> str:
    """Return a column's name without case, spaces and punctuation: `File Name` and `file_name` are one."""
    return re.sub(r"[\W_]+", "", name).casefold()


def is_usual_name(name: str) -> bool:
    """Return True for a usual name of a column."""
    return plain(name) in USUAL_NAMES


def is_part_name(name: str) -> bool:
    """Return True for a name of a part, such as "train" or "validation"."""
    return name.strip().casefold() in PARTITION_NAMES


def looks_like_image(text: object) -> bool:
    """Return True for text with an image suffix."""
    if not isinstance(text, str):
        return False
    return os.path.splitext(text.strip())[1].lower() in IMAGE_SUFFIXES | HEIC_SUFFIXES
