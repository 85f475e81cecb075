"""The state of a screen: the run, folded from its events, and the choices of the person."""
