"""The sample table: loss estimates and use counts of every sample, and figures computed from them."""
