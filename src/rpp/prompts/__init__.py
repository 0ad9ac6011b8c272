"""Patterns, their sentences, and the prompts made of them."""
