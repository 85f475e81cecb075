"""Evidence for wrong labels: what a model would have lost with other labels, and the verdict from it."""
