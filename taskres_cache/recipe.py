"""The training recipe of task residual tuning: plain values, chosen before a fit and stored with its result."""

from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from math import cos, pi
from typing import Any, Literal, get_args

from taskres_cache.errors import OptionError

Base = Literal["regular", "enhanced", "enhanced-only", "file"]
Residual = Literal["text", "image", "both"]
AlphaRule = Literal["fixed", "auto", "learn"]
Precision = Literal["fp32", "tf32", "bf16"]
ViewUse = Literal["walk", "average"]

CHOICES: dict[str, tuple[str, ...]] = {
    "base": get_args(Base),
    "residual": get_args(Residual),
    "alpha_rule": get_args(AlphaRule),
    "precision": get_args(Precision),
    "view_use": get_args(ViewUse),
}
BUILT_BASES = tuple(base for base in CHOICES["base"] if base != "file")  # from the cache alone

WARMUP_LR = 1e-5  # epoch 0 of the paper's schedule runs at this constant rate
PROJECTION_EPOCHS = 50  # of an enhanced base (TaskRes, section 4.1)
SEARCHED_LRS = (0.25, 1.0, 4.0)  # multiples of the recipe's own rate
SEARCHED_WEIGHT_DECAYS = (0.0, 5e-4, 5e-3)
FIRST_MARKS = ("base_sha256", "search", "residual", "alpha_rule")  # of a method's name
SEARCHED_FIELDS = ("alpha_rule", "lrs", "weight_decays")


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
    base : which text classifier the residual is added to: "regular"; "enhanced", whose projection was tuned on the same
        shots first; "enhanced-only", without a residual; or "file", from a file whose tensor has `base_sha256`.
    base_sha256 : digest of a base from a file; empty for all others.
    residual : what is trained: "text" (C, D); "image", one row (D,) added to every image feature before normalising;
        or "both" (TaskRes, ablations).
    alpha_rule : "fixed"; "auto" chooses alpha by val accuracy, see `selection`; "learn" trains it from `alpha` on, as
        in the paper's ablation.
    alphas : what "auto" chooses between; empty for a grid that follows the base.
    lrs, weight_decays : to choose between by val accuracy as well, in the place of `lr` and `weight_decay`; empty for
        no choice.
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
    base_sha256: str = ""
    residual: Residual = "text"
    alpha_rule: AlphaRule = "fixed"
    alphas: tuple[float, ...] = ()
    lrs: tuple[float, ...] = ()
    weight_decays: tuple[float, ...] = ()
    patience: int | None = None
    precision: Precision = "fp32"
    views: int = 0
    view_use: ViewUse = "walk"

    def __post_init__(self) -> None:
        for name in ("alphas", "lrs", "weight_decays"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON knows lists only
        self._refuse_numbers()
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise OptionError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if (self.base == "file") != bool(self.base_sha256):
            raise OptionError(f"base_sha256 goes with base 'file' and no other, got base {self.base!r}")
        if self.base == "enhanced-only" and (self.residual != "text" or self.chooses or self.alpha_rule != "fixed"):
            raise OptionError("base enhanced-only fits no residual: there is nothing to choose, learn or put elsewhere")
        if self.alphas and self.alpha_rule != "auto":
            raise OptionError(f"alphas are for alpha_rule 'auto' to choose between, got {self.alpha_rule!r}")

    def _refuse_numbers(self) -> None:
        positive: dict[str, tuple[float | None, ...]] = {
            "lr": (self.lr, *self.lrs),
            "epochs": (self.epochs,),
            "batch_size": (self.batch_size,),
            "patience": (self.patience,),
        }
        for name, values in positive.items():
            for value in values:
                if value is not None and not 0 < value < float("inf"):
                    raise OptionError(f"{name} must be a positive number, got {value}")
        for alpha in (self.alpha, *self.alphas):
            if not abs(alpha) < float("inf"):
                raise OptionError(f"alpha must be a finite number, got {alpha}")
        for weight_decay in (self.weight_decay, *self.weight_decays):
            if not 0 <= weight_decay < float("inf"):
                raise OptionError(f"weight_decay must not be negative, got {weight_decay}")
        if self.views < 0 or (self.views == 0 and self.view_use == "average"):
            raise OptionError(
                f"views must be {'1 or more to be averaged' if self.views == 0 else '0 or more'}, got {self.views}"
            )

    @property
    def chooses(self) -> bool:
        """Whether val accuracy is to choose something."""
        return self.alpha_rule == "auto" or bool(self.lrs or self.weight_decays)

    def epochs_for(self, shots: int) -> int:
        """Return the residual's epochs: as stated, else the paper's 100 up to 4 shots and 200 from 8 shots on."""
        if self.base == "enhanced-only":
            return 0
        if self.epochs is not None:
            return self.epochs
        return 100 if shots < 8 else 200

    def changed(self, **choices: Any) -> "Recipe":
        """Return this recipe with the choices that are not None put in."""
        return replace(self, **{name: choice for name, choice in choices.items() if choice is not None})

    def searching(
        self,
        alphas: tuple[float, ...] = (),
        lrs: tuple[float, ...] = (),
        weight_decays: tuple[float, ...] = (),
    ) -> "Recipe":
        """Return this recipe with alpha, rate and decay to be chosen by val accuracy.

        What is not said is searched around the recipe: a quarter to four times its rate, three decays, and for alpha
        the grid that follows the base.
        """
        return replace(
            self,
            alpha_rule="auto",
            alphas=alphas,
            lrs=lrs or tuple(float(f"{multiple * self.lr:.6g}") for multiple in SEARCHED_LRS),
            weight_decays=weight_decays or SEARCHED_WEIGHT_DECAYS,
        )

    def candidates(self, grid: tuple[float, ...]) -> list["Recipe"]:
        """Return every recipe that is to be chosen between; `grid` are the alphas where the recipe names none."""
        alphas = self.alphas or grid if self.alpha_rule == "auto" else (self.alpha,)
        rule: AlphaRule = "fixed" if self.alpha_rule == "auto" else self.alpha_rule
        settled = replace(self, alpha_rule=rule, alphas=(), lrs=(), weight_decays=())
        return [
            replace(settled, alpha=alpha, lr=lr, weight_decay=weight_decay)
            for alpha, lr, weight_decay in product(
                alphas, self.lrs or (self.lr,), self.weight_decays or (self.weight_decay,)
            )
        ]

    def for_projection(self) -> "Recipe":
        """Return the recipe by which the projection of an enhanced base is tuned: 50 epochs, otherwise this one.

        What concerns the residual alone goes, so that recipes which differ in nothing else share their base.
        """
        paper = Recipe()
        return replace(
            self, epochs=PROJECTION_EPOCHS, base="enhanced", base_sha256="", residual="text", alpha=paper.alpha,
            alpha_rule="fixed", alphas=(), lrs=(), weight_decays=(),
        )  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """Return the recipe as plain values, such as JSON gives back."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def deviations(self) -> dict[str, Any]:
        """Return the fields that differ from the paper's recipe, in order; empty for the recipe itself."""
        paper = Recipe()
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if not field.name.startswith("base") and getattr(self, field.name) != getattr(paper, field.name)
        }

    def method_name(self) -> str:
        """Return the folder name of a method: the base, then everything that is not the paper's.

        Two fits whose recipes differ can therefore never overwrite each other. What is yet to be chosen, or is not
        used, does not count.
        """
        marks = self.deviations() | ({"base_sha256": self.base_sha256[:12]} if self.base_sha256 else {})
        if self.lrs and self == self.searching(self.alphas):
            marks = {"search": ""} | {name: mark for name, mark in marks.items() if name not in SEARCHED_FIELDS}
        used = {name: mark for name, mark in marks.items() if name not in self._unused(searched="search" in marks)}
        ordered = [*(name for name in FIRST_MARKS if name in used), *(name for name in used if name not in FIRST_MARKS)]
        return "-".join(["taskres", self.base, *(_mark(name, used[name]) for name in ordered)])

    def _unused(self, searched: bool) -> set[str]:
        """Return the fields that nothing follows from; a default search is around the recipe's own rate."""
        unused = {"alpha"} if self.alpha_rule == "auto" else set()
        if self.base == "enhanced-only":
            return {"alpha", "epochs"}
        if self.base != "enhanced":  # whose projection is tuned by the recipe's own rate and decay
            unused |= {"weight_decay"} if self.weight_decays else set()
            unused |= {"lr"} if self.lrs and not searched else set()
        return unused


def _mark(name: str, value: Any) -> str:
    """Return how a field that is not the paper's stands in a method's name: `lr0.01`, `alpha-auto`, `lrs0.001,0.01`."""
    if name == "view_use":
        return str(value)
    if isinstance(value, tuple):
        return name.replace("_", "-") + ",".join(str(one).removesuffix(".0") for one in value)
    if name == "alpha_rule":
        return f"alpha-{value}"
    if name == "residual":
        return f"{value}-residual"
    return f"{name.removeprefix('base_').replace('_', '-')}{value}".removesuffix(".0")


def learning_rate(epoch: int, lr: float, epochs: int) -> float:
    """Return the rate of one epoch: 1e-5 in epoch 0, then a cosine that is one epoch behind the usual one.

    The quirk is that of the released training code, whose warm-up wraps a cosine schedule that goes on counting
    from the epoch after it: rate(e) = lr / 2 * (1 + cos(pi * (e - 1) / epochs)) for e >= 1. The last epoch
    therefore never reaches the cosine's zero.
    """
    if epoch == 0:
        return WARMUP_LR
    return 0.5 * lr * (1.0 + cos(pi * (epoch - 1) / epochs))
