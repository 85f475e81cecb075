"""What the adapters for all frameworks share: batches drawn ahead, states, rates, and the search for a cause."""
