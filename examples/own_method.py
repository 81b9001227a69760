"""A few-shot method of your own on a cache, beside zero-shot and task residual tuning.

    taskres extract digits
    python examples/own_method.py cache/glyph-clip-bundled/digits.h5

A method is a function from a split and image features (N, D) to classes (N,). It sees no label of a test image, so that
whatever it has to choose, it can only choose by the split's val images.
"""

import sys

import numpy as np

from taskres_cache import FeatureCache, TaskResClassifier


def zero_shot(cache: FeatureCache, shots: int, seed: int, image_features: np.ndarray) -> np.ndarray:
    """Take the class whose text feature is nearest."""
    return nearest(cache.text_features, image_features)


def own_method(cache: FeatureCache, shots: int, seed: int, image_features: np.ndarray) -> np.ndarray:
    """Blend each class's text with the mean of its images, as far as val says: put your own idea here."""
    train_features, train_labels = cache.train(shots, seed)  # un-normalised (M, D), and (M,)
    val_features, val_labels = cache.val(shots, seed)
    of_class = [train_features[train_labels == label] for label in range(len(cache.classnames))]
    means = normalised(np.stack([normalised(features).mean(axis=0) for features in of_class]))  # (C, D)
    text = normalised(cache.text_features)  # (C, D)
    blends = [(1 - share) * text + share * means for share in np.linspace(0, 1, 21)]
    best = max(blends, key=lambda blend: np.mean(nearest(blend, val_features) == val_labels))
    return nearest(best, image_features)


def taskres(cache: FeatureCache, shots: int, seed: int, image_features: np.ndarray) -> np.ndarray:
    """Fit what `taskres fit` fits, by the data set's own recipe."""
    how = {**cache.provenance.recipe, "logit_scale": cache.provenance.logit_scale, "random_state": seed}
    return TaskResClassifier(cache.text_features, **how).fit(*cache.train(shots, seed)).predict(image_features)


def nearest(weights: np.ndarray, image_features: np.ndarray) -> np.ndarray:
    """Return for each image (N, D) the class whose weights (C, D) have the largest cosine."""
    return (image_features @ normalised(weights).T).argmax(axis=1)


def normalised(features: np.ndarray) -> np.ndarray:
    """Return features (.., D) divided by their length."""
    return features / np.linalg.norm(features, axis=-1, keepdims=True)


def main(path: str) -> None:
    """Print the accuracy of each method on the test images, in percent, the mean over seeds."""
    cache, methods = FeatureCache(path), (zero_shot, own_method, taskres)
    image_features, labels = cache.test()
    print("shots", *(f"{method.__name__:>10}" for method in methods))
    for shots in sorted({shots for shots, _ in cache.splits}):
        seeds = [seed for count, seed in cache.splits if count == shots]
        right = [[method(cache, shots, seed, image_features) == labels for seed in seeds] for method in methods]
        print(f"{shots:5}", *(f"{100 * np.mean(one):10.2f}" for one in right))


if __name__ == "__main__":
    main(sys.argv[1])
