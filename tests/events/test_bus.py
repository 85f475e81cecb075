"""How events reach their listeners."""

import pytest

from learnit_r8 import events
from learnit_r8.events.bus import Announcer
from tests.drive import make, train


def test_listeners_hear_in_order():
    """Every listener hears every event, in the order in which they were given."""
    heard = []
    announcer = Announcer([lambda e: heard.append(("a", e)), lambda e: heard.append(("b", e))], lambda: (3, 1.5))
    announcer.tell(events.BackupTaken)

    assert heard == [("a", events.BackupTaken(3, 1.5)), ("b", events.BackupTaken(3, 1.5))]


def test_raising_listener_is_dropped_with_its_traceback():
    """A listener that raises is dropped with one warning that shows its traceback; the others go on."""

    def broken(event):
        raise KeyError("a bug of the viewer")

    heard = []
    announcer = Announcer([broken, heard.append], lambda: (3, 1.5))
    with pytest.warns(
        RuntimeWarning, match=r"(?s)broken.* raised on BackupTaken and is dropped:.*Traceback.*a bug of the viewer"
    ):
        announcer.tell(events.BackupTaken)
    announcer.tell(events.BackupTaken)

    assert len(heard) == 2


def test_raising_listener_does_not_stop_a_run():
    """A run whose listener raises trains to its end."""

    def broken(event):
        raise KeyError(event)

    r8 = make(listeners=[broken])
    with pytest.warns(RuntimeWarning, match="is dropped"):
        train(r8)

    assert r8.global_step == 6


def test_keyboard_interrupt_passes_through_a_listener():
    """Ctrl-C that happens to arrive inside a listener ends the run."""

    def interrupted(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(make(listeners=[interrupted]))


def test_topic_is_said_once():
    """A warning and a note are sent the first time only; a note does not warn."""
    heard = []
    announcer = Announcer([heard.append], lambda: (3, 1.5))
    with pytest.warns(RuntimeWarning, match="look here"):
        announcer.warn_once("topic", "look here")
    announcer.warn_once("topic", "look here")
    for _ in range(2):
        announcer.note_once("another", "by the way")

    assert heard == [events.Notice(3, 1.5, "look here", is_warning=True), events.Notice(3, 1.5, "by the way", False)]
