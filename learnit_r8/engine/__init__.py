"""The engine: in which order the parts act on a batch and on its loss, and the counters."""
