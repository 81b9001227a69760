"""A zip or tar archive of class folders, read without unpacking; a tar of WebDataset samples is a shard."""

from pathlib import Path

from taskres_cache.datasets.dataset import Dataset
from taskres_cache.datasets.folder import read_folder
from taskres_cache.datasets.forms.form import Form, FormOptions, default_name
from taskres_cache.datasets.packed.images import PackedImages
from taskres_cache.datasets.packed.indexing import add_tar, add_zip, is_tar, is_zip
from taskres_cache.datasets.packed.members import Members
from taskres_cache.datasets.packed.unpacking import Unpacked, is_compressed
from taskres_cache.datasets.survey import survey_of_names
from taskres_cache.errors import DatasetError

TAR_SUFFIXES = (".tar", *(f".tar.{packed}" for packed in ("gz", "bz2", "xz", "zst")), ".tgz", ".tbz2", ".txz", ".tzst")
ZIP_SUFFIXES = (".zip",)


def is_archive_name(typed: str) -> bool:
    """Return True if a name ends as that of an archive; a folder may end so too."""
    return typed.lower().endswith((*TAR_SUFFIXES, *ZIP_SUFFIXES)) and not Path(typed).is_dir()


def read_archive(typed: str, options: FormOptions) -> Dataset:
    """Return the data set in an archive of class folders, as if it were unpacked.

    Raises
    ------
    DatasetError
        The archive is missing or damaged, a member is refused, or its folders are not classes.
    """
    location = Path(typed)
    source = open_archive(location)
    survey = survey_of_names(source.members.rows, source.members.folders)
    return read_folder(source, options.name or default_name(typed), options.split_seed, survey=survey)


def open_archive(location: Path) -> PackedImages:
    """Return the images in one archive, by the paths in it.

    Raises
    ------
    DatasetError
        It is missing or damaged, or a member is refused.
    """
    members = Members()
    unpacked = add_archive(members, location)
    return PackedImages(location, members, unpacked=unpacked)


def add_archive(members: Members, location: Path, prefix: str = "") -> tuple[Unpacked, ...]:
    """Add the files of an archive to an index; returns the uncompressed copy, if one had to be made."""
    try:
        if not location.is_file():
            raise DatasetError(f"{location} {'is not a file' if location.exists() else 'does not exist'}; check the name")
        if is_compressed(location):
            copy = Unpacked(location)
            add_tar(members, copy.path, location, prefix)
            return (copy,)
        if is_tar(location):
            add_tar(members, location, location, prefix)
        elif is_zip(location) and not prefix:
            add_zip(members, location)
        else:
            raise DatasetError(f"{location} is no zip or tar archive, or damaged; replace it with an intact copy")
    except OSError as error:
        raise DatasetError(f"could not read {location} ({error.strerror or error}); check its permissions") from error
    return ()


ARCHIVES = Form("a zip or tar of class folders", is_archive_name, read_archive)
