"""Reinforced Prompt Personalization: per-user prompts for ranking with frozen language models."""
