"""A data set by its name on the Hugging Face hub, as `hf:owner/name` or `hf:owner/name/configuration`.

`datasets` downloads it once, and keeps it as memory-mapped Arrow files. Its streaming is not used: stage one reads
images by row, in several processes, and again after a kill; each would download everything before its row.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from taskres_cache.datasets.dataset import Dataset
from taskres_cache.datasets.forms.form import Form, FormOptions
from taskres_cache.datasets.forms.tables import Part, dataset_of_tables, image_column, known_split, usable_splits
from taskres_cache.datasets.packed.table_images import TableImages
from taskres_cache.datasets.packed.tables import first_features, open_table
from taskres_cache.errors import DatasetError
from taskres_cache.system.extras import require
from taskres_cache.system.names import shown

PREFIX = "hf:"
SECONDS = 10.0  # to reach the hub


class HubName(NamedTuple):
    """What was typed after `hf:`.

    Parameters
    ----------
    repository : str
        `owner/name`, the name of an old data set without owner, or the absolute path of a folder.
    configuration : str or None
        One of its configurations.
    is_local : bool
        Whether it is a folder on this machine, which `datasets` reads as it would from the hub.
    """

    repository: str
    configuration: str | None = None
    is_local: bool = False


def hub_name(typed: str) -> HubName:
    """Return the parts of `hf:owner/name/configuration`.

    Raises
    ------
    DatasetError
        It has none or too many of them.
    """
    text = typed.removeprefix(PREFIX)
    if text.startswith((".", "/", "~")):
        return HubName(str(Path(text).expanduser().absolute()), is_local=True)
    parts = text.split("/")
    if not all(parts) or len(parts) > 3:
        raise DatasetError(f"{shown(typed)} is no name on the hub, expected hf:owner/name/configuration or less")
    return HubName("/".join(parts[:2]), parts[2] if len(parts) == 3 else None)


def read_hub(typed: str, options: FormOptions) -> Dataset:
    """Return a data set of the hub, downloaded unless it was before.

    Raises
    ------
    DatasetError
        The data set is neither on the hub nor on this machine, the hub cannot be reached, or the columns are unclear.
    MissingExtraError
        `datasets` is not installed.
    """
    require(f"reading {typed}", "datasets", ("datasets", "pyarrow"))
    name = hub_name(typed)
    splits = _loaded(name, typed)
    tables = {split: tuple(open_table(Path(file)) for file in files) for split, files in splits.items() if files}
    parts, notes = usable_splits([Part(split, known_split(split), files) for split, files in tables.items()])
    if not parts:
        raise DatasetError(f"{typed} has no rows; choose another configuration")
    features = first_features([file for part in parts for file in part.files])
    column = image_column(features, options.path_column, Path(typed))
    reference = f"{PREFIX}{name.repository}" if name.is_local else typed
    source = TableImages(Path(typed), tables, column, reference, folders=_folders(name))
    default = "-".join(filter(None, (Path(name.repository).name, name.configuration)))
    return dataset_of_tables(parts, source, options, default, notes)


def _loaded(name: HubName, typed: str) -> Mapping[str, Sequence[str]]:
    """Return split -> the Arrow files that `datasets` keeps of it; from its own folder if the hub cannot be reached."""
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    reason = "" if name.is_local else _unreachable(name, typed)
    try:
        with _offline(bool(reason)):
            found: Any = datasets.load_dataset(name.repository, name.configuration)
    except Exception as error:
        if reason:
            raise DatasetError(
                f"could not reach the Hugging Face hub ({reason}), and {typed} is not on this machine; check the "
                "network, or pass a folder that save_to_disk wrote"
            ) from error
        lines = " ".join(str(error).split())[:300] or type(error).__name__
        raise DatasetError(f"could not load {typed} with `datasets` ({lines}); check the name") from error
    return {split: [str(file["filename"]) for file in table.cache_files] for split, table in found.items()}


def _unreachable(name: HubName, typed: str) -> str:
    """Return why the hub cannot be reached; empty if it can. One request, since `datasets` tries for half a minute."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        HfApi().dataset_info(name.repository, timeout=SECONDS)
    except RepositoryNotFoundError as error:
        raise DatasetError(
            f"{typed} is not on the Hugging Face hub, or is private; check the name, or log in with: hf auth login"
        ) from error
    except Exception as error:  # noqa: BLE001  the errors of the HTTP client differ between versions of the library
        return " ".join(str(error).split())[:200] or type(error).__name__
    return ""


@contextmanager
def _offline(wanted: bool) -> Iterator[None]:
    """Keep `datasets` from trying to reach the hub for a while."""
    from datasets import config
    from huggingface_hub import constants

    before = config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    if wanted:
        config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


def _folders(name: HubName) -> tuple[Path, ...]:
    """Return the folders in which images may lie that rows name: what was downloaded, and a folder that was typed."""
    from datasets import config
    from huggingface_hub import constants

    downloaded = (Path(config.HF_DATASETS_CACHE), Path(constants.HF_HUB_CACHE))
    return (*downloaded, Path(name.repository)) if name.is_local else downloaded


HUB = Form("a name on the Hugging Face hub (hf:owner/name)", lambda typed: typed.startswith(PREFIX), read_hub)
