"""ProLIP: the last linear projection of the image tower is tuned, and kept near its start.

    f = x W + b,  W = W_0 + change    # x: the input of the projection; b stays
    loss = cross-entropy of logit_scale <f / |f|, t> + (penalty / K) |W - W_0|^2    # sum of squares, K shots

Source: Fahes et al., "CLIP's visual embedding projector is a few-shot cornucopia", WACV 2026 (astra-vision/ProLIP,
methods/ProLIP.py), in its form without validation: 300 full-batch steps of Adam (eps 1e-4), cosine to 0, one view per
step in turn, penalty 1 / K, the result of the last step. Text is the normalised mean of normalised prompts.

Deviations:
- The learning rate is 1e-3, theirs 1e-5. They store W in half precision, where steps of 1e-5 are below the spacing of
  many elements, and report the same accuracy from 1e-5 to 1e-2. The authors of P0, who train in single precision
  (in their comparison of endpoints), prefer 1e-3 with 1 / K; that value is taken over, not tuned.
- They have 300 crops of each image, so no view is used twice; ours walks through the views of the cache.
- A step sees at most `images_per_step` images, for speed; with that many or fewer it is the authors' full batch.
  On the validation images of four sets, batches of an eighth of the images gave the same accuracy (RLA and P0, 4 and
  16 shots: at most 0.9 points either way, and 0.02 in loss).
- Their search of 49 combinations on K images per class is left out: they report nearly the same accuracy without it.

Axes: V views, N images, C classes, D embedding, W size before the projection.
"""

from dataclasses import dataclass

import torch

from taskres_cache.errors import OptionError
from taskres_cache.heads.kinds import ProjectionHead
from taskres_cache.methods.few_shot import FewShotTask
from taskres_cache.methods.image_side.projection_change import Problem, Schedule, train_change
from taskres_cache.methods.method import Adapted, Method


@dataclass(frozen=True)
class ProlipOptions:
    """Hyper-parameters of ProLIP.

    Parameters
    ----------
    learning_rate : float, default 1e-3
        At the first step.
    penalty : float, default 1
        Divided by the shots, the weight of the squared distance from the projection of the checkpoint.
    steps : int, default 300
        Steps of Adam.
    images_per_step : int, default 128
        At most that many images per step.
    """

    learning_rate: float = 1e-3
    penalty: float = 1.0
    steps: int = 300
    images_per_step: int = 128


def fit(task: FewShotTask, options: ProlipOptions) -> Adapted:
    """Train the projection on its inputs (N, W).

    Raises
    ------
    OptionError
        The task has no features before the projection.
    """
    views = task.augmented
    if task.projection is None or views.pre_projection is None:
        raise OptionError("prolip needs image features before the tower's last projection, and the task has none")
    inputs = torch.from_numpy(views.pre_projection).to(task.device)
    start = torch.from_numpy(views.image_features).to(task.device)
    text = torch.from_numpy(task.text.ensemble).to(task.device)
    labels = torch.from_numpy(task.train.labels).to(task.device)
    problem = Problem(inputs, start, torch.zeros_like(start[..., 0]), text.T, labels, task.logit_scale)
    schedule = Schedule(options.steps, options.images_per_step, task.seed)
    penalty = options.penalty / task.shots
    change = train_change(problem, options.learning_rate, penalty, schedule)
    weights = torch.from_numpy(task.projection.weights) + change.matrix.cpu()
    bias = None if task.projection.bias is None else torch.from_numpy(task.projection.bias)
    head = ProjectionHead(weights, text.cpu(), task.logit_scale, "pre_projection", bias)
    return Adapted(head, {"lambda": penalty}, losses=change.losses)


METHOD = Method(
    name="prolip",
    fit=fit,
    options=ProlipOptions(),
    trains="the image tower's last projection, near its start",
    chooses="fixed",
    paper="Fahes et al., CLIP's visual embedding projector is a few-shot cornucopia, WACV 2026",
    views="narrow",
    reads="pre_projection",
)
