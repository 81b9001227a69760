"""The best classifier that the labels of a split support, chosen without test."""
