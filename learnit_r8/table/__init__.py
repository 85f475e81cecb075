"""The table: what is known of every sample, and the figures made of it."""
