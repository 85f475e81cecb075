"""Schedules: how far along a run is, and at what rate it learns."""
