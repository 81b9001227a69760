"""The methods as research code writes them: autograd, torch.optim, scikit-learn, one setting after another.

Made for `make bench-methods`, which times them next to ours. Each does the same work as our method with its defaults:
the same steps, batches and candidates. The results are held against ours in tests/methods/, by other implementations.
"""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from taskres_cache.methods.few_shot import FewShotTask


def tensors_of(task: FewShotTask) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return views (V, N, D), labels (N,), text (C, D), validation images (M, D) and labels (M,)."""
    assert task.val is not None
    arrays = task.augmented.image_features, task.train.labels, task.text.ensemble
    views, labels, text = map(torch.from_numpy, arrays)
    val, val_labels = torch.from_numpy(task.val.image_features), torch.from_numpy(task.val.labels)
    return views, labels, text, val, val_labels


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the part of logits (M, C) with the right maximum."""
    return (logits.argmax(dim=1) == labels).double().mean().item()


def batches(count: int, size: int, steps: int) -> Iterator[Tensor]:
    """Yield the rows of each step, shuffled anew in each epoch."""
    done = 0
    while done < steps:
        for rows in torch.randperm(count).split(size):
            if done == steps:
                return
            done += 1
            yield rows


def taskres(task: FewShotTask) -> None:
    """Fit a task residual with the paper's loop."""
    views, labels = torch.from_numpy(task.augmented.image_features), torch.from_numpy(task.train.labels)
    base = torch.from_numpy(task.text.base)
    residual = torch.nn.Parameter(torch.zeros_like(base))
    epochs = 100 if task.shots < 8 else 200
    optimiser = torch.optim.Adam([residual], lr=2e-3, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    for epoch in range(epochs):
        for rows in torch.randperm(len(labels)).split(256):
            if len(rows) < 256 <= len(labels):
                continue
            optimiser.zero_grad()
            images = normalize(views[epoch % len(views)][rows], dim=1)
            weights = normalize(base + 0.5 * residual, dim=1)
            cross_entropy(task.logit_scale * images @ weights.T, labels[rows]).backward()
            optimiser.step()
        schedule.step()


def linear_probe(task: FewShotTask) -> None:
    """Fit as many logistic regressions as CoOp's search with scikit-learn, at values of C over the same range."""
    for exponent in np.linspace(-6, 6, 23):
        LogisticRegression(C=10.0**exponent, max_iter=1000).fit(task.train.image_features, task.train.labels)


def memory_grid(task: FewShotTask, keys: Tensor) -> None:
    """Try every alpha and beta of Tip-Adapter's search."""
    _, labels, text, val, val_labels = tensors_of(task)
    images, values = normalize(val, dim=1), torch.nn.functional.one_hot(labels, len(text)).float()
    zero_shot, near = task.logit_scale * images @ text.T, images @ keys.T
    for beta in np.geomspace(0.1, 50, 28).tolist():
        for alpha in np.geomspace(0.1, 50, 28).tolist():
            memory = (-beta * (1 - near)).exp() @ values
            accuracy(zero_shot + alpha * memory, val_labels)


def tip_adapter(task: FewShotTask) -> None:
    """Search alpha and beta as the authors' code does."""
    views, *_ = tensors_of(task)
    memory_grid(task, normalize(views.mean(dim=0), dim=1))


def tip_adapter_f(task: FewShotTask) -> None:
    """Train the keys with autograd and torch.optim.AdamW, then search."""
    views, labels, text, *_ = tensors_of(task)
    values = torch.nn.functional.one_hot(labels, len(text)).float()
    keys = torch.nn.Parameter(normalize(views.mean(dim=0), dim=1))
    optimiser = torch.optim.AdamW([keys], lr=1e-3, eps=1e-4)
    for epoch in range(20):
        for rows in torch.randperm(len(labels)).split(256):
            optimiser.zero_grad()
            images = normalize(views[epoch % len(views)][rows], dim=1)
            memory = (-(1 - images @ keys.T)).exp() @ values
            cross_entropy(task.logit_scale * images @ text.T + 2 * memory, labels[rows]).backward()
            optimiser.step()
    memory_grid(task, keys.detach())


def clip_adapter(task: FewShotTask) -> None:
    """Train the adapter with autograd and torch.optim.SGD."""
    views, labels, text, *_ = tensors_of(task)
    dim = text.shape[1]
    adapter = torch.nn.Sequential(
        torch.nn.Linear(dim, dim // 4, bias=False), torch.nn.ReLU(), torch.nn.Linear(dim // 4, dim, bias=False),
        torch.nn.ReLU(),
    )  # fmt: skip
    optimiser = torch.optim.SGD(adapter.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for step, rows in enumerate(batches(len(labels), 256, 200)):
        optimiser.zero_grad()
        images = normalize(views[step % len(views)][rows], dim=1)
        adapted = normalize(0.2 * adapter(images) + 0.8 * images, dim=1)
        cross_entropy(task.logit_scale * adapted @ text.T, labels[rows]).backward()
        optimiser.step()


def lp_plus_plus(task: FewShotTask) -> None:
    """Train LP++ with autograd, and look at the validation images in each epoch."""
    views, labels, text, val, val_labels = tensors_of(task)
    images, queries = normalize(views[0], dim=1), normalize(val, dim=1)
    weights = torch.nn.Parameter(torch.nn.functional.one_hot(labels, len(text)).float().T @ images)
    bias, alphas = (torch.nn.Parameter(torch.zeros(len(text))) for _ in range(2))
    optimiser = torch.optim.SGD([weights, bias], lr=1.0, momentum=0.9)
    for epoch in range(300):
        loss = cross_entropy(images @ weights.T + bias + alphas * (images @ text.T), labels)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        if epoch % 10 == 9 and alphas.grad is not None:
            alphas.data -= alphas.grad
        with torch.no_grad():
            accuracy(queries @ weights.T + bias + alphas * (queries @ text.T), val_labels)


def pool_training(task: FewShotTask, penalties: Tensor | None) -> None:
    """Train the class weights of ZS-LP or CLAP with autograd and torch.optim.SGD, on a pool of all views."""
    views, of_image, *_ = tensors_of(task)
    pool, labels = views.flatten(0, 1), of_image.repeat(len(views))
    base = torch.from_numpy(task.text.base)
    weights = torch.nn.Parameter(base.clone())
    optimiser = torch.optim.SGD([weights], lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 300)
    for _ in range(300):
        for rows in torch.randperm(len(pool)).split(256)[: max(1, len(of_image) // 256)]:
            optimiser.zero_grad()
            features, classifier = (normalize(one, dim=1) for one in (pool[rows], weights))
            loss = cross_entropy(task.logit_scale * features @ classifier.T, labels[rows])
            if penalties is not None:
                loss = loss + (penalties * (weights - base).square().sum(dim=1)).mean()
            loss.backward()
            optimiser.step()
        schedule.step()


def zs_lp(task: FewShotTask) -> None:
    """Train without a penalty."""
    pool_training(task, None)


def clap(task: FewShotTask) -> None:
    """Train with the zero-shot probabilities as penalties."""
    views, labels, text, *_ = tensors_of(task)
    probabilities = (task.logit_scale * normalize(views.flatten(0, 1), dim=1) @ text.T).softmax(dim=1)
    of_image = labels.repeat(len(views))
    pool_training(task, torch.stack([probabilities[of_image == one, one].mean() for one in range(len(text))]))


def gda(task: FewShotTask) -> None:
    """Estimate means and covariance as the authors' code, and try its values of alpha."""
    views, labels, text, val, val_labels = tensors_of(task)
    images, queries = normalize(views.flatten(0, 1), dim=1), normalize(val, dim=1)
    of_image = labels.repeat(len(views))
    means = torch.stack([images[of_image == one].mean(dim=0) for one in range(len(text))])
    centred = torch.cat([images[of_image == one] - means[one] for one in range(len(text))])
    covariance, dim = centred.T.cov(), images.shape[1]
    inverse = dim * torch.linalg.pinv((len(centred) - 1) * covariance + covariance.trace() * torch.eye(dim))
    weights = means @ inverse
    bias = -(weights * means).sum(dim=1) / 2
    for exponent in range(-4, 5):
        accuracy(task.logit_scale * queries @ text.T + 10.0**exponent * (queries @ weights.T + bias), val_labels)


def cross_modal(task: FewShotTask) -> None:
    """Train the fits one after another with autograd and torch.optim.AdamW; look at validation images every 50."""
    views, labels, text, val, val_labels = tensors_of(task)
    images, prompts = (normalize(one, dim=1) for one in (views[0], torch.from_numpy(task.text.features)))
    owners, queries = torch.from_numpy(task.text.labels), normalize(val, dim=1)
    for lr in (1e-3, 1e-4):
        for size in (4, 16):
            weights = torch.nn.Parameter(text.clone())
            optimiser = torch.optim.AdamW([weights], lr=lr, weight_decay=0)
            parts = zip(batches(len(labels), size, 1000), batches(len(owners), size, 1000), strict=True)
            for step, (rows, others) in enumerate(parts):
                optimiser.zero_grad()
                inputs, targets = torch.cat([images[rows], prompts[others]]), torch.cat([labels[rows], owners[others]])
                cross_entropy(task.logit_scale * inputs @ weights.T, targets).backward()
                optimiser.step()
                if step % 50 == 49:
                    accuracy(queries @ weights.T, val_labels)


def projection(task: FewShotTask, inputs: Tensor, start: Tensor, lr: float, penalty: float, steps: int) -> Tensor:
    """Train a projection (W, D) of inputs (V, N, W), near its start, with autograd and torch.optim.Adam."""
    _, labels, text, *_ = tensors_of(task)
    matrix = torch.nn.Parameter(start.clone())
    optimiser = torch.optim.Adam([matrix], lr=lr, eps=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step, rows in enumerate(batches(len(labels), 128, steps)):
        optimiser.zero_grad()
        features = normalize(inputs[(step + 1) % len(inputs)][rows] @ matrix, dim=1)
        loss = cross_entropy(task.logit_scale * features @ text.T, labels[rows])
        (loss + penalty * (matrix - start).square().sum()).backward()
        optimiser.step()
        schedule.step()
    return matrix.detach()


def rla(task: FewShotTask) -> None:
    """Train a matrix on image features."""
    views, *_ = tensors_of(task)
    projection(task, views, torch.eye(views.shape[2]), 1e-3, 1 / task.shots, 300)


def prolip(task: FewShotTask) -> None:
    """Train the tower's projection."""
    assert task.projection is not None
    inputs = torch.from_numpy(np.asarray(task.augmented.pre_projection))
    projection(task, inputs, torch.from_numpy(task.projection.weights), 1e-3, 1 / task.shots, 300)


def p0(task: FewShotTask) -> None:
    """Train a map into the span of the texts for each of nine settings, one after another."""
    views, labels, text, *_ = tensors_of(task)
    inputs = torch.from_numpy(np.asarray(task.augmented.pre_projection))
    basis = torch.linalg.svd((text - text.mean(dim=0)).T, full_matrices=False)[0][:, : len(text) - 1]  # (D, r)
    rates = [(1e-3, one) for one in (1 / task.shots, 0.0, 0.01, 0.1, 1.0, 10.0, 100.0)]
    for lr, penalty in [*rates, (1e-4, 1 / task.shots), (1e-2, 1 / task.shots)]:
        change = torch.nn.Parameter(torch.zeros(inputs.shape[2], basis.shape[1]))
        optimiser = torch.optim.Adam([change], lr=lr, eps=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 300)
        for step, rows in enumerate(batches(len(labels), 128, 300)):
            optimiser.zero_grad()
            view = (step + 1) % len(views)
            moved = views[view][rows] + inputs[view][rows] @ change @ basis.T
            loss = cross_entropy(task.logit_scale * normalize(moved, dim=1) @ text.T, labels[rows])
            (loss + penalty * change.square().sum()).backward()
            optimiser.step()
            schedule.step()


def proker(task: FewShotTask) -> None:
    """Solve the kernel system for every beta and lambda."""
    views, of_image, text, val, val_labels = tensors_of(task)
    kept = views[: max(1, 2048 // len(of_image))]
    rows, labels = normalize(kept.flatten(0, 1), dim=1).double(), of_image.repeat(len(kept))
    queries, zero_shot = normalize(val, dim=1).double(), text.double().T
    missed = torch.nn.functional.one_hot(labels, len(text)) - rows @ zero_shot
    for beta in (0.1, 0.5, 2.0, 5.0, 10.0):
        kernel, near = (beta * (rows @ rows.T - 1)).exp(), (beta * (queries @ rows.T - 1)).exp()
        for ridge in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0):
            solved = torch.linalg.solve(kernel / ridge + torch.eye(len(rows)), missed)
            accuracy(queries @ zero_shot + near @ solved, val_labels)


def ape_t(task: FewShotTask) -> None:
    """Train the residual and the weights of the images with autograd and torch.optim.AdamW, then search."""
    views, labels, text, val, val_labels = tensors_of(task)
    values, keys = torch.nn.functional.one_hot(labels, len(text)).float(), normalize(views.mean(dim=0), dim=1)
    channels, queries = torch.arange(text.shape[1] * 7 // 8), normalize(val, dim=1)
    res = torch.nn.Parameter(torch.zeros(len(text), len(channels)))
    weights = torch.nn.Parameter(torch.ones(len(labels), 1))

    def logits(images: Tensor, alpha: float, beta: float) -> Tensor:
        changed, moved = text.clone(), keys.clone()
        changed[:, channels] += res
        moved[:, channels] += res[labels]
        memory = (-beta * (1 - images @ moved.T)).exp() @ (values * weights)
        return task.logit_scale * images @ changed.T + alpha * memory

    optimiser = torch.optim.AdamW([res, weights], lr=1e-3, eps=1e-3, weight_decay=0.1)
    for epoch in range(30):
        for rows in torch.randperm(len(labels)).split(256):
            optimiser.zero_grad()
            cross_entropy(logits(normalize(views[epoch % len(views)][rows], dim=1), 1, 1), labels[rows]).backward()
            optimiser.step()
        with torch.no_grad():
            accuracy(logits(queries, 1, 1), val_labels)
    with torch.no_grad():
        for beta in np.linspace(0.1, 6.7, 20).tolist():
            for alpha in np.linspace(0.1, 6.7, 20).tolist():
                accuracy(logits(queries, alpha, beta), val_labels)


PLAIN: Mapping[str, Callable[[FewShotTask], object]] = MappingProxyType(
    {
        "taskres": taskres,
        "linear-probe": linear_probe,
        "tip-adapter": tip_adapter,
        "tip-adapter-f": tip_adapter_f,
        "clip-adapter": clip_adapter,
        "lp++": lp_plus_plus,
        "zs-lp": zs_lp,
        "clap": clap,
        "gda": gda,
        "cross-modal": cross_modal,
        "prolip": prolip,
        "rla": rla,
        "p0": p0,
        "proker": proker,
        "ape-t": ape_t,
    }
)  # ss-text and timo are closed forms, which the authors write as we do
