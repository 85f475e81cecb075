"""Memory made ready ahead of its first use, so that no step pays for the pages of a large table.

The system hands out pages when they are first written to, two megabytes at a time where it may, and clears them first:
a quarter of a second for ten million samples. The first chunk of a random order lies all over the table, so one step
would wait for nearly all of that. Here a thread asks for the pages from the constructor on. It never writes to them,
because another thread may: Linux has a call that only makes them ready (``MADV_POPULATE_WRITE``, from 5.14 on).
Elsewhere the thread that writes the records touches a little at a time. What is to be written meanwhile waits.
"""

from __future__ import annotations

import sys
import threading
import weakref
from typing import Any

from numpy.typing import NDArray

LEAST_BYTES = 2**22
"""Smaller memory is ready soon enough when it is first written to."""

_HUGE_PAGE = 2**21
_PAGE = 4096
_POPULATE_WRITE = 23
_NO_HUGE_PAGES = 15
_TOUCHED_ROWS = 2**16
"""Rows that are made ready at a time where the system cannot do it in the background: a megabyte."""


class Warming:
    """Makes the rows of an array ready to be written to, from the first to the last.

    Args:
        rows: Fresh zeros, one row a sample, of at least `LEAST_BYTES`.

    Attributes:
        num_ready: So many of the first rows can be written without waiting for pages.
    """

    def __init__(self, rows: NDArray[Any]) -> None:
        self.num_ready = 0
        self._rows = rows
        self._is_refused = False
        self._thread: threading.Thread | None = None
        if sys.platform == "linux":
            self._thread = threading.Thread(
                target=_populate, args=(weakref.ref(self),), name="learnit_r8 memory", daemon=True
            )
            self._thread.start()

    @property
    def is_done(self) -> bool:
        """Whether every row is ready."""
        return self.num_ready == len(self._rows)

    def advance(self, seconds: float) -> None:
        """Let it get on, at most about so long; called by the thread that writes the rows."""
        if self.is_done:
            return
        thread = self._thread
        if thread is not None and thread.is_alive():
            if seconds:
                thread.join(seconds)
        elif thread is None or self._is_refused:
            stop = self.num_ready + _TOUCHED_ROWS
            each = max(1, _PAGE // self._rows.itemsize)
            part = self._rows[self.num_ready : stop : each]
            part[:] = part.copy()
            self.num_ready = min(stop, len(self._rows))
        else:
            # In a forked child the thread is missing, and the pages are shared until they are written to.
            self.num_ready = len(self._rows)

    def _make_ready(self, madvise: Any, start: int, end: int) -> int:
        """Make the pages up to the next large one ready; where it ends."""
        stop = min(end, (start // _HUGE_PAGE + 1) * _HUGE_PAGE)
        if madvise(start, stop - start, _POPULATE_WRITE):
            madvise(start, end - start, _NO_HUGE_PAGES)
            self._is_refused = True
            return end
        rows = self._rows
        done = stop - rows.__array_interface__["data"][0]
        self.num_ready = len(rows) if stop == end else done // rows.itemsize
        return stop


def _populate(reference: weakref.ref[Warming]) -> None:
    """The work of the thread, until it is done or nobody needs the memory any more; it holds no lock."""
    import ctypes

    warming = reference()
    if warming is None:
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    address = warming._rows.__array_interface__["data"][0]
    # Whole pages only; what is left over at both ends is less than two of them.
    at, end = -(-address // _PAGE) * _PAGE, (address + warming._rows.nbytes) // _PAGE * _PAGE
    while warming is not None and at < end:
        at = warming._make_ready(madvise, at, end)
        del warming
        warming = reference()
