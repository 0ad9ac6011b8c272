"""Learners of a prompt policy: the declared contract, and what keeps to it."""
