"""The engine: the order in which the parts handle a batch and its loss, and the counters."""
