"""Refitting: adapts a saved state to another batch size or other samples.

A state that fits is kept unchanged, bit for bit. Otherwise the records of the samples and the position of the run,
counted in samples, are kept, and the rest of the epoch is planned again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..table.exclusions import holds
from ..table.table import SampleTable
from .chunk import OPEN, OUT_AGAIN, WAITING
from .permutation import Permutation
from .planner import NEW_KEY, PASS_KEY
from .source import Source

_TABLE_ARRAYS = ("loss", "last", "mean", "usage_count")


def fit_state(state: Mapping[str, Any], source: Source, remap: ArrayLike | None = None) -> dict[str, Any]:
    """Adapt a saved state to another batch size or other samples; a state that fits is unchanged.

    Args:
        state: A state from `Engine.state_dict`.
        source: The source to fit, and its table.
        remap: int[N], the index that each of the N samples had in the saved run, -1 for new ones; None if the samples
            of the saved run come first, followed by new ones.

    Raises:
        ValueError: there are fewer samples and no ``remap``, ``remap`` is not valid, the first names differ, or a
            learning-rate search is running.
    """
    saved = state["data"]
    table, now = source.table, source.identity()
    if remap is None and all(saved[name] == now[name] for name in ("num_samples", "batch_size", "last_batch")):
        return dict(state)
    if now.get("lengths") is not None or saved.get("lengths") is not None:
        raise ValueError(
            f"num_samples and batch_size must be those of the saved run ({saved['num_samples']}, "
            f"{saved['batch_size']}) where batches are of similar lengths, got {now['num_samples']} and "
            f"{now['batch_size']}."
        )
    if state["search"]["test"] is not None:
        raise ValueError("batch_size and num_samples must not change while auto_find_lr searches; finish it first.")
    was = _positions(saved, table, remap)
    plan_state, step = _dealt_anew(state, source, was)
    evidence = state["table"]["evidence"]
    if evidence is not None:
        evidence = {
            name: _moved(each, was) if isinstance(each, np.ndarray) else each for name, each in evidence.items()
        }
    return {
        **state,
        "data": {**saved, **{name: now[name] for name in ("num_samples", "batch_size", "last_batch", "sample_ids")}},
        "table": {
            **state["table"],
            **{name: _moved(state["table"][name], was) for name in _TABLE_ARRAYS},
            "evidence": evidence,
            "quarantined": np.flatnonzero(holds(np.asarray(state["table"]["quarantined"], np.int64), was)),
        },
        "quarantine": {},
        # Without the witnesses, which are batches of other samples.
        **({"recovery": {**state["recovery"], "witnesses": []}} if "recovery" in state else {}),
        "plan": plan_state,
        "pace": {**state["pace"], "step": step, "probes": [0, 0, step - step % source.steps_per_pass, 0]},
    }


def _positions(saved: Mapping[str, Any], table: SampleTable, remap: ArrayLike | None) -> NDArray[np.int64]:
    """int64[N], the index of each sample in the saved run, -1 for new ones."""
    size, before = table.num_samples, saved["num_samples"]
    if remap is not None:
        was = np.asarray(remap)
        in_range = was.dtype.kind in "iu" and was.shape == (size,) and was.min() >= -1 and was.max() < before
        if not in_range or np.bincount(was[was >= 0], minlength=1).max() > 1:
            raise ValueError(
                f"remap must be {size} distinct indices in [0, {before}) or -1 for new samples, got {remap!r}."
            )
        return was.astype(np.int64)
    if size < before:
        raise ValueError(
            f"num_samples must be at least that of the saved run ({before}) unless remap says which of its samples "
            f"these are, got {size}."
        )
    if saved["sample_ids"] is not None and table.storage.digest(before) != saved["sample_ids"]:
        raise ValueError(
            f"sample_ids must begin with the {before} names of the saved run, got others; pass remap to say which "
            "sample is which."
        )
    was = np.arange(size)
    was[before:] = -1
    return was


def _moved(values: NDArray[Any], was: NDArray[np.int64]) -> NDArray[Any]:
    """The values of each sample in the saved run; zeros for new ones, as for unseen samples."""
    is_known = (was >= 0).reshape(-1, *[1] * (values.ndim - 1))
    return np.where(is_known, values[was], values.dtype.type(0))


def _dealt_anew(state: Mapping[str, Any], source: Source, was: NDArray[np.int64]) -> tuple[dict[str, Any], int]:
    """The state of a plan that draws the rest of the epoch in new batches, and the step at which it starts."""
    saved, pace, data = state["plan"], state["pace"], state["data"]
    size, batch = data["num_samples"], data["batch_size"]
    steps_before = size // batch if data["last_batch"] == "drop" else -(-size // batch)
    progress, pass_number, _, *rest_of_context = saved["context"]
    _, left_out, *_ = pace.get("probes", (0, 0))
    epoch, position = divmod(pace["step"] + left_out, steps_before)
    rest = np.empty(0, np.int64)
    steps = source.steps_per_pass
    # Batches of the next epoch may be drawn already: that epoch starts again.
    pass_number = min(pass_number, epoch)
    if pass_number == epoch:
        rest = _rest(saved, state["seed"], size, epoch)
        # Steady batches have replaced some of them.
        share = min(1.0, (steps_before - position) * batch / max(1, len(rest)))
        now = np.full(size, -1)
        now[was[was >= 0]] = np.flatnonzero(was >= 0)
        # Their present indices, without those that there are no more.
        rest = now[rest[: math.ceil(share * len(rest))]]
        rest = rest[rest >= 0]
        fresh = np.flatnonzero(was < 0)
        rng = np.random.default_rng([state["seed"], NEW_KEY, saved["num_sweeps"]])
        rest = np.concatenate([rest, rng.permutation(fresh)])
        full = source.table.batch_size
        left = len(rest) // full if source.identity()["last_batch"] == "drop" else -(-len(rest) // full)
        drawn = steps - min(steps, left)
    else:
        drawn = steps if pass_number >= 0 else 0
    step = (pass_number if pass_number >= 0 else 0) * steps + drawn
    anew = {
        **saved,
        "context": [progress, pass_number, source.table.batch_size, *rest_of_context],
        "sweep": {"rank": 0, "indices": np.empty(0, np.int64), "weights": None, "order": rest},
        "drawn_before": drawn,
        "limit": 0,
        "chunks": [],
        "current": -1,
        "returned": [],
        "waiting": [],
    }
    return anew, step


def _rest(saved: Mapping[str, Any], seed: int, size: int, epoch: int) -> NDArray[np.int64]:
    """int64[M], the samples of the pass that were not reported, in the order in which they would have been drawn."""
    parts = []
    for chunk in saved["chunks"]:
        if chunk["pass_number"] == epoch:
            states = np.asarray(chunk["states"])
            is_left = (states == OPEN) | (states == WAITING) | (states == OUT_AGAIN)
            parts.append(np.asarray(chunk["members"])[np.repeat(is_left, chunk["sizes"])])
    sweep = saved["sweep"]
    if saved["context"][1] == epoch:
        parts.append(np.asarray(sweep["indices"]))
        order = sweep["order"]
        if order is None:
            order = Permutation(size, [seed, PASS_KEY, max(0, saved["num_sweeps"])])(0, size)
        parts.append(np.asarray(order)[sweep["rank"] :])
    # A sample occurs twice if the policy has swept over the data again.
    rest = np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64)
    first = np.empty(size, np.int64)
    # Of several writes to one position the last one stays: in reverse order, that is the first place.
    first[rest[::-1]] = np.arange(len(rest))[::-1]
    once: NDArray[np.int64] = rest[first[rest] == np.arange(len(rest))]
    return once
