"""Zero-shot in the forms that the field reports, by hand."""

import numpy as np

from taskres_cache.evaluation import zero_shot_weights


def test_forms_of_zero_shot_by_hand() -> None:
    # One class, two templates of length 2 and 4: only the ensemble lets both count alike.
    weights = zero_shot_weights(np.array([[[2.0, 0.0], [0.0, 4.0]]]))
    assert {form: rows.tolist() for form, rows in weights.items()} == {
        "single prompt": [[2.0, 0.0]],
        "prompt ensemble": [[0.5, 0.5]],
        "residual base": [[1.0, 2.0]],
    }
