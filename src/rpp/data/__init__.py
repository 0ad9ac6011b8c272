"""Prepared data to episodes and collaborative vectors."""
