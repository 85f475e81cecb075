"""What makes the schedulers of several processes one, whatever framework carries their messages."""
