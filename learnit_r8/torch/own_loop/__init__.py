"""What a loop of the user's own has: its batches, its rates, its exceptions, and what else belongs to it."""
