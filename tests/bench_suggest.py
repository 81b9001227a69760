"""`make bench-suggest`: accuracy with labels of suggested images, compared with images chosen at random.

The images of a cache's train partition are unlabelled at first. A strategy asks for C labels, then for as many as make
2 C, 4 C and 8 C; a method without validation images is fitted on the labels so far. Random choice and the suggestions
see the same random 80 % of the images in each of ten seeds. Accuracy is that on the partition named by --on.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from taskres_cache.caches.feature_cache import FeatureCache
from taskres_cache.choosing.label_order import coverage_order, uncertainty_weights
from taskres_cache.heads.head import Head
from taskres_cache.methods.few_shot import FewShotTask, Images, Text
from taskres_cache.methods.method import Method
from taskres_cache.methods.registry import find_method

BUDGETS, SEEDS, SHARE = (1, 2, 4, 8), range(1, 11), 0.8  # labels per class on average

Strategy = Callable[[np.ndarray, np.ndarray, int, Head | None, np.random.Generator], np.ndarray]


def at_random(
    features: np.ndarray, labelled: np.ndarray, count: int, head: Head | None, draw: np.random.Generator
) -> np.ndarray:
    """Return images drawn at random."""
    return draw.permutation(np.setdiff1d(np.arange(len(features)), labelled))[:count]


def by_coverage(
    features: np.ndarray, labelled: np.ndarray, count: int, head: Head | None, draw: np.random.Generator
) -> np.ndarray:
    """Return the images that cover all images best."""
    return coverage_order(features, count, features[labelled]).rows


def suggested(
    features: np.ndarray, labelled: np.ndarray, count: int, head: Head | None, draw: np.random.Generator
) -> np.ndarray:
    """Return what `taskres suggest` does: coverage, weighted by uncertainty from four labels per class on."""
    if head is None:
        return by_coverage(features, labelled, count, head, draw)
    weights = uncertainty_weights(head.probabilities(torch.from_numpy(features)).numpy(), len(labelled))
    return coverage_order(features, count, features[labelled], weights).rows


STRATEGIES: dict[str, Strategy] = {"random": at_random, "coverage": by_coverage, "suggest": suggested}


def accuracies(cache: FeatureCache, method: Method, strategy: Strategy, seed: int, on: str) -> list[float]:
    """Return the accuracy after each budget."""
    draw, text = np.random.default_rng(seed), Text.from_templates(cache.text_bases().embeddings)
    train = cache.rows("train")
    pool = draw.permutation(train)[: round(SHARE * len(train))]
    features, labels = cache.image_features(pool), cache.labels[pool].astype(np.int64)
    rows = cache.rows(on)
    images, truth = torch.from_numpy(cache.image_features(rows)), torch.from_numpy(cache.labels[rows].astype(np.int64))
    labelled, head, found = np.empty(0, np.int64), None, []
    for budget in BUDGETS:
        wanted = min(budget * len(cache.classnames), len(pool)) - len(labelled)
        labelled = np.concatenate([labelled, strategy(features, labelled, wanted, head, draw)])
        known = Images(features[labelled], labels[labelled])
        task = FewShotTask(known, text, cache.provenance.logit_scale, budget, seed)
        head = method.fit(task, method.options).head
        found.append(head.score(images, truth)[0])
    return found


def main() -> None:
    """Print the mean accuracy of each strategy over ten seeds, and its paired difference to random choice."""
    parser = argparse.ArgumentParser(description="compare suggested images with random ones")
    parser.add_argument("caches", nargs="+", type=Path)
    parser.add_argument("--on", choices=("val", "test"), default="test")
    parser.add_argument("--method", default="clap", help="any method that reads image features")
    options = parser.parse_args()
    method = find_method(options.method).method
    for path in options.caches:
        cache = FeatureCache(path)
        results = {
            name: np.array([accuracies(cache, method, strategy, seed, options.on) for seed in SEEDS])
            for name, strategy in STRATEGIES.items()
        }
        print(
            f"{path.stem}, {options.on}, {method.name}, labels per class "
            + " ".join(f"{budget:>13}" for budget in BUDGETS)
        )
        for name, found in results.items():
            cells = [f"{mean:5.2f}" for mean in found.mean(axis=0)]
            if name != "random":
                gaps = found - results["random"]
                halves = 2.262 * gaps.std(axis=0, ddof=1) / len(found) ** 0.5  # t of 9 degrees of freedom, 95 %
                cells = [f"{c} {g:+5.2f}±{h:4.2f}" for c, g, h in zip(cells, gaps.mean(axis=0), halves, strict=True)]
            print(f"  {name:10} " + "  ".join(cells), flush=True)


if __name__ == "__main__":
    main()
