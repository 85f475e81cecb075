"""The state of a run, in the same word for every view of it, inside the training and from its folder."""

from __future__ import annotations

from typing import NamedTuple

from ...events.text import clean, seconds_text
from .ui_state import Scene
from .view import View

SILENT_SECONDS = 35.0
"""Time without a record after which a run is stalled; a journal writes every ten seconds."""
WAITING_SECONDS = 60.0
BETWEEN_EPOCHS_SECONDS = 600.0
"""Time without a step after which a run is stalled, within an epoch and between two epochs, and at least
`WAITING_FACTOR` times the longest pause so far."""
WAITING_FACTOR = 3.0


class State(NamedTuple):
    """The state of a run.

    Attributes:
        word: "running", "stalled", "died", "diverged", "finished", "finished early", "stopped" or "empty"; on a screen
            in capitals, and a phase in place of "running". It needs no colour.
        detail: A few more words, or "".
        style: Name of the style it is shown in.
    """

    word: str
    detail: str = ""
    style: str = "good"


def state_of(view: View, scene: Scene = Scene()) -> State:
    """The state of a run; of several the worst."""
    if view.gave_up is not None:
        return State("diverged", "everything was tried", "alert")
    if view.died:
        return State("died", clean(view.died), "alert")
    if view.ended is not None:
        return State(view.ended.how, clean(view.ended.early or ""), "good" if view.ended.finished else "warn")
    if view.run is None and view.last is None:
        return State("empty", "no record yet", "busy")
    is_whole = view.progress >= 1 and view.incident is None
    if scene.is_gone and not is_whole:
        return State("died", "the process is gone", "alert")
    if is_whole:
        # In a notebook a run is often left without close(): it trains no more all the same.
        return State("finished", "" if scene.is_gone else "not closed yet")
    if scene.left:
        return State("stopped", clean(scene.left, 60), "warn")
    silent, waited = scene.clock - view.heard, scene.clock - view.stepped
    if silent > SILENT_SECONDS:
        return State("stalled", f"no sign of life for {seconds_text(silent)}", "alert")
    if scene.is_paused or view.is_paused:
        return State("running", "paused", "warn")
    # A validation of unknown length may follow an epoch.
    usual = BETWEEN_EPOCHS_SECONDS if view.is_between_epochs else WAITING_SECONDS
    if waited > max(usual, WAITING_FACTOR * view.longest_pause):
        return State("stalled", f"no step for {seconds_text(waited)}", "alert")
    return State("running")


def shown_state(view: View, scene: Scene) -> State:
    """The state as a screen shows it, with the phase of a run that trains."""
    state = state_of(view, scene)
    if state.word != "running":
        return state._replace(word=state.word.upper())
    if state.detail:
        return State("PAUSED", "", "warn")
    if view.incident is not None:
        return State("RECOVERING", clean(view.incident.reason, 30), "alert")
    if view.is_searching:
        return State("SEARCHING", "learning rate", "busy")
    if view.last is not None and view.last.num_steady:
        return State("STEADYING", "easy samples", "warn")
    if view.is_lr_lowered:
        return State("RECOVERING", "rate lowered", "warn")
    if view.epoch == 0:
        return State("CATALOGUING", "first look at every sample", "busy")
    return State("TRAINING")
