"""The results table, for a learner's test and for the comparison alike."""
