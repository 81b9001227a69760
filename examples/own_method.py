"""A few-shot method of your own on a cache, compared with zero-shot and task residual tuning.

    taskres extract digits
    python examples/own_method.py cache/glyph-clip-bundled/digits.h5

A method is a function from a split and image features (N, D) to classes (N,). It sees no label of a test image:
whatever it chooses, it can only choose by the split's validation images.
"""

import sys

import numpy as np

from taskres_cache import FeatureCache, TaskResClassifier


def zero_shot(cache: FeatureCache, shots: int, seed: int, image_features: np.ndarray) -> np.ndarray:
    """Predict the class with the nearest text feature."""
    return nearest(cache.text_features, image_features)


def own_method(cache: FeatureCache, shots: int, seed: int, image_features: np.ndarray) -> np.ndarray:
    """Blend each class's text feature with the mean of its images, as validation suggests; put your idea here."""
    train_features, train_labels = cache.train(shots, seed)  # un-normalised (M, D), and (M,)
    val_features, val_labels = cache.val(shots, seed)
    of_class = [train_features[train_labels == label] for label in range(len(cache.classnames))]
    means = normalised(np.stack([normalised(features).mean(axis=0) for features in of_class]))  # (C, D)
    text = normalised(cache.text_features)  # (C, D)
    blends = [(1 - share) * text + share * means for share in np.linspace(0, 1, 21)]
    best = max(blends, key=lambda blend: np.mean(nearest(blend, val_features) == val_labels))
    return nearest(best, image_features)


def taskres(cache: FeatureCache, shots: int, seed: int, image_features: np.ndarray) -> np.ndarray:
    """Fit a residual as `taskres fit` does, with the recipe of the data set."""
    how = {**cache.provenance.recipe, "logit_scale": cache.provenance.logit_scale, "random_state": seed}
    return TaskResClassifier(cache.text_features, **how).fit(*cache.train(shots, seed)).predict(image_features)


def nearest(weights: np.ndarray, image_features: np.ndarray) -> np.ndarray:
    """Return the class of each image (N, D) by the largest cosine with the weights (C, D)."""
    return (image_features @ normalised(weights).T).argmax(axis=1)


def normalised(features: np.ndarray) -> np.ndarray:
    """Return features (.., D) scaled to length 1."""
    return features / np.linalg.norm(features, axis=-1, keepdims=True)


def main(path: str) -> None:
    """Print the test accuracy of each method in percent, the mean over seeds."""
    cache, methods = FeatureCache(path), (zero_shot, own_method, taskres)
    image_features, labels = cache.test()
    print("shots", *(f"{method.__name__:>10}" for method in methods))
    for shots in sorted({shots for shots, _ in cache.splits}):
        seeds = [seed for count, seed in cache.splits if count == shots]
        right = [[method(cache, shots, seed, image_features) == labels for seed in seeds] for method in methods]
        print(f"{shots:5}", *(f"{100 * np.mean(one):10.2f}" for one in right))


if __name__ == "__main__":
    main(sys.argv[1])
