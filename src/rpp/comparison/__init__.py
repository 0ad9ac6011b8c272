"""Every method on the same users, candidates and order, and one table of them."""
