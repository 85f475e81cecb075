"""Memory warming: allocates the pages of a large table in the background, so that no step waits for them.

The operating system allocates and clears pages when they are first written to, up to two megabytes at a time: a quarter
of a second for ten million samples. The first chunk of a random order touches the whole table, so one step would wait
for nearly all of that. Here a thread requests the pages as soon as the table exists. It never writes to them, as
another thread may: it uses a Linux call that only allocates pages (``MADV_POPULATE_WRITE``, from 5.14 on). On other
systems the thread that writes records touches a few pages at a time. Writes to pages that are not ready are queued.
"""

from __future__ import annotations

import sys
import threading
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST_BYTES = 2**22
"""Smaller tables are not warmed: allocating their pages at the first write is fast enough."""

_ROOM, _LARGEST_KEPT = 2**24, 2**23
"""Bytes that an allocator keeps ready, and the largest block that it takes from them."""

_HUGE_PAGE = 2**21
_PAGE = 4096
_POPULATE_WRITE = 23
_NO_HUGE_PAGES = 15
_TOUCHED_ROWS = 2**16
"""Rows to touch at a time on systems that cannot allocate in the background: a megabyte."""


def keep_room(num_bytes: int) -> None:
    """Have the allocator keep freed memory of this process rather than give it back and ask for it again.

    Planning a chunk takes some 200 KB a dozen times and frees them. The GNU allocator maps and unmaps pages for each,
    which takes longer than sorting them does, until a larger block was freed once; and while the system makes a table's
    memory ready, whoever asks it for more must wait. The memory is not touched, and other allocators take no notice.

    Args:
        num_bytes: Room to keep, beside the table; less is kept where this is less than `_ROOM`.
    """
    np.empty(min(num_bytes, _LARGEST_KEPT), np.uint8)
    if num_bytes >= _ROOM:
        blocks = [np.empty(_ROOM // 16, np.uint8) for _ in range(16)]
        del blocks


class Warming:
    """Allocates the pages of an array, from the first row to the last.

    Args:
        rows: Fresh zeros, one row per sample, of at least `LEAST_BYTES`.

    Attributes:
        num_ready: Number of first rows that can be written without waiting for pages.
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
        """Continue for at most about so many seconds; called by the thread that writes the rows."""
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
            # In a forked child there is no such thread, and pages are shared until they are written to.
            self.num_ready = len(self._rows)

    def _make_ready(self, madvise: Any, start: int, end: int) -> int:
        """Allocate the pages up to the next huge page; returns the address reached."""
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
    """The thread's function, which ends when all is allocated or the table is gone; it holds no lock."""
    import ctypes

    warming = reference()
    if warming is None:
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    address = warming._rows.__array_interface__["data"][0]
    # Whole pages only; the rest at both ends is less than two pages.
    at, end = -(-address // _PAGE) * _PAGE, (address + warming._rows.nbytes) // _PAGE * _PAGE
    while warming is not None and at < end:
        at = warming._make_ready(madvise, at, end)
        del warming
        warming = reference()
