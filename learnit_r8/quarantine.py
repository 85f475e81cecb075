"""The quarantine: finds the samples that refused losses have in common, and leaves them out from then on.

A bad sample is refused whenever it comes, with whatever batch it is in. With losses of single samples it is known at
once; with means, and where batch normalisation spoils the whole batch, it is the one that every refused batch has in
common and no good one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import events
from .announcer import Announcer
from .table import SampleTable

MOST_CHANCE = 1e-3
"""Samples are quarantined when the chance that so many refusals share one of them by accident is below this."""

MOST_SHARE = 0.05
"""Share of the data beyond which nothing is quarantined any more: then it is not the samples."""

MOST_SUSPECTS = 2**16
"""Samples that are watched at most."""

MOST_DOUBTS = 16
"""Refusals that are taken for those of a sample though they may share it by accident, until all suspects are clear."""

MOST_BATCHES = 64
"""Refused batches that are known again, at most."""

NAMED = 8
"""Samples that a text names at most."""


class Witnesses(NamedTuple):
    """What speaks against a sample.

    Attributes:
        refusals: Refused batches with it in a row, drawn separately; none with it was good since the first.
        log_overlap: Log of the number of samples that the first refusal accused, and of the share of its batch that
            each of the others did.
    """

    refusals: int
    log_overlap: float

    def log_chance(self, rate: float) -> float:
        """Log of the chance that refusals at a rate per step, of random batches, would all have hit such a sample."""
        return self.log_overlap + (self.refusals - 1) * math.log(rate)


class Quarantine:
    """Watches the samples of refused batches until a good batch clears them, or enough refusals share them.

    Args:
        table: Keeps the samples that were quarantined.
        announcer: Who is told.

    Attributes:
        is_watching: Whether any sample is suspected; else `cleared` need not be called.
        has_repeated: Whether the batch refused last shares a sample with those before.
    """

    def __init__(self, table: SampleTable, announcer: Announcer) -> None:
        self._table = table
        self._announcer = announcer
        self._forget()

    def _forget(self) -> None:
        self.is_watching = self.has_repeated = False
        self._suspects: dict[int, Witnesses] = {}
        self._batches: list[str] = []
        self._first_step = 0
        self._num_refusals = self._num_doubts = 0
        if len(self._table.watched):
            self._table.watch(np.empty(0, np.int64))

    def refused(self, indices: NDArray[np.int64], accused: Collection[int], step: int) -> float:
        """Note a refused batch.

        Args:
            indices: int64[B], its samples.
            accused: Those whose own losses were the reason; empty where it may be any of them.
            step: Steps reported, this one included.

        Returns:
            The chance that the refused batches share a sample by accident, 0 if one of this batch is in quarantine;
            infinite if this one shares none with those before.
        """
        members = np.unique(indices)
        digest = hashlib.blake2b(members.tobytes(), digest_size=8).hexdigest()
        if self._table.is_quarantined(members).any():
            self.has_repeated = True
            return 0.0
        if digest in self._batches:
            # Drawn again after a resume, it is no second witness.
            return math.inf
        if not self._suspects or len(self._suspects) > MOST_SUSPECTS:
            self._forget()
            self._first_step = step
        self._batches = [*self._batches, digest][-MOST_BATCHES:]
        self._num_refusals += 1
        if accused:
            self.cleared(np.setdiff1d(members, np.fromiter(accused, np.int64)))
        samples = sorted(accused) if accused else members.tolist()
        share = math.log(len(samples) / len(members))
        shared = []
        for sample in samples:
            known = self._suspects.get(sample)
            if known is None:
                self._suspects[sample] = Witnesses(1, math.log(len(samples)))
            else:
                self._suspects[sample] = Witnesses(known.refusals + 1, known.log_overlap + share)
                shared.append(self._suspects[sample])
        self.is_watching = True
        # Those that are least used come first: without a word the same samples would meet again in every epoch.
        self._table.watch(np.fromiter(self._suspects, np.int64))
        rate = self._rate(step)
        self.has_repeated = bool(shared)
        return math.exp(min(700.0, min(each.log_chance(rate) for each in shared))) if shared else math.inf

    def takes_benefit_of_doubt(self) -> bool:
        """Whether refusals that may share a sample by accident are taken for its own: up to 16, until all are clear."""
        self._num_doubts += 1
        return self._num_doubts <= MOST_DOUBTS

    def _rate(self, step: int) -> float:
        """Refusals a step since the first one, which is not counted."""
        return min(1.0, max(1, self._num_refusals - 1) / max(1, step - self._first_step))

    def cleared(self, indices: NDArray[np.int64]) -> None:
        """Note that a batch with these samples, int64[B], was good: it is none of them."""
        suspects = self._suspects
        for sample in suspects.keys() & set(indices.tolist()):
            del suspects[sample]
        if not suspects:
            self._forget()

    def convict(self, step: int) -> tuple[tuple[int, ...], int]:
        """Quarantine the samples against which enough speaks.

        Args:
            step: Steps reported.

        Returns:
            Their positions, empty if there are none, and how many refused batches each of them was in.
        """
        rate = self._rate(step)
        found = {
            sample: witnesses
            for sample, witnesses in self._suspects.items()
            if witnesses.refusals > 1 and witnesses.log_chance(rate) < math.log(MOST_CHANCE)
        }
        if not found:
            return (), 0
        room = math.floor(MOST_SHARE * self._table.num_samples) - len(self._table.quarantined)
        if len(found) > room:
            self._announcer.warn_once(
                "quarantine full",
                f"more than {MOST_SHARE:.0%} of the samples would be in quarantine; no more are left out. So many bad "
                "samples are not a matter of single ones: look at the data, the loss function and the learning rate.",
            )
            return (), 0
        samples = tuple(sorted(found))
        self._table.quarantine(np.array(samples))
        refusals = min(witnesses.refusals for witnesses in found.values())
        text = f"{self.named(samples)} {_was(samples)} in each of {refusals} refused batches and in no good one since"
        self._announcer.tell(events.SamplesQuarantined, samples=samples, refusals=refusals, text=text)
        self._announcer.warn_once(f"quarantine {samples}", f"{text}; not drawn any more. Take it back with release().")
        for sample in samples:
            del self._suspects[sample]
        if not self._suspects:
            self._forget()
        return samples, refusals

    def named(self, samples: Collection[int]) -> str:
        """Some samples as people call them."""
        names = ", ".join(repr(self._table.name_of(sample)) for sample in list(samples)[:NAMED])
        more = f" and {len(samples) - NAMED} more" if len(samples) > NAMED else ""
        return f"sample{'s' * (len(samples) > 1)} {names}{more}"

    def state_dict(self) -> dict[str, Any]:
        """The suspects and what speaks against them; the samples in quarantine are the table's."""
        suspects = self._suspects
        return {
            "samples": np.array(list(suspects), np.int64),
            "counts": np.array([witnesses.refusals for witnesses in suspects.values()], np.int64),
            "log_overlaps": np.array([witnesses.log_overlap for witnesses in suspects.values()], np.float64),
            "batches": list(self._batches),
            "first_step": self._first_step,
            "num_refusals": self._num_refusals,
            "num_doubts": self._num_doubts,
        }

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Take over what `state_dict` returned, once the table was loaded; None suspects nobody."""
        if state is None:
            self._forget()
            return
        columns = (np.asarray(state[name]).tolist() for name in ("samples", "counts", "log_overlaps"))
        self._suspects = {
            int(sample): Witnesses(int(count), float(overlap)) for sample, count, overlap in zip(*columns, strict=True)
        }
        self._batches = list(state["batches"])
        self._first_step, self._num_refusals = int(state["first_step"]), int(state["num_refusals"])
        self._num_doubts = int(state["num_doubts"])
        self.is_watching = bool(self._suspects)


def _was(samples: Collection[int]) -> str:
    return "were" if len(samples) > 1 else "was"
