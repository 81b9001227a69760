"""The text options of `taskres extract`, and the sets of prompts that it adds to a cache."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskres_cache.errors import OptionError

if TYPE_CHECKING:
    from taskres_cache.caches.feature_cache import FeatureCache

ClassDescriptions = Annotated[
    Path | None,
    typer.Option(
        "--class-descriptions",
        metavar="FILE",
        help="Names for prompts, or complete sentences, of each class: YAML, JSON (such as CuPL's), CSV or TSV.",
    ),
]
PromptsName = Annotated[
    str | None,
    typer.Option(
        "--prompts-name",
        metavar="NAME",
        help="Add --class-descriptions, --prompts or --templates to the existing cache as a set of this name, for "
        "fit --prompts; encodes no image.",
    ),
]
Prompts = Annotated[
    Path | None,
    typer.Option("--prompts", metavar="FILE", help="With --prompts-name: another name of --class-descriptions."),
]


@dataclass(frozen=True)
class PromptSource:
    """Where the prompts of a named set come from, as it was typed.

    Parameters
    ----------
    prompts, class_descriptions : Path or None
        A description file; at most one of them.
    templates : str or None
        A file or an ensemble; also fills the names of a description file.
    """

    prompts: Path | None
    class_descriptions: Path | None
    templates: str | None

    def read(self, cache: "FeatureCache") -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
        """Return the prompts of each class of a cache, and notes."""
        from taskres_cache.datasets.prompts import PROMPT_FORMS, fill_templates, read_templates
        from taskres_cache.datasets.text.class_descriptions import read_class_descriptions

        form = cache.provenance.classnames_form
        words = form if form in PROMPT_FORMS else "spaces"
        templates = cache.templates if self.templates is None else read_templates(self.templates)
        file = self.prompts or self.class_descriptions
        if file is None:
            filled = fill_templates(templates, cache.shown_names or cache.classnames, words)
            return tuple(map(tuple, filled)), ()
        read = read_class_descriptions(file, cache.classnames, cache.class_ids)
        return read.sentences(templates, words), read.notes

    def refuse_unusable(self, name: str | None) -> None:
        """Raise OptionError unless there is a name, and exactly one description file or templates."""
        files = [one for one in (self.prompts, self.class_descriptions) if one is not None]
        both = self.prompts is not None and self.templates is not None
        if name is None or len(files) > 1 or both or (not files and self.templates is None):
            raise OptionError(
                "--prompts-name NAME goes together with --prompts FILE, --class-descriptions FILE or --templates FILE"
            )


def add_prompts(
    cache: str,
    name: str | None,
    source: PromptSource,
    checkpoint: tuple[str, str | None] | None,
    pretrained_like: str | None,
    device: str,
    cache_dir: Path,
) -> None:
    """Add a named set of prompts to the cache of a data set."""
    from taskres_cache.caches.feature_cache import FeatureCache
    from taskres_cache.caches.finding import find_cache

    from .console import kept_when_interrupted, progress, say

    source.refuse_unusable(name)
    preferred = None if checkpoint is None else f"{checkpoint[0].replace('/', '-')}-{checkpoint[1] or 'openai'}"
    path = find_cache(cache, cache_dir, preferred)
    features = FeatureCache(path)
    sentences, notes = source.read(features)

    from taskres_cache.encoders.loading import load_backbone
    from taskres_cache.extraction.prompt_sets import add_prompts as add_to_cache
    from taskres_cache.extraction.prompt_sets import refuse_unusable_name
    from taskres_cache.extraction.ranks import joined_ranks

    refuse_unusable_name(name or "")
    recorded = (features.provenance.backbone, features.provenance.pretrained)
    encoder = load_backbone(*(checkpoint or recorded), device, "fp32", pretrained_like)
    with kept_when_interrupted(), joined_ranks() as ranks, progress() as display:
        done = add_to_cache(path, encoder, name or "", sentences, display, ranks)
    if ranks.first:
        for note in (*notes, *done.notes):
            say(f"note: {note}")
        state = "added" if done.changed else "the cache has them already"
        say(f"{done.path}: {done.prompts} prompts {name!r}, {state}")
