"""A run in memory that predicts pictures as they come: any form of picture, many threads, one encoder."""
