"""The listener with a thread of its own."""

import gc
import os
import threading
import weakref

import pytest

from learnit_r8.events.threaded_listener import ThreadedListener
from tests.dashboard.state.told import start, steps


class Recording(ThreadedListener):
    """Keeps what it is given; waits at a gate where there is one."""

    def __init__(self, *, most_queued=100, gate=None):
        super().__init__("recording", most_queued=most_queued, every_seconds=0.01)
        self.seen, self.threads, self.num_last, self.gate = [], set(), 0, gate

    def handle(self, waiting, *, is_last):
        self.threads.add(threading.current_thread())
        self.num_last += is_last
        while waiting:
            self.seen.append(waiting.popleft())
            if self.gate is not None:
                self.gate.wait(60)


def test_events_are_handled_in_order_by_one_thread_after_another():
    """Every event is handled once, by a thread of the listener's; after the end a further event starts another."""
    listener = Recording()
    happened = [start(), *(steps(step, float(step)) for step in range(1, 50))]
    for event in happened:
        listener(event)
    assert listener.end_thread(10.0)
    listener(start())
    assert listener.end_thread(10.0)

    assert listener.seen == [*happened, start()]
    assert len(listener.threads) == listener.num_last == 2
    assert threading.main_thread() not in listener.threads


def test_thread_that_hangs_loses_what_is_queued():
    """The end waits for a bounded time; what is queued then is lost, and counted, and the next thread starts anew."""
    gate = threading.Event()
    listener = Recording(gate=gate)
    for step in range(1, 6):
        listener(steps(step, float(step)))
    while not listener.seen:
        pass
    ended = listener.end_thread(0.05)
    (hanging,) = listener.threads
    gate.set()
    hanging.join(10)

    assert (ended, listener.num_dropped) == (False, 4)
    assert [event.step for event in listener.seen] == [1]


def test_full_queue_loses_the_newest():
    """More events than fit are lost and counted; those that came first are handled."""
    gate = threading.Event()
    listener = Recording(most_queued=3, gate=gate)
    listener(start())
    while not listener.seen:
        pass
    for step in range(1, 6):
        listener(steps(step, float(step)))
    gate.set()
    listener.end_thread(10.0)

    assert [event.step for event in listener.seen] == [0, 1, 2, 3]
    assert listener.num_dropped == 2


def test_thread_keeps_no_listener_alive():
    """A listener that nobody holds any more is deleted, and its thread ends."""
    listener = Recording()
    listener(start())
    thread, reference = listener._thread, weakref.ref(listener)
    del listener
    gc.collect()
    thread.join(10)

    assert not thread.is_alive()
    assert reference() is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forked_child_queues_nothing():
    """In a forked child, which has no thread, events are not queued."""
    listener = Recording()
    listener(start())
    child = os.fork()
    if not child:
        listener._waiting.clear()
        listener(start())
        os._exit(len(listener._waiting))
    listener.end_thread(10.0)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
