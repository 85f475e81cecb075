"""Events: frozen records, the only output of the scheduler. `codec` turns them into strict JSON and back."""

from .event import Event as Event
from .event import Listener as Listener
from .run import *  # noqa: F403
from .samples import *  # noqa: F403
from .steps import *  # noqa: F403
from .trouble import *  # noqa: F403

# A program may have made events of its own before.
EVENTS = {kind.__name__: kind for kind in Event.__subclasses__() if kind.__module__.startswith(f"{__name__}.")}
"""Every kind of event that this version knows, by its name in a journal."""
