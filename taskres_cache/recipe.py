"""The training recipe of task residual tuning: plain values, chosen before a fit and stored with its result."""

from dataclasses import asdict, dataclass, fields, replace
from math import cos, pi
from typing import Any, Literal, get_args

from taskres_cache.errors import OptionError

Base = Literal["regular"]
AlphaRule = Literal["fixed", "auto", "learn"]
Precision = Literal["fp32", "tf32", "bf16"]
ViewUse = Literal["walk", "average"]

CHOICES: dict[str, tuple[str, ...]] = {
    "base": get_args(Base),
    "alpha_rule": get_args(AlphaRule),
    "precision": get_args(Precision),
    "view_use": get_args(ViewUse),
}

WARMUP_LR = 1e-5  # epoch 0 of the paper's schedule runs at this constant rate


@dataclass(frozen=True)
class Recipe:
    """How a residual is trained (TaskRes, CVPR 2023, section 4.1; optimiser and schedule of its released code).

    Parameters
    ----------
    alpha : weight of the residual in `base + alpha * residual`.
    lr : peak learning rate of Adam.
    epochs : passes over the training rows; None is the paper's rule, see `epochs_for`.
    batch_size : rows a step.
    weight_decay : L2 decay added to the gradient (Adam, not AdamW).
    base : which text classifier the residual is added to.
    alpha_rule : "fixed"; "auto" chooses alpha by val accuracy, see `selection`; "learn" trains it from `alpha` on, as
        in the paper's ablation.
    patience : epochs without a better val accuracy after which a fit stops and keeps its best epoch; None keeps the
        last epoch, as the paper does.
    precision : of the two products' operands: "fp32", "tf32" (CUDA) or "bf16"; everything else stays in float32.
    views : augmented views of each training image to train on, the first so many of the cache; 0 is the image itself.
    view_use : "walk" takes view e mod `views` in epoch e, in place of the paper's re-augmentation; "average" trains on
        the mean of their un-normalised features, as Tip-Adapter builds its cache.

    Raises
    ------
    OptionError : a value that no fit could use.
    """

    alpha: float = 0.5
    lr: float = 2e-3
    epochs: int | None = None
    batch_size: int = 256
    weight_decay: float = 5e-4
    base: Base = "regular"
    alpha_rule: AlphaRule = "fixed"
    patience: int | None = None
    precision: Precision = "fp32"
    views: int = 0
    view_use: ViewUse = "walk"

    def __post_init__(self) -> None:
        positive = {
            "lr": self.lr,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "patience": self.patience,
        }
        for name, value in positive.items():
            if value is not None and not 0 < value < float("inf"):
                raise OptionError(f"{name} must be a positive number, got {value}")
        if not abs(self.alpha) < float("inf"):
            raise OptionError(f"alpha must be a finite number, got {self.alpha}")
        if not 0 <= self.weight_decay < float("inf"):
            raise OptionError(f"weight_decay must not be negative, got {self.weight_decay}")
        if self.views < 0 or (self.views == 0 and self.view_use == "average"):
            raise OptionError(
                f"views must be {'1 or more to be averaged' if self.views == 0 else '0 or more'}, got {self.views}"
            )
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise OptionError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")

    def epochs_for(self, shots: int) -> int:
        """Return the number of epochs: as stated, else the paper's 100 up to 4 shots and 200 from 8 shots on."""
        if self.epochs is not None:
            return self.epochs
        return 100 if shots < 8 else 200

    def changed(self, **choices: Any) -> "Recipe":
        """Return this recipe with the choices that are not None put in."""
        return replace(self, **{name: choice for name, choice in choices.items() if choice is not None})

    def as_dict(self) -> dict[str, Any]:
        """Return the recipe as plain values for JSON."""
        return asdict(self)

    def deviations(self) -> dict[str, Any]:
        """Return the fields that differ from the paper's recipe, in order; empty for the recipe itself."""
        paper = Recipe()
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name != "base" and getattr(self, field.name) != getattr(paper, field.name)
        }

    def method_name(self) -> str:
        """Return the folder name of a method: the base, then everything that is not the paper's.

        Two fits whose recipes differ can therefore never overwrite each other. An alpha that is yet to be chosen does
        not count.
        """
        marks = self.deviations()
        rule, use = marks.pop("alpha_rule", None), marks.pop("view_use", None)
        if rule == "auto":
            marks.pop("alpha", None)
        words = [f"{name.replace('_', '-')}{str(value).removesuffix('.0')}" for name, value in marks.items()]
        return "-".join(["taskres", self.base, *([f"alpha-{rule}"] if rule else []), *words, *([use] if use else [])])


def learning_rate(epoch: int, lr: float, epochs: int) -> float:
    """Return the rate of one epoch: 1e-5 in epoch 0, then a cosine that is one epoch behind the usual one.

    The quirk is that of the released training code, whose warm-up wraps a cosine schedule that goes on counting
    from the epoch after it: rate(e) = lr / 2 * (1 + cos(pi * (e - 1) / epochs)) for e >= 1. The last epoch
    therefore never reaches the cosine's zero.
    """
    if epoch == 0:
        return WARMUP_LR
    return 0.5 * lr * (1.0 + cos(pi * (epoch - 1) / epochs))
