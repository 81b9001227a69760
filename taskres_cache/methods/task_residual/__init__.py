"""The fast trainer of task residuals: closed-form gradients, many fits per step."""
