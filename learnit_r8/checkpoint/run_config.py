"""The configuration of a run, as its checkpoints keep it: compared, and built from again."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import inspect
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from .._validation import whole_number
from ..guard.finite import FiniteGuard
from ..guard.spike import SpikeGuard
from ..sampling.permutation import MAX_SAMPLES

GOAL = ("num_epochs", "num_steps", "train_duration_seconds")
"""Budgets; a new one takes the place of whichever there was."""

SAID = ("batch_size", "num_samples", "initial_lr", "scheduler_mode", "warmup_proportion", "min_lr", *GOAL)
"""Configuration that may well be another after a resume, which is noted."""

IDENTITY = ("policy", "groups", "guard", "recovery", "estimator", "alpha", "last_batch")
"""Configuration that a resumed run should share with the saved one; another one is warned of."""

_KEPT = (
    *SAID, *IDENTITY, "seed", "backup_every", "checkpoint_every", "keep_checkpoints", "monitor", "mode", "name",
    "handle_signals",
)  # fmt: skip


def config_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """How a run is built, for its checkpoints.

    Args:
        arguments: Those of `R8Scheduler`, by name.

    Returns:
        Plain values as they are; of anything else ``{"is": text}`` that tells it from another one.
    """
    return {name: _described(name, arguments[name]) for name in _KEPT if name in arguments}


def _described(name: str, value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if name == "groups":
        labels = np.asarray(value)
        content = labels.tobytes() if labels.dtype.kind in "biufSU" else repr(labels.tolist()).encode()
        return {"is": f"{len(labels)} labels with the digest {hashlib.sha256(content).hexdigest()[:16]}"}
    # The address in the text of a function is another one in every process.
    return {"is": getattr(value, "__qualname__", None) or re.sub(r" at 0x[0-9a-f]+", "", repr(value))}


def differences(saved: Mapping[str, Any], now: Mapping[str, Any], names: tuple[str, ...]) -> list[str]:
    """What is configured otherwise now than in a saved run, one text each.

    Args:
        saved: As `config_of` gave it; what it does not know is passed over.
        now: Likewise.
        names: What to look at.
    """
    return [
        f"{name} is {_text(now.get(name))}, it was {_text(saved[name])}"
        for name in names
        if name in saved and not _is_same(saved[name], now.get(name))
    ]


def _is_same(one: Any, other: Any) -> bool:
    """Whether two values of `config_of` stand for the same; settings that a version did not know count as default."""
    if isinstance(one, dict) and isinstance(other, dict):
        return _without_defaults(_text(one)) == _without_defaults(_text(other))
    return bool(one == other)


def _without_defaults(text: str) -> str:
    """The text of a guard or a recovery without the settings that are as by default; any other text as it is."""
    try:
        call = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return text
    # A checkpoint needs no recovery to be read: only to be compared with a run that has one.
    from ..recovery.policy import Recovery

    configured = {kind.__name__: kind for kind in (Recovery, SpikeGuard, FiniteGuard)}
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in configured):
        return text
    defaults = {field.name: repr(field.default) for field in dataclasses.fields(configured[call.func.id])}
    given = {keyword.arg or "": ast.unparse(keyword.value) for keyword in call.keywords}
    others = [f"{name}={value}" for name, value in given.items() if defaults.get(name) != value]
    return f"{call.func.id}({', '.join(others)})"


def _text(value: Any) -> str:
    return str(value["is"]) if isinstance(value, dict) and "is" in value else repr(value)


def arguments_of(config: Mapping[str, Any], new: Mapping[str, Any], make: Any) -> dict[str, Any]:
    """Arguments that build the run of a checkpoint again.

    Args:
        config: As `config_of` gave it.
        new: What is to be otherwise.
        make: The class to build, for its defaults.

    Raises:
        ValueError: something that a file cannot hold was not the default, and is not given again; or a new batch size
            is none.
    """
    if not config:
        raise ValueError("the checkpoint must say how its run was built, got none; use load_checkpoint() instead.")
    defaults = {name: parameter.default for name, parameter in inspect.signature(make).parameters.items()}
    arguments = {}
    for name, value in config.items():
        if name in new or name not in defaults or _is_same(value, _described(name, defaults[name])):
            continue
        if isinstance(value, dict):
            raise ValueError(f"{name} must be given again, a file cannot hold it: it was {_text(value)}.")
        arguments[name] = value
    if any(name in new for name in GOAL):
        for name in GOAL:
            arguments.pop(name, None)
    elif "num_steps" in arguments and "batch_size" in new:
        # As many samples as before.
        batch_size = whole_number("batch_size", new["batch_size"], least=1, most=MAX_SAMPLES)
        arguments["num_steps"] = math.ceil(arguments["num_steps"] * config["batch_size"] / batch_size)
    return {**arguments, **new}
