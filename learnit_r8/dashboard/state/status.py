"""The state of a run in one word."""

from __future__ import annotations

from typing import NamedTuple

from ..text import clean
from .ui_state import Scene
from .view import View

LEAST_STALL_SECONDS = 60.0
STALL_STEPS = 30
"""A step that takes this many times the usual time, and at least a minute, is a stall."""


class State(NamedTuple):
    """The state of a run.

    Attributes:
        word: In capitals; it needs no colour.
        style: Name of the style it is shown in.
        detail: A few more words, or "".
    """

    word: str
    style: str
    detail: str = ""


def state_of(view: View, scene: Scene) -> State:
    """The state of a run; of several the worst."""
    if view.gave_up is not None:
        return State("DIVERGED", "alert", "everything was tried")
    if view.ended is not None and view.ended.finished:
        early = view.ended.early
        return State("FINISHED", "good") if early is None else State("FINISHED EARLY", "good", clean(early, 60))
    if view.died:
        return State("DIED", "alert", clean(view.died, 60))
    if view.ended is not None:
        return State("STOPPED", "warn")
    if scene.link == "died":
        return State("DIED", "alert", "the process is gone")
    if view.run is None:
        return State("WAITING", "busy") if scene.link != "empty" else State("EMPTY", "busy", "no record yet")
    if view.progress >= 1 and view.incident is None:
        # In a notebook a run is often left without close(): it trains no more all the same.
        return State("FINISHED", "good", "not closed yet")
    if scene.left:
        return State("STOPPED", "warn", clean(scene.left, 60))
    if scene.is_paused or view.is_paused:
        return State("PAUSED", "warn")
    if scene.link.startswith("stalled"):
        return State("STALLED", "alert", clean(scene.link.removeprefix("stalled").strip(), 30))
    # Who follows a folder has asked it, which allows more between two epochs.
    if scene.now is not None and view.last is not None and not scene.link:
        silent = scene.now - view.seconds
        if silent > max(LEAST_STALL_SECONDS, STALL_STEPS * view.pacing.seconds_per_step):
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
