"""Sampling: carries out what a policy decides, and deals out the batches of a pass."""
