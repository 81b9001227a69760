"""Small few-shot tasks with features that look like CLIP's, for the tests of methods.

Image features share a large direction, classes differ by little, and text features resemble the images of their class.
"""

from dataclasses import replace

import numpy as np

from taskres_cache.methods.few_shot import FewShotTask, ImageProjection, Images, Text, Views


def random_task(
    classes: int = 4,
    shots: int = 3,
    dim: int = 12,
    views: int = 2,
    templates: int = 2,
    val_per_class: int = 2,
    pre_projection_width: int = 0,
    seed: int = 1,
    dtype: type = np.float64,
) -> FewShotTask:
    """Return a task; no views, val or projection if their size is 0. Labels are in class order."""
    rng = np.random.default_rng(seed)
    width = pre_projection_width or dim
    shared = rng.normal(size=width)
    centres = shared + 0.5 * rng.normal(size=(classes, width))
    weights = rng.normal(size=(width, dim)) / np.sqrt(width) if pre_projection_width else np.eye(dim)
    bias = 0.1 * rng.normal(size=dim) if pre_projection_width else np.zeros(dim)

    def images_near(centre_rows: np.ndarray, noise: float) -> tuple[np.ndarray, np.ndarray | None]:
        inputs = centre_rows + noise * rng.normal(size=centre_rows.shape)
        features = (inputs @ weights + bias).astype(dtype)
        return features, inputs.astype(dtype) if pre_projection_width else None

    labels = np.repeat(np.arange(classes), shots)
    val_labels = np.repeat(np.arange(classes), val_per_class)
    train = images_near(centres[labels], 0.6)
    augmented = images_near(np.broadcast_to(centres[labels], (views, len(labels), width)), 0.6) if views else None
    val = images_near(centres[val_labels], 0.6)
    prompts = (centres @ weights)[:, None] + 0.3 * rng.normal(size=(classes, templates, dim))
    return FewShotTask(
        train=Images(train[0], labels, train[1]),
        text=Text.from_templates((0.4 * prompts).astype(dtype)),
        logit_scale=20.0,
        shots=shots,
        seed=seed,
        val=Images(val[0], val_labels, val[1]) if val_per_class else None,
        views=None if augmented is None else Views(*augmented),
        projection=ImageProjection(weights.astype(dtype), bias.astype(dtype)) if pre_projection_width else None,
    )


def without_images_of(task: FewShotTask, label: int, keep: int = 0) -> FewShotTask:
    """Return the task with only the first `keep` training images of a class."""
    kept = np.flatnonzero((task.train.labels != label) | (np.cumsum(task.train.labels == label) <= keep))
    train, views = task.train, task.views
    inputs = None if train.pre_projection is None else train.pre_projection[kept]
    fewer = None
    if views is not None:
        view_inputs = None if views.pre_projection is None else views.pre_projection[:, kept]
        fewer = Views(views.image_features[:, kept], view_inputs)
    return replace(task, train=Images(train.image_features[kept], train.labels[kept], inputs), views=fewer)
