"""A listener with its own thread, so that the training waits for no file, network or front end."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque

from .condenser import Condenser
from .event import Event


class ThreadedListener:
    """Queues events, steps condensed, and has `handle` called with them on a thread of its own.

    The thread starts with the first event, and again with the first one after `end_thread`. It does not keep the
    listener alive.

    Args:
        thread_name: Name of the thread.
        most_queued: Events that may wait; later ones are lost, and counted.
        every_seconds: Seconds between two calls of `handle`; may be set at any time.

    Attributes:
        num_dropped: Events lost because too many waited, or because the thread did not end in time.
    """

    def __init__(self, thread_name: str, *, most_queued: int, every_seconds: float) -> None:
        self.every_seconds = every_seconds
        self.num_dropped = 0
        self._thread_name, self._most_queued = thread_name, most_queued
        self._condenser = Condenser(self.enqueue)
        self._waiting: deque[Event] = deque()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()

    def handle(self, waiting: deque[Event], *, is_last: bool) -> None:
        """Take events from the queue; on the thread of the listener.

        Args:
            waiting: The queue; the oldest event is on the left.
            is_last: Whether the thread ends afterwards.
        """
        raise NotImplementedError

    def __call__(self, event: Event) -> None:
        """Take in an event; on the training thread."""
        self._condenser(event)

    def enqueue(self, event: Event) -> None:
        """Queue an event whose steps are condensed; on the training thread."""
        # A forked child has a copy of the queue, but no thread.
        if os.getpid() != self._pid:
            return
        if len(self._waiting) >= self._most_queued:
            self.num_dropped += 1
            return
        self._waiting.append(event)
        if self._thread is None:
            self.start_thread()

    def start_thread(self) -> None:
        """Start the thread."""
        self._ending = threading.Event()
        arguments = weakref.ref(self), self._waiting, self._ending
        self._thread = threading.Thread(target=_work, args=arguments, name=self._thread_name, daemon=True)
        self._thread.start()

    def end_thread(self, seconds: float) -> bool:
        """Let the thread handle what is queued and end.

        Args:
            seconds: The longest time to wait for it.

        Returns:
            Whether it has ended; if not, what is still queued is lost.
        """
        thread, self._thread = self._thread, None
        if thread is None:
            return True
        # A thread that hangs keeps its own queue.
        waiting, self._waiting = self._waiting, deque()
        self._ending.set()
        if thread is threading.current_thread():
            # It deletes the listener, or closes it while it handles an event.
            self.handle(waiting, is_last=True)
            return True
        thread.join(seconds)
        while thread.is_alive() and waiting:
            self.num_dropped += 1
            waiting.pop()
        return not thread.is_alive()


def _work(reference: weakref.ref[ThreadedListener], waiting: deque[Event], ending: threading.Event) -> None:
    """Run the loop of the thread until it is told to end or the listener is deleted."""
    is_last = False
    while not is_last and (listener := reference()) is not None:
        pause = listener.every_seconds
        del listener
        is_last = ending.wait(pause)
        if (listener := reference()) is not None:
            listener.handle(waiting, is_last=is_last)
            del listener
