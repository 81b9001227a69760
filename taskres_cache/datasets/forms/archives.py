"""A zip or tar archive of class folders, read without unpacking; a tar of WebDataset samples is a shard."""

from pathlib import Path
from zipfile import is_zipfile

from taskres_cache.datasets.dataset import Dataset
from taskres_cache.datasets.folder import read_folder
from taskres_cache.datasets.forms.form import Form, FormOptions, default_name, refuse_columns
from taskres_cache.datasets.forms.shards import are_samples, read_tars
from taskres_cache.datasets.packed.images import PackedImages
from taskres_cache.datasets.packed.indexing import add_tar, add_zip, first_names
from taskres_cache.datasets.packed.members import Members
from taskres_cache.datasets.packed.unpacking import StoredTar, stored_tar
from taskres_cache.datasets.survey import survey_of_names
from taskres_cache.errors import DatasetError

TAR_SUFFIXES = (".tar", *(f".tar.{packed}" for packed in ("gz", "bz2", "xz", "zst")), ".tgz", ".tbz2", ".txz", ".tzst")
ZIP_SUFFIXES = (".zip",)


def is_archive_name(typed: str) -> bool:
    """Return True if a name ends as that of an archive; a folder may end so too."""
    return typed.lower().endswith((*TAR_SUFFIXES, *ZIP_SUFFIXES)) and not Path(typed).is_dir()


def read_archive(typed: str, options: FormOptions) -> Dataset:
    """Return the data set in an archive of class folders, as if it were unpacked, or the one in a shard.

    Raises
    ------
    DatasetError
        The archive is missing or damaged, a member is refused, or its folders are not classes.
    OptionError
        A column was named for class folders.
    """
    location = Path(typed)
    if not location.is_file():
        fault = "is not a file" if location.exists() else "does not exist"
        raise DatasetError(f"{location} {fault}; pass the path of an archive")
    tar = stored_tar(location)
    if tar is not None and are_samples(first_names(tar)):
        return read_tars([tar], location, options, default_name(typed))
    refuse_columns(options, typed)
    source = _indexed(location, tar)
    survey = survey_of_names(source.members.rows, source.members.folders)
    return read_folder(source, options.name or default_name(typed), options.split_seed, survey=survey)


def _indexed(location: Path, tar: StoredTar | None) -> PackedImages:
    """Return the images in one archive, by the paths in it."""
    members = Members()
    if tar is not None:
        add_tar(members, tar)
    elif location.suffix.lower() in ZIP_SUFFIXES or is_zipfile(location):
        add_zip(members, location)
    else:
        raise DatasetError(f"{location} is not an intact zip or tar archive; replace it with an intact copy")
    return PackedImages(location, members, unpacked=tar.copies if tar is not None else ())


ARCHIVE = Form("a zip or tar of class folders", is_archive_name, read_archive)
