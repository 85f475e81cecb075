"""The batches that a scheduler draws, on their way through a `DataLoader`."""
