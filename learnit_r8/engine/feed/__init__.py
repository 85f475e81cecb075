"""The feed: batches of the user's own loader, taken as they come, and found again after a resume."""
