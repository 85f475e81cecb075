"""The guard decides whether a loss is learned from or refused."""

from ..table.records import LARGEST_LOSS as LARGEST_LOSS
from .finite import FiniteGuard as FiniteGuard
from .finite import GuardState as GuardState
from .monitor import Sentry as Sentry
from .spike import SpikeGuard as SpikeGuard
from .spike import SpikeState as SpikeState
from .verdict import Guard as Guard
from .verdict import Verdict as Verdict
