"""Callbacks of a learner: the reward environment, logs, the results table, predictions."""
