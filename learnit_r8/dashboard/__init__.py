"""What a person sees of a run. For now plain lines; it knows events, never the scheduler."""
