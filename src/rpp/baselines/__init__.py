"""The recommenders RPP is compared with that use no language model (paper, section 4.1)."""
