"""An incident: what finds out by experiment what was at fault, and does what was found."""
