"""Parts of the user's own loop: its batches, its rates, its exceptions, and what else belongs to it."""
