"""What a call of `fit` got, and what it holds while it runs."""
