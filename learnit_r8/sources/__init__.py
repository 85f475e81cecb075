"""Sampling: draws the batches of a pass as the policy decides."""
