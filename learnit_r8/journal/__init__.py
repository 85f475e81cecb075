"""The run folder: the record of a run on disk, written beside the training, readable at any time.

    run.json            name, configuration, processes and versions
    events.jsonl        every event; steps condensed to a few records a second
    samples-<epoch>.safetensors losses and uses of every sample
    output.log          the text that the run printed, where the screen captured it

``docs/files.md`` describes the formats for other programs. Nothing is imported here: who looks at a run in a terminal
does not load what writes one.
"""
