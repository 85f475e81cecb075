"""The live view of a run: a screen on the terminal, or plain lines. It knows events, never the scheduler."""

from .terminal.terminal_hooks import suspended

__all__ = ["suspended"]
