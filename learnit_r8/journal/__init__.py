"""The run folder: the record of a run on disk, written beside the training, readable at any time.

    run.json            name, configuration, processes and versions
    events.jsonl        every event; steps condensed to a few records a second
    samples-<epoch>.npz losses and uses of every sample
    output.log          the text that the run printed, where the screen captured it

``docs/files.md`` describes the formats for other programs.
"""

from .factory import open_journal as open_journal
from .reader import Record as Record
from .run import Run as Run
from .run import UnreadableRun as UnreadableRun
from .run import find_run as find_run
from .writer import Journal as Journal
