"""The run folder: what happened in a run, on disk; written beside the training, read by anyone at any time.

    run.json            what was run, where, by which process, with which versions
    events.jsonl        every event; steps summed up to a few records a second
    samples-<epoch>.npz what was known of every sample
    output.log          what the run printed, where the screen captured it

``docs/files.md`` describes the formats for other programs.
"""

from .opening import open_journal as open_journal
from .reading import Record as Record
from .run import Run as Run
from .run import UnreadableRun as UnreadableRun
from .run import find_run as find_run
from .writing import Journal as Journal
