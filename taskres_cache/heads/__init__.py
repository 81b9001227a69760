"""From image features to logits: `formulas` is the model on one page, `kinds` the classifiers that hold tensors."""
