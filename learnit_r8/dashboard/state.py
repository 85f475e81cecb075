"""The state word: how the run is doing, in one word."""

from __future__ import annotations

from typing import NamedTuple

from .looking import Looking, Scene
from .text import clean
from .view import View

LEAST_STALL_SECONDS = 60.0
STALL_STEPS = 30
"""A step that takes so many times as long as usual, and at least a minute, is a stall."""


class State(NamedTuple):
    """How the run is doing.

    Attributes:
        word: In capitals; says it without any colour.
        style: Name of the style it is shown in.
        detail: A few words more, or "".
    """

    word: str
    style: str
    detail: str = ""


def state_of(view: View, looking: Looking, scene: Scene) -> State:
    """How the run is doing; what is worst comes first."""
    if view.gave_up is not None:
        return State("DIVERGED", "alert", "everything was tried")
    if view.ended is not None:
        return State("FINISHED", "good") if view.ended.finished else State("STOPPED", "warn")
    if scene.link == "died":
        return State("DIED", "alert", "no sign of life")
    if view.run is None:
        return State("WAITING", "busy")
    if scene.is_paused or view.is_paused:
        return State("PAUSED", "warn")
    if scene.link.startswith("stalled"):
        return State("STALLED", "alert", clean(scene.link.removeprefix("stalled").strip(), 30))
    silent = _silence(view, scene)
    if silent:
        return State("STALLED", "alert", f"{silent:.0f}s")
    if view.incident is not None:
        return State("RECOVERING", "alert", clean(view.incident.reason, 30))
    if view.is_searching:
        return State("SEARCHING", "busy", "learning rate")
    if view.last is not None and view.last.num_steady:
        return State("STEADYING", "warn", "easy samples")
    if view.is_lr_lowered:
        return State("RECOVERING", "warn", "rate lowered")
    if view.epoch == 0:
        return State("CATALOGUING", "busy", "first look at every sample")
    return State("TRAINING", "good")


def _silence(view: View, scene: Scene) -> float:
    """Seconds since the last event, where that is long; else 0."""
    if scene.now is None or view.last is None:
        return 0.0
    silent = scene.now - view.seconds
    usual = view.pacing.seconds_per_step
    return silent if silent > max(LEAST_STALL_SECONDS, STALL_STEPS * usual) else 0.0
