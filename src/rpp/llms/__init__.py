"""Frozen language models and the cache of their answers."""
