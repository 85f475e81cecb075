"""Streams: training as an iterable of events, and small stages to pipe it through.

>>> history = pipe([{"loss": 4.0}, {"loss": 2.0}, {"loss": 1.0}], ema("loss", decay=0.5), take(2))
>>> [round(event["loss_ema"], 2) for event in history]
[4.0, 2.67]
"""

from .sinks import collect, collect_jsonl, collect_pd, print_keys
from .sources import epoch_stream, iter_batches, step_stream, validation_loss
from .stages import Best, Event, Stage, augment, best, early_stop, ema, pipe, take, tap, tick

__all__ = [
    "Best",
    "Event",
    "Stage",
    "augment",
    "best",
    "collect",
    "collect_jsonl",
    "collect_pd",
    "early_stop",
    "ema",
    "epoch_stream",
    "iter_batches",
    "pipe",
    "print_keys",
    "step_stream",
    "take",
    "tap",
    "tick",
    "validation_loss",
]
