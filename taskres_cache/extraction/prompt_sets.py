"""Further prompts in an existing cache, as a named set: any number per class, and no image is encoded.

Axes: C classes, P prompts of all classes, D embedding, W width of the text tower.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from taskres_cache.caches.contents import DESCRIPTIONS
from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.caches.hdf5 import write_cache
from taskres_cache.caches.schema import GROUP_NAME, RESERVED
from taskres_cache.encoders.backbone import Backbone
from taskres_cache.errors import OptionError
from taskres_cache.extraction.encode_missing import encode_prompt_set, flat_prompts, is_same_set
from taskres_cache.extraction.known_rows import EarlierWork
from taskres_cache.extraction.lock import exclusive_lock
from taskres_cache.extraction.prompt_check import notes_on_prompts
from taskres_cache.extraction.ranks import Ranks
from taskres_cache.system.files import refuse_special
from taskres_cache.system.progress import Progress, Silent, default_progress


@dataclass(frozen=True)
class AddedPrompts:
    """The result of adding a set of prompts.

    Parameters
    ----------
    path : Path
        The cache.
    prompts : int
        P, the prompts of the set.
    changed : bool
        Whether the file was written; False if it had the set already.
    notes : tuple of str
        Notes for the user, such as prompts that are cut off.
    """

    path: Path
    prompts: int
    changed: bool
    notes: tuple[str, ...]


def add_prompts(
    path: Path,
    backbone: Backbone,
    name: str,
    prompts: Sequence[Sequence[str]],
    progress: Progress | None = None,
    ranks: Ranks | None = None,
) -> AddedPrompts:
    """Add a named set of prompts to a cache, or replace it. A killed call resumes with its finished blocks.

    Parameters
    ----------
    path : Path
        The cache.
    backbone : Backbone
        The encoder that the cache was made with.
    name : str
        Name of the set.
    prompts : sequence of sequence of str
        Complete sentences of each class, in label order; duplicates within a class count once.
    progress : Progress, optional
        Called after each block of prompts. Defaults to a progress bar on a terminal or in a notebook.
    ranks : Ranks, optional
        The processes that torchrun started, of which the first one encodes. Defaults to this process alone.

    Returns
    -------
    AddedPrompts
        The number of prompts, and notes.

    Raises
    ------
    OptionError
        The name is not usable, or a class has no prompt.
    CacheMismatchError
        The cache was made with another checkpoint. It is not changed.
    BusyError
        Another process is changing the cache.
    WeightsError
        The text tower is not supported.
    StorageError
        The cache cannot be written.
    """
    refuse_unusable_name(name)
    ranks = ranks or Ranks()
    with ExitStack() as until_done:
        if progress is None:
            progress = until_done.enter_context(default_progress()) if ranks.first else Silent()
        notes = ranks.agreed(lambda: until_done.enter_context(exclusive_lock(path)))
        added = ranks.agreed(lambda: _added(path, backbone, name, prompts, progress))
    return replace(added, notes=(*notes, *added.notes))


def refuse_unusable_name(name: str) -> None:
    """Raise OptionError for a name that a set of prompts cannot have."""
    if GROUP_NAME.fullmatch(name) is None or name in (RESERVED["prompts"], DESCRIPTIONS):
        raise OptionError(
            f"prompts-name {name!r} is not usable: expected up to 64 of A-Z, a-z, 0-9, '.', '_', '-', not 'default' or "
            f"{DESCRIPTIONS!r}"
        )


def _added(
    path: Path, backbone: Backbone, name: str, prompts: Sequence[Sequence[str]], progress: Progress
) -> AddedPrompts:
    cache = FeatureCache(path)
    expected = {field: getattr(backbone, field) for field in ("weights_sha256", "model_config")}
    cache.expect("pass the backbone that the cache was made with", **expected)
    texts, labels = flat_prompts(prompts, cache.classnames)
    if name in cache.prompt_sets and is_same_set(cache.text(name), texts, labels):
        return AddedPrompts(path, len(texts), False, ())
    refuse_special(path)
    earlier = EarlierWork(cache.provenance, cache, path.with_name(f"{path.name}.parts"))
    added = encode_prompt_set(texts, labels, cache.provenance.dataset, backbone, earlier, progress)
    contents = cache.stored_contents()
    write_cache(path, replace(contents, prompts={**contents.prompts, name: added}))
    earlier.text_blocks().discard()  # blocks of images may belong to a run that was killed
    notes = notes_on_prompts(prompts, cache.classnames, backbone)
    replaced = (f"the prompts {name!r} were other ones and are replaced",) if name in cache.prompt_sets else ()
    return AddedPrompts(path, len(texts), True, (*notes, *replaced))
