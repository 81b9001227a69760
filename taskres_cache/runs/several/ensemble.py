"""One or more classifiers on one encoder, which predict the mean of their calibrated probabilities.

Axes: N images, C classes, D embedding, I width of the image tower, M members.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from taskres_cache.caches.provenance import Provenance, encoder_differences
from taskres_cache.errors import OptionError
from taskres_cache.heads.head import Head
from taskres_cache.runs.classifier import Classifier


@dataclass(frozen=True)
class Ensemble:
    """Classifiers whose probabilities are averaged; a single one predicts exactly as alone.

    Parameters
    ----------
    members : tuple of Classifier, M entries
        Fitted on features of the same encoder, for the same classes in the same order.

    Raises
    ------
    OptionError
        There is no member, or they differ in encoder or classes.
    """

    members: tuple[Classifier, ...]

    def __post_init__(self) -> None:
        if not self.members:
            raise OptionError("an ensemble needs at least one run")
        first = self.members[0]
        for other in self.members[1:]:
            if other.classnames != first.classnames:
                raise OptionError(
                    f"the runs have different classes: {_shown(first)}, and {_shown(other)}; pass runs of one data set"
                )
            if differing := encoder_differences(first.provenance, other.provenance):
                raise OptionError(
                    f"the runs have different encoders ({', '.join(differing)}): {_shown(first)}, and {_shown(other)}; "
                    "pass runs of one encoder"
                )

    @property
    def classnames(self) -> tuple[str, ...]:
        """The classes (C,)."""
        return self.members[0].classnames

    @property
    def provenance(self) -> Provenance:
        """Where the features of the first member came from; the encoder is that of all."""
        return self.members[0].provenance

    @cached_property
    def heads(self) -> tuple[Head, ...]:
        """The heads (M,)."""
        return tuple(member.head for member in self.members)

    def probabilities(self, image_features: np.ndarray, pre_projection: np.ndarray | None) -> torch.Tensor:
        """Return the mean probabilities (N, C) of un-normalised features (N, D) and inputs (N, I) of the last map."""
        shares = [head.probabilities(_input(head, image_features, pre_projection)) for head in self.heads]
        return shares[0] if len(shares) == 1 else torch.stack(shares).mean(dim=0)


def _input(head: Head, image_features: np.ndarray, pre_projection: np.ndarray | None) -> torch.Tensor:
    """Return what a head reads: image features, or the input of their last projection."""
    if head.input == "features":
        return torch.from_numpy(image_features)
    assert pre_projection is not None  # `load_encoder` refuses another encoder than the run's
    return torch.from_numpy(pre_projection)


def _shown(member: Classifier) -> str:
    source = member.provenance
    return f"{member.method} of {source.dataset} ({len(member.classnames)} classes, {source.backbone})"
