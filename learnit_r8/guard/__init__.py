"""The guard decides whether a loss is learned from or refused."""

from ..table.records import LARGEST_LOSS as LARGEST_LOSS
from .monitor import Sentry as Sentry
from .spike import SpikeGuard as SpikeGuard
from .spike import SpikeState as SpikeState
from .verdict import FiniteGuard as FiniteGuard
from .verdict import Guard as Guard
from .verdict import GuardState as GuardState
from .verdict import Verdict as Verdict
