"""The audit: what a prompt changes, how much of it lasts within a user, what can be won."""
