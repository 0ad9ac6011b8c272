"""The learner: agents, state and losses."""
