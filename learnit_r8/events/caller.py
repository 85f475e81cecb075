"""Warnings that point at the user's own line, not at the line in this package or a framework that noticed."""

from __future__ import annotations

import atexit
import os
import sys
import warnings
import weakref
from types import FrameType
from typing import Any

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep

STANDARD = os.path.dirname(os.__file__) + os.sep
PACKAGES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
"""Where the standard library and installed packages are. To ask sysconfig would import it, at a time when files may not
be opened any more."""


def warn(text: str, category: type[Warning] = RuntimeWarning) -> None:
    """Warn at the innermost line of the user's code.

    That is the innermost frame outside this package, the standard library and installed packages; where there is none,
    as on a thread of a framework, the innermost outside this package.
    """
    outside, here = None, sys._getframe(1)
    frame: FrameType | None = here
    while frame is not None:
        path = frame.f_code.co_filename
        if not path.startswith((PACKAGE, "<frozen")):
            outside = outside or frame
            if not (path.startswith(STANDARD) or any(each in path for each in PACKAGES)):
                break
        frame = frame.f_back
    frame = frame or outside or here
    module, registry = frame.f_globals.get("__name__"), frame.f_globals.setdefault("__warningregistry__", {})
    where = (frame.f_code.co_filename, frame.f_lineno)
    warnings.warn_explicit(text, category, *where, module=module or "<unknown>", registry=registry)


def say_at_exit(loop: Any) -> None:
    """Have a loop say at the end of the program what was wrong with it, as nothing is called after it.

    Args:
        loop: Has ``_warn_at_exit(error)``, which gets the exception that ended the program, or None. It is not kept
            alive.
    """
    held = weakref.ref(loop, lambda _: atexit.unregister(say))

    def say() -> None:
        if (alive := held()) is not None:
            alive._warn_at_exit(getattr(sys, "last_value", None))

    atexit.register(say)
