"""Batch policies: which samples come next. They are immutable and keep no state; the data comes with each chunk.

A policy is a *selection* (which samples of a chunk to visit in this pass) and an *arrangement* (how they are combined
into batches). A chunk is a uniform random part of the data, about 25,000 samples, in random order. To write a policy,
subclass `Policy` and override `select`, `arrange` or both; ``docs/policies.md`` has an example.
"""

from .balanced import Balanced as Balanced
from .balanced import EvenGroups as EvenGroups
from .balanced import Quartile as Quartile
from .balanced import Shuffle as Shuffle
from .balanced import Steady as Steady
from .base import Candidates as Candidates
from .base import Context as Context
from .base import Outlook as Outlook
from .base import Policy as Policy
from .focus import Focus as Focus
from .registry import POLICIES as POLICIES
from .registry import SHUFFLE as SHUFFLE
from .registry import STEADY as STEADY
from .registry import even_groups as even_groups
from .registry import get_policy as get_policy
