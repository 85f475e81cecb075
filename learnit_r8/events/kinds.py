"""Every kind of event, and the kinds by name."""

from .event import Event
from .run import *  # noqa: F403  # noqa: F403
from .samples import *  # noqa: F403
from .steps import *  # noqa: F403
from .trouble import *  # noqa: F403

# A program may have made events of its own before.
EVENTS = {kind.__name__: kind for kind in Event.__subclasses__() if kind.__module__.startswith(f"{__package__}.")}
"""Every kind of event that this version knows, by its name in a journal."""
