"""The code that the adapters for frameworks share."""
