"""What the name of a metric says: which data it was measured on, and which it belongs with."""

from __future__ import annotations

import re
from collections.abc import Iterable

TRAINING = frozenset(("train", "training"))
HELD_OUT = frozenset(("val", "valid", "validation", "eval", "test", "dev"))

_WORD = re.compile(r"[/_.\- ]+")


def stem_of(name: str) -> str:
    """The name without the words that say which data it was measured on.

    >>> stem_of("val_loss"), stem_of("train/loss"), stem_of("test")
    ('loss', 'loss', 'test')
    """
    words = [word for word in _WORD.split(name) if word.lower() not in TRAINING | HELD_OUT]
    return "_".join(words) if words else name


def is_held_out(name: str) -> bool:
    """Whether it was measured on data that was not trained on."""
    return any(word in HELD_OUT for word in _WORD.split(name.lower()))


def grouped(names: Iterable[str]) -> dict[str, list[str]]:
    """Metrics that belong over each other, by their stem: those of the training first.

    >>> grouped(["val_loss", "accuracy", "train_loss"])
    {'loss': ['train_loss', 'val_loss'], 'accuracy': ['accuracy']}
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(stem_of(name), []).append(name)
    return {stem: sorted(members, key=is_held_out) for stem, members in groups.items()}
