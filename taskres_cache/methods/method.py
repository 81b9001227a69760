"""The interface of a method: a few-shot task and options in, a head out.

def fit(task: FewShotTask, options: MyOptions) -> Adapted: ...

METHOD = Method(name="my-method", fit=fit, options=MyOptions(), trains="...", ...)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from taskres_cache.heads.head import Head

ViewFamily = Literal["none", "wide", "narrow"]  # crops of 0.08-1 (CoOp, TaskRes, CLAP) or 0.5-1 (Tip-Adapter, LP++)
Setting = float | int | str  # the value of a hyper-parameter


@dataclass(frozen=True)
class Trial:
    """One combination of hyper-parameters that was tried, and its result on the validation images.

    Parameters
    ----------
    settings : dict of str to float, int or str
        The combination.
    val_accuracy, val_loss : float
        In percent, and the mean cross-entropy.
    """

    settings: dict[str, Setting]
    val_accuracy: float
    val_loss: float

    @property
    def rank(self) -> tuple[float, float]:
        """Sort key, greater is better: accuracy, then the lower loss."""
        return self.val_accuracy, -self.val_loss


@dataclass(frozen=True)
class Adapted:
    """The result of a method.

    Parameters
    ----------
    head : Head
        The classifier, on the CPU, in the floating type of the task. Its temperature is fitted by the caller.
    chosen : dict of str to float, int or str
        Hyper-parameters that were chosen, or computed by a rule; empty if all are fixed.
    trials : tuple of Trial
        What they were chosen from.
    losses : tuple of float
        Mean training loss of each epoch; empty for a closed form.
    """

    head: Head
    chosen: dict[str, Setting] = field(default_factory=dict)
    trials: tuple[Trial, ...] = ()
    losses: tuple[float, ...] = ()


@dataclass(frozen=True)
class Method:
    """A method of few-shot adaptation, with what a user wants to know about it.

    Parameters
    ----------
    name : str
        Name on the command line, lower case with hyphens.
    fit : callable
        `fit(task, options)` returns `Adapted`. It must not change its arrays, and be the same for the same task.
    options : object
        Default options, a frozen dataclass of plain values; `--set NAME=VALUE` changes its fields.
    trains : str
        What it trains, in a few words.
    chooses : str
        How hyper-parameters are chosen: "fixed", or what is chosen by validation images.
    paper : str
        Authors, title in short, venue and year.
    views : {"none", "wide", "narrow"}
        Family of augmented views that it uses if the cache has them.
    reads : {"features", "pre_projection", "either"}
        "pre_projection" if it needs the input of the image tower's last projection, "either" if it uses that where
        the cache has it.
    needs_text : bool
        False for a method that can be fitted if `task.text.is_absent`.
    reads_text : bool
        False for a method that never reads `task.text`, except for the number of classes.
    """

    name: str
    fit: Callable[[Any, Any], Adapted]
    options: Any
    trains: str
    chooses: str
    paper: str
    views: ViewFamily = "none"
    reads: Literal["features", "pre_projection", "either"] = "features"
    needs_text: bool = True
    reads_text: bool = True


def best_trial(trials: Sequence[Trial]) -> int:
    """Return the position of the best trial: the greatest accuracy, then the lowest loss, then the first."""
    return max(range(len(trials)), key=lambda position: (*trials[position].rank, -position))
