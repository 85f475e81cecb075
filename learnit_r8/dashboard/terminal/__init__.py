"""The terminal: modes, signals, keys, colours, and the capture of printed text."""
