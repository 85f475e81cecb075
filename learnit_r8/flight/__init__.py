"""The flight recorder: what was seen of an incident, where it began, and the file that records it."""
