"""A run as a web service: one page, predictions over HTTP, health and metrics."""
