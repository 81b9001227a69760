"""The options of `taskres fit` alone: the recipe."""

from typing import Annotated

import typer

from . import checks, completion
from .options import LIST

ONE_SHOTS, ONE_SEED = "16", "1"

Shots = Annotated[
    list[str] | None,
    typer.Option(
        "--shots",
        metavar=LIST,
        help="Training images per class, such as 16, 1-16 (1,2,4,8,16) or all.",
        show_default=f"{ONE_SHOTS}; all for your own data",
    ),
]
Seeds = Annotated[
    list[str] | None,
    typer.Option("--seeds", metavar=LIST, help="Seeds of the few-shot split, such as 1 or 1-3.", show_default=ONE_SEED),
]
Alpha = Annotated[
    list[str] | None,
    typer.Option(
        metavar=LIST,
        help="Weight of the residual: one or more numbers, auto (chosen by val accuracy) or learn (trained).",
        show_default="0.5, or the data set's own",
        autocompletion=completion.one_of("auto", "learn"),
    ),
]
LearningRate = Annotated[
    list[str] | None,
    typer.Option(
        metavar=LIST, help="Peak learning rate, one or more numbers.", show_default="0.002, or the data set's own"
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(callback=checks.at_least(1), help="Training epochs.", show_default="100 below 8 shots, else 200"),
]
BatchSize = Annotated[int | None, typer.Option(callback=checks.at_least(1), help="Batch size.", show_default="256")]
WeightDecay = Annotated[
    list[str] | None,
    typer.Option(metavar=LIST, help="Weight decay, added to the gradient; one or more numbers.", show_default="0.0005"),
]
Base = Annotated[
    list[str] | None,
    typer.Option(
        metavar="BASE",
        help="Text classifier to start from, one or more of regular, enhanced (text projection tuned on the same shots "
        "first), enhanced-only (without residual) and means (mean image of each class, which needs no text); or a "
        "file: the authors' model.pth.tar, a safetensors file with base or projection, or a run.",
        show_default="regular; means without text",
        autocompletion=completion.bases,
    ),
]
Residual = Annotated[
    str | None,
    typer.Option(
        help="What to train: text, image (one vector, added to all image features) or both.",
        show_default="text",
        autocompletion=completion.choices("residual"),
    ),
]
Search = Annotated[
    bool,
    typer.Option(
        "--search",
        help="Choose alpha, learning rate and weight decay by val accuracy, from the given values or a default grid.",
    ),
]
Patience = Annotated[
    int | None,
    typer.Option(
        callback=checks.at_least(1),
        help="Stop after this many epochs without a better val accuracy, and keep the best epoch.",
        show_default="keep the last epoch",
    ),
]
TrainedViews = Annotated[
    int | None,
    typer.Option(
        "--views",
        callback=checks.at_least(0),
        help="Augmented views of each image to train on, a different one each epoch; 0 for the images themselves.",
        show_default="all in the cache",
    ),
]
ViewsAverage = Annotated[
    bool, typer.Option("--views-average", help="Train on the mean of each image's views, as Tip-Adapter does.")
]
Precision = Annotated[
    str,
    typer.Option(
        help="Precision of the matrix products: fp32, bf16 or tf32 (CUDA only).",
        autocompletion=completion.choices("precision"),
    ),
]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        metavar=LIST,
        help="Methods to fit: taskres, others that `taskres methods` lists, all, or path/to/file.py:name for your own.",
        show_default="taskres; auto for your own data",
        autocompletion=completion.methods,
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Set an option of --method, such as alphas=0.1,1; repeatable."),
]
Val = Annotated[
    str,
    typer.Option(
        "--val",
        callback=checks.one_of("few", "full"),
        help="What --method chooses by: the few val images of the split, or the full val partition.",
        autocompletion=completion.one_of("few", "full"),
    ),
]
Prompts = Annotated[
    list[str] | None,
    typer.Option(
        "--prompts",
        metavar=LIST,
        help="Sets of prompts of the cache, compared with each other: default (its templates) and those that extract "
        "--prompts-name added.",
        show_default="default, or descriptions if the cache has them",
    ),
]
