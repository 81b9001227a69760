"""The training recipe of task residual tuning: plain values, set before a fit and stored with its result."""

from dataclasses import asdict, dataclass, fields, replace
from hashlib import sha256
from itertools import product
from math import cos, pi
from typing import Any, Literal, get_args

from taskres_cache.errors import OptionError

Base = Literal["regular", "enhanced", "enhanced-only", "means", "file"]
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
BUILT_BASES = tuple(base for base in CHOICES["base"] if base != "file")  # need nothing but the cache

WARMUP_LR = 1e-5  # learning rate of epoch 0 in the paper's schedule
PROJECTION_EPOCHS = 50  # of an enhanced base (TaskRes, section 4.1)
SEARCHED_LRS = (0.25, 1.0, 4.0)  # multiples of the recipe's learning rate
SEARCHED_WEIGHT_DECAYS = (0.0, 5e-4, 5e-3)
FIRST_MARKS = ("base_sha256", "search", "residual", "alpha_rule")  # order in which a method's name begins
LONGEST_METHOD = 242  # file systems take 255 bytes, of which "-base-classes" may follow
SEARCHED_FIELDS = ("alpha_rule", "lrs", "weight_decays")


@dataclass(frozen=True)
class Recipe:
    """How a task residual is trained; the defaults are the paper's.

    Parameters
    ----------
    alpha : float, default 0.5
        Weight of the residual in `base + alpha * residual`.
    lr : float, default 0.002
        Peak learning rate of Adam.
    epochs : int, optional
        Passes over the training images. Defaults to the paper's rule, see `epochs_for`.
    batch_size : int, default 256
        Images per step.
    weight_decay : float, default 0.0005
        L2 weight decay, added to the gradient (Adam, not AdamW).
    base : {"regular", "enhanced", "enhanced-only", "means", "file"}
        Classifier that the residual is added to. "regular" is the mean text feature; "enhanced" first tunes the text
        projection on the same shots; "enhanced-only" does that and trains no residual; "means" is the mean image
        feature of each class on the same shots, which needs no text; "file" is read from a file.
    base_sha256 : str
        Digest of a base read from a file; empty for all others.
    residual : {"text", "image", "both"}
        What is trained: one row per class, added to the base; one row, added to every image feature before normalising;
        or both.
    alpha_rule : {"fixed", "auto", "learn"}
        "auto" chooses alpha by validation accuracy; "learn" trains it, starting at `alpha`.
    alphas : tuple of float
        Candidates for "auto"; empty for a grid scaled to the base.
    lrs, weight_decays : tuple of float
        Candidates for `lr` and `weight_decay`, chosen by validation accuracy; empty to use the single value.
    patience : int, optional
        Epochs without a better validation accuracy after which a fit stops and its best epoch is kept. By default the
        last epoch is kept, as in the paper.
    precision : {"fp32", "tf32", "bf16"}
        Precision of the operands of the two matrix products; all else is float32. "tf32" needs CUDA.
    views : int, default 0
        Augmented views per training image, the first ones in the cache; 0 trains on the images themselves.
    view_use : {"walk", "average"}
        "walk" uses view e mod `views` in epoch e, in place of the paper's new augmentation per epoch; "average" uses
        the mean of the un-normalised features, as Tip-Adapter does.

    Raises
    ------
    OptionError
        A value that no fit can use.

    Notes
    -----
    Source: TaskRes, CVPR 2023, section 4.1, with the optimiser and schedule of its released code; image residuals and
    learned alpha are from its ablations.

    Examples
    --------
    >>> from taskres_cache import Recipe
    >>> Recipe().method_name(), Recipe().epochs_for(16)
    ('taskres-regular', 200)
    >>> recipe = Recipe(alpha=1.0, epochs=50)
    >>> recipe.deviations()
    {'alpha': 1.0, 'epochs': 50}
    >>> recipe.method_name(), recipe.epochs_for(16)
    ('taskres-regular-alpha1-epochs50', 50)
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
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON has lists only
        self._check_numbers()
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise OptionError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if (self.base == "file") != bool(self.base_sha256):
            raise OptionError(f"base_sha256 is needed for base 'file' and for no other, got base {self.base!r}")
        if self.base == "enhanced-only" and (self.residual != "text" or self.chooses or self.alpha_rule != "fixed"):
            raise OptionError(
                "base enhanced-only trains no residual: leave out residual, alpha_rule, lrs and weight_decays, or use "
                "base enhanced"
            )
        if self.alphas and self.alpha_rule != "auto":
            raise OptionError(f"alphas need alpha_rule 'auto', got {self.alpha_rule!r}")

    def _check_numbers(self) -> None:
        """Raise OptionError for a number out of range."""
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
            if not abs(alpha) < float(
                "inf"
            ):  # negative is harmless: the residual trains to the other sign, as a learned alpha may
                raise OptionError(f"alpha must be a finite number, got {alpha}")
        for weight_decay in (self.weight_decay, *self.weight_decays):
            if not 0 <= weight_decay < float("inf"):
                raise OptionError(f"weight_decay must not be negative, got {weight_decay}")
        if self.views < 0 or (self.views == 0 and self.view_use == "average"):
            least = "1 or more for view_use 'average'" if self.views == 0 else "0 or more"
            raise OptionError(f"views must be {least}, got {self.views}")

    @property
    def chooses(self) -> bool:
        """True if validation accuracy chooses alpha, the learning rate or the weight decay."""
        return self.alpha_rule == "auto" or bool(self.lrs or self.weight_decays)

    def epochs_for(self, shots: int) -> int:
        """Return the epochs of the residual: `epochs` if set, else the paper's 100 below 8 shots and 200 from 8 on."""
        if self.base == "enhanced-only":
            return 0
        if self.epochs is not None:
            return self.epochs
        return 100 if shots < 8 else 200

    def changed(self, **choices: Any) -> "Recipe":
        """Return this recipe with the given fields replaced; fields given as None stay as they are."""
        return replace(self, **{name: value for name, value in choices.items() if value is not None})

    def searching(
        self,
        alphas: tuple[float, ...] = (),
        lrs: tuple[float, ...] = (),
        weight_decays: tuple[float, ...] = (),
    ) -> "Recipe":
        """Return this recipe with alpha, learning rate and weight decay chosen by validation accuracy.

        Parameters
        ----------
        alphas : tuple of float, optional
            Defaults to the grid scaled to the base.
        lrs : tuple of float, optional
            Defaults to a quarter, once and four times the recipe's learning rate.
        weight_decays : tuple of float, optional
            Defaults to 0, 0.0005 and 0.005.
        """
        return replace(
            self,
            alpha_rule="auto",
            alphas=alphas,
            lrs=lrs or tuple(float(f"{multiple * self.lr:.6g}") for multiple in SEARCHED_LRS),
            weight_decays=weight_decays or SEARCHED_WEIGHT_DECAYS,
        )

    def candidates(self, grid: tuple[float, ...]) -> list["Recipe"]:
        """Return one recipe per combination of candidates; `grid` holds the alphas for a recipe without `alphas`."""
        alphas = self.alphas or grid if self.alpha_rule == "auto" else (self.alpha,)
        rule: AlphaRule = "fixed" if self.alpha_rule == "auto" else self.alpha_rule
        plain = replace(self, alpha_rule=rule, alphas=(), lrs=(), weight_decays=())
        return [
            replace(plain, alpha=alpha, lr=lr, weight_decay=weight_decay)
            for alpha, lr, weight_decay in product(
                alphas, self.lrs or (self.lr,), self.weight_decays or (self.weight_decay,)
            )
        ]

    def for_projection(self) -> "Recipe":
        """Return the recipe that tunes the projection of an enhanced base: 50 epochs, otherwise this recipe.

        Fields of the residual are reset, so that recipes that differ only in the residual share their base.
        """
        paper = Recipe()
        return replace(
            self, epochs=PROJECTION_EPOCHS, base="enhanced", base_sha256="", residual="text", alpha=paper.alpha,
            alpha_rule="fixed", alphas=(), lrs=(), weight_decays=(),
        )  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """Return the recipe as plain values for JSON; tuples become lists."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def deviations(self) -> dict[str, Any]:
        """Return the fields that differ from the paper's recipe, in order; fields of the base are left out."""
        paper = Recipe()
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if not field.name.startswith("base") and getattr(self, field.name) != getattr(paper, field.name)
        }

    def method_name(self) -> str:
        """Return the method's folder name: the base, then every field that differs from the paper's recipe.

        Fits of different recipes therefore never overwrite each other. Fields that are not used, or are chosen later,
        are left out. A name too long for a folder, of many candidates, ends with a digest of the whole name.
        """
        marks = self.deviations() | ({"base_sha256": self.base_sha256[:12]} if self.base_sha256 else {})
        if self.lrs and self == self.searching(self.alphas):
            marks = {"search": ""} | {name: mark for name, mark in marks.items() if name not in SEARCHED_FIELDS}
        used = {name: mark for name, mark in marks.items() if name not in self._unused(searched="search" in marks)}
        ordered = [*(name for name in FIRST_MARKS if name in used), *(name for name in used if name not in FIRST_MARKS)]
        name = "-".join(["taskres", self.base, *(_mark(name, used[name]) for name in ordered)])
        return name if len(name) <= LONGEST_METHOD else f"{name[: LONGEST_METHOD - 17]}-{_digest(name)}"

    def _unused(self, searched: bool) -> set[str]:
        """Return the fields that do not affect the fit; `lr` affects a default search, which is centred on it."""
        unused = {"alpha"} if self.alpha_rule == "auto" else set()
        if self.base == "enhanced-only":
            return {"alpha", "epochs"}
        if self.base != "enhanced":  # whose projection is tuned with `lr` and `weight_decay`
            unused |= {"weight_decay"} if self.weight_decays else set()
            unused |= {"lr"} if self.lrs and not searched else set()
        return unused


def _digest(name: str) -> str:
    return sha256(name.encode()).hexdigest()[:16]


def _mark(name: str, value: Any) -> str:
    """Return the part of a method's name for one field, such as `lr0.01`, `alpha-auto` or `lrs0.001,0.01`."""
    if name == "view_use":
        return str(value)
    if isinstance(value, tuple):
        return name.replace("_", "-") + ",".join(str(candidate).removesuffix(".0") for candidate in value)
    if name == "alpha_rule":
        return f"alpha-{value}"
    if name == "residual":
        return f"{value}-residual"
    return f"{name.removeprefix('base_').replace('_', '-')}{value}".removesuffix(".0")


def learning_rate(epoch: int, lr: float, epochs: int) -> float:
    """Return the learning rate of one epoch: 1e-5 in epoch 0, then a cosine that starts one epoch late.

    Notes
    -----
    `rate(e) = lr / 2 * (1 + cos(pi * (e - 1) / epochs))` for e >= 1: in the released training code the warm-up epoch
    delays the cosine schedule by one epoch, so the last epoch does not reach zero.
    """
    if epoch == 0:
        return WARMUP_LR
    return 0.5 * lr * (1.0 + cos(pi * (epoch - 1) / epochs))
