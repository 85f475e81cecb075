"""What a person sees of a run: a screen on the terminal, or plain lines. It knows events, never the scheduler."""

from .guards import suspended

__all__ = ["suspended"]
