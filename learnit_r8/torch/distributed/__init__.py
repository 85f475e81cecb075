"""Several processes that train together with one scheduler."""
