"""The fast trainer of task residuals: closed-form gradients, stacked fits."""
