"""Quarantine: finds bad samples by group tests, and takes them out of the draw.

A good batch clears its samples. A refused batch makes suspects of those that were not cleared, or, where its losses are
those of single samples, of the ones whose own loss is not finite. Suspects are spread over the batches of the next
pass, so that ever fewer of them meet in a refused batch; the only suspect in several refused batches is bad.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import events
from ..events.bus import Announcer
from ..sources.ticket import Ticket
from ..table.losses import Reading
from ..table.records import LARGEST_LOSS
from ..table.storage import SampleStorage

OWN_LOSSES = 2
"""Refused batches in which a sample's own loss was not finite that show that it is bad."""

MOST_CHANCE = 1e-3
"""Largest chance that passing faults alone refused the batches of a sample, among all that were ever suspected."""

MOST_SUSPECTS = 2**16
"""Most samples that are suspected at a time."""

NAMED = 8
"""Most samples that a text names."""


class Quarantine:
    """Suspects the samples of refused batches until a good batch clears them, or they are found bad.

    Args:
        storage: That of the table; holds the quarantined samples.
        announcer: Receives warnings and events.
        most_share: Largest share of the samples in quarantine.

    Attributes:
        counts: In how many refused batches each suspect was; without any `cleared` need not be called.
    """

    def __init__(self, storage: SampleStorage, announcer: Announcer, *, most_share: float = 0.2) -> None:
        self._storage, self._announcer, self._most_share = storage, announcer, most_share
        self.forget()

    def forget(self) -> None:
        """Suspect no sample, and forget passing faults."""
        self.counts: dict[int, int] = {}
        self._num_clean = self._num_clean_refused = self._num_suspected = 0

    @property
    def suspects(self) -> tuple[int, ...]:
        """The samples that are suspected, those in most refused batches first."""
        return tuple(sorted(self.counts, key=lambda sample: (-self.counts[sample], sample)))

    def holds_any(self, indices: NDArray[np.int64]) -> bool:
        """Whether one of these samples, int64[B], was in several refused batches, and in no good one."""
        return any(self.counts.get(sample, 0) > 1 for sample in indices.tolist())

    def refused(self, indices: NDArray[np.int64], accused: Collection[int]) -> None:
        """Note a refused batch.

        Args:
            indices: int64[B], its samples.
            accused: The samples whose own losses were not finite; empty if any of the batch may be the cause.
        """
        if not self._storage.num_samples:
            return
        members = np.unique(indices)
        # Of the user's own batches not all samples may be known.
        members = members[members >= 0]
        if not len(members):
            return
        if accused:
            self.cleared(np.setdiff1d(members, np.fromiter(accused, np.int64)))
            # A batch may hold a sample twice.
            samples = sorted(set(accused))
        else:
            # Those that no good batch has cleared; all of them if there are none.
            was_good = self._storage.records.take(members)["usage_count"] > 0
            samples = members[~was_good | np.isin(members, list(self.counts))].tolist()
            if not samples:
                samples = members.tolist()
                # Otherwise the good ones are not counted either.
                self._num_clean += bool(self.counts)
                self._num_clean_refused += bool(self.counts)
        # A batch that was drawn before may hold samples that are in quarantine by now.
        samples = np.setdiff1d(samples, self._storage.exclusions.quarantined).tolist()
        self._num_suspected += len(set(samples) - self.counts.keys())
        for sample in samples[: MOST_SUSPECTS - len(self.counts)]:
            self.counts[sample] = self.counts.get(sample, 0) + 1
        # Otherwise policies that draw the least used samples first would put the same ones together in every epoch.
        self._storage.exclusions.watch(np.fromiter(self.counts, np.int64))
        if accused:
            bad = [sample for sample in samples if self.counts.get(sample, 0) >= OWN_LOSSES]
        else:
            # The share of batches without any suspect that were refused is that of passing faults.
            rate = (self._num_clean_refused + 1) / (self._num_clean + 20)
            others = max(10, self._num_suspected + self._storage.num_samples - self._storage.num_seen)
            is_bad = len(samples) == 1 and rate ** self.counts.get(samples[0], 0) * others < MOST_CHANCE
            bad = samples if is_bad else []
        if bad:
            self._convict(bad)

    def cleared(self, indices: NDArray[np.int64]) -> None:
        """Note that a batch with these samples, int64[B], was good, which clears them."""
        known = self.counts.keys() & set(indices.tolist())
        for sample in known:
            del self.counts[sample]
        # Of samples never seen before, a refused batch makes suspects, and so would a good one count alone.
        if not known and (self._storage.records.take(indices[indices >= 0])["usage_count"] > 0).all():
            self._num_clean += 1
        if known and not self.counts:
            self._storage.exclusions.watch(np.empty(0, np.int64))

    def _convict(self, found: Collection[int]) -> None:
        room = int(self._most_share * self._storage.num_samples) - len(self._storage.exclusions.quarantined)
        if len(found) > room:
            self._announcer.warn_once(
                "quarantine full",
                f"more than {self._most_share:.0%} of the samples would be in quarantine; no more are excluded. Single "
                "samples do not cause so many refusals: check the data, the loss function and the learning rate.",
            )
        samples = tuple(sorted(found)[: max(0, room)])
        if not samples:
            return
        refusals = max(self.counts.pop(sample) for sample in samples)
        self._storage.exclusions.quarantine(np.array(samples))
        text = f"{self.named(samples)} {'were' if len(samples) > 1 else 'was'} in {refusals} refused batches and in no "
        text += "good one since"
        self._announcer.tell(events.SamplesQuarantined, samples=samples, refusals=refusals, text=text)
        what = "no longer drawn. scheduler.release() brings it back"
        if not self._storage.exclusions.are_left_out:
            what = "your code still draws it, so leave it out there, or give batches() a function skip= that does"
        self._announcer.warn_once(f"quarantine {samples}", f"{text}; {what}.")

    def named(self, samples: Collection[int]) -> str:
        """Text that names the first of some samples."""
        names = ", ".join(repr(self._storage.name_of(sample)) for sample in list(samples)[:NAMED])
        more = f" and {len(samples) - NAMED} more" if len(samples) > NAMED else ""
        return f"sample{'s' * (len(samples) > 1)} {names}{more}"

    def state_dict(self) -> dict[str, Any]:
        """The suspects and what is known of passing faults; the table saves the quarantined samples."""
        return {
            "samples": np.array(list(self.counts), np.int64),
            "counts": np.array(list(self.counts.values()), np.int64),
            "clean": [self._num_clean, self._num_clean_refused, self._num_suspected],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned, after the table was loaded."""
        self.forget()
        if "counts" in state:
            self.counts = dict(zip(state["samples"].tolist(), state["counts"].tolist(), strict=True))
            self._num_clean, self._num_clean_refused, self._num_suspected = state["clean"]


def accused_of(reading: Reading, ticket: Ticket) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    """The samples of a batch that may be the cause of a loss that is not finite: all, or those of the rows with it; and
    those whose own loss is not, none if only means were reported, or if it is most of the batch: with dropout, damaged
    weights spare some of its losses.
    """
    indices, is_bad = ticket.indices, ~(np.abs(np.atleast_1d(reading.means)) <= LARGEST_LOSS)
    counts = getattr(getattr(ticket.chunk, "members", None), "counts", None)
    accused = indices if counts is None or len(is_bad) != len(counts) else indices[np.repeat(is_bad, counts)]
    if len(is_bad) != len(indices) or 2 * is_bad.sum() > len(is_bad):
        return accused, ()
    return accused, tuple(indices[is_bad & (indices >= 0)].tolist())
