"""The versions of what a run depends on."""

from __future__ import annotations

import platform
import sys

FRAMEWORKS = ("torch", "tensorflow", "keras", "jax", "flax", "optax")
"""Their versions are told if they are loaded."""


def versions() -> dict[str, str]:
    """Versions of the package, of Python and numpy, and of the frameworks that are loaded now."""
    found = {"python": platform.python_version()}
    for name in (__name__.partition(".")[0], "numpy", *FRAMEWORKS):
        version = getattr(sys.modules.get(name), "__version__", None)
        if version is not None:
            found[name] = str(version)
    return found
