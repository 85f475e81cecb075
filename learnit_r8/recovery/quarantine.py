"""The quarantine: finds the samples that refused batches have in common, and excludes them from then on.

Every batch with a bad sample is refused. Per-sample losses identify it at once. With batch means, or if batch
normalization spreads its effect over the whole batch, it is the sample that is in every refused batch and in no good
one.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import events
from ..events.bus import Announcer
from ..table.table import SampleTable

MOST_CHANCE = 1e-3
"""Samples are quarantined if the probability that their refusals share them by chance is below this."""

LIKELY, MOST_CHANCE_OF_SPIKES = 0.5, 0.05
"""A refusal is blamed on a sample if the chance is below this: for a loss that is not finite, and for a spike."""

MOST_SHARE = 0.05
"""Largest share of the data in quarantine; with more, single samples are not the cause."""

MOST_SUSPECTS = 2**16
"""Most samples that are watched."""

MOST_DOUBTS = 16
"""Most refusals that are blamed on a sample although chance may explain them, until all suspects are cleared."""

MOST_BATCHES = 64
"""Most refused batches that are recognized when they are drawn again."""

NAMED = 8
"""Most samples that a text names."""


class Evidence(NamedTuple):
    """The evidence against a sample: refused batches that it was in, with no good one since the first.

    Attributes:
        batches: Their numbers.
        log_shares: For the first batch, log of the number of samples it accused; for each other one, log of the share
            of its samples that it accused.
    """

    batches: tuple[int, ...]
    log_shares: tuple[float, ...]

    def log_chance(self, rate: float) -> float:
        """Log probability that all these batches contain one sample by chance, if batches are refused at this rate."""
        return sum(self.log_shares) + (len(self.batches) - 1) * math.log(rate)

    def without(self, explained: Collection[int]) -> Evidence:
        """The evidence that remains if some of the batches were refused because of another sample."""
        kept = [place for place, batch in enumerate(self.batches) if batch not in explained]
        return Evidence(tuple(self.batches[place] for place in kept), tuple(self.log_shares[place] for place in kept))


class Quarantine:
    """Watches the samples of refused batches until a good batch clears them, or enough refused ones share them.

    Args:
        table: Stores the quarantined samples.
        announcer: Receives warnings and events.

    Attributes:
        is_watching: Whether any sample is suspected; otherwise `cleared` need not be called.
        has_repeated: Whether the last refused batch shares a suspect with earlier ones.
    """

    def __init__(self, table: SampleTable, announcer: Announcer) -> None:
        self._table = table
        self._announcer = announcer
        self._forget()

    def _forget(self) -> None:
        self.is_watching = self.has_repeated = False
        self._suspects: dict[int, Evidence] = {}
        self._batches: list[str] = []
        self._first_step = 0
        self._num_refusals = self._num_doubts = 0
        if len(self._table.storage.exclusions.watched):
            self._table.storage.exclusions.watch(np.empty(0, np.int64))

    def refused(self, indices: NDArray[np.int64], accused: Collection[int], step: int, *, epoch: int = 0) -> float:
        """Note a refused batch.

        Args:
            indices: int64[B], its samples.
            accused: The samples whose own losses were not finite; empty if any of the batch may be the cause.
            step: Steps reported, including this one.
            epoch: Its epoch; an equal batch of the same epoch was drawn again after a resume and does not count.

        Returns:
            The probability that the refused batches share a sample by chance: 0 if the batch has a quarantined sample,
            infinite if it shares no suspect with earlier ones.
        """
        members = np.unique(indices)
        digest = hashlib.blake2b(members.tobytes(), digest_size=8).hexdigest() + f" {epoch}"
        if self._table.storage.exclusions.holds(members).any():
            self.has_repeated = True
            return 0.0
        if digest in self._batches:
            # Drawn again after a resume, it is no new evidence.
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
                self._suspects[sample] = Evidence((self._num_refusals,), (math.log(len(samples)),))
            else:
                batches, log_shares = known
                known = Evidence((*batches, self._num_refusals), (*log_shares, share))
                self._suspects[sample] = known
                shared.append(known)
        self.is_watching = True
        # Otherwise policies that draw the least used samples first would put the same ones together in every epoch.
        self._table.storage.exclusions.watch(np.fromiter(self._suspects, np.int64))
        rate = self._rate(step)
        self.has_repeated = bool(shared)
        return math.exp(min(700.0, min(each.log_chance(rate) for each in shared))) if shared else math.inf

    def explains(self, chance: float, *, is_finite: bool, is_on_time: bool) -> bool:
        """Whether the last refused batch is blamed on a bad sample.

        Args:
            chance: The chance that `refused` returned.
            is_finite: Whether its loss was finite.
            is_on_time: Whether damage in the restored weights would show again at about this time.
        """
        if is_on_time:
            return chance < MOST_CHANCE
        if is_finite:
            # Damaged weights that cause occasional spikes may seem to depend on the batch.
            return chance < MOST_CHANCE_OF_SPIKES
        if chance < LIKELY or chance == math.inf:
            return chance < LIKELY
        # Suspects are spread over all batches, so refusals may easily share one by chance.
        self._num_doubts += 1
        return self._num_doubts <= MOST_DOUBTS

    def _rate(self, step: int) -> float:
        """Refusals per step since the first one, which is not counted."""
        return min(1.0, max(1, self._num_refusals - 1) / max(1, step - self._first_step))

    def cleared(self, indices: NDArray[np.int64]) -> None:
        """Note that a batch with these samples, int64[B], was good, which clears them."""
        suspects = self._suspects
        for sample in suspects.keys() & set(indices.tolist()):
            del suspects[sample]
        if not suspects:
            self._forget()

    def convict(self, step: int) -> tuple[tuple[int, ...], int]:
        """Quarantine the samples against which there is enough evidence.

        Args:
            step: Steps reported.

        Returns:
            Their indices, empty if there are none, and the most refused batches that any of them was in.
        """
        convicted: list[int] = []
        refusals = 0
        while (worst := self._worst(step)) is not None:
            room = max(1, math.floor(MOST_SHARE * self._table.num_samples)) - len(self._table.quarantined)
            if len(convicted) >= room:
                self._say_full()
                break
            witnesses = self._suspects.pop(worst)
            convicted.append(worst)
            refusals = max(refusals, len(witnesses.batches))
            self._explain(witnesses.batches)
        if not convicted:
            return (), 0
        samples = tuple(sorted(convicted))
        self._table.storage.exclusions.quarantine(np.array(samples))
        text = f"{self.named(samples)} {_was(samples)} in {refusals} refused batches and in no good one since"
        self._announcer.tell(events.SamplesQuarantined, samples=samples, refusals=refusals, text=text)
        self._announcer.warn_once(
            f"quarantine {samples} {step}", f"{text}; not drawn any more. release() puts it back."
        )
        if not self._suspects:
            self._forget()
        return samples, refusals

    def _worst(self, step: int) -> int | None:
        """The sample with the most evidence, if that is enough; samples with exactly the same evidence wait."""
        rate, limit = self._rate(step), math.log(MOST_CHANCE)
        chances = {
            sample: witnesses.log_chance(rate)
            for sample, witnesses in self._suspects.items()
            if len(witnesses.batches) > 1
        }
        found = [sample for sample, chance in chances.items() if chance < limit]
        if not found:
            return None
        together = Counter(witnesses.batches for witnesses in self._suspects.values())
        alone = [sample for sample in found if together[self._suspects[sample].batches] == 1]
        return min(alone, key=lambda sample: (chances[sample], sample), default=None)

    def _explain(self, batches: Collection[int]) -> None:
        """Remove these batches from the evidence against other samples, as they are explained."""
        for sample, witnesses in list(self._suspects.items()):
            left = witnesses.without(batches)
            if left.batches:
                self._suspects[sample] = left
            else:
                del self._suspects[sample]

    def _say_full(self) -> None:
        self._announcer.warn_once(
            "quarantine full",
            f"more than {MOST_SHARE:.0%} of the samples would be in quarantine; no more are excluded. So many refusals "
            "have another cause than single samples: check the data, the loss function and the learning rate.",
        )

    def named(self, samples: Collection[int]) -> str:
        """Text that names the first of some samples."""
        names = ", ".join(repr(self._table.storage.name_of(sample)) for sample in list(samples)[:NAMED])
        more = f" and {len(samples) - NAMED} more" if len(samples) > NAMED else ""
        return f"sample{'s' * (len(samples) > 1)} {names}{more}"

    def state_dict(self) -> dict[str, Any]:
        """The suspects and the evidence against them; the table saves the quarantined samples."""
        suspects = self._suspects
        return {
            "samples": np.array(list(suspects), np.int64),
            "witnesses": [[list(part) for part in witnesses] for witnesses in suspects.values()],
            "batches": list(self._batches),
            "first_step": self._first_step,
            "num_refusals": self._num_refusals,
            "num_doubts": self._num_doubts,
        }

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Load what `state_dict` returned, after the table was loaded; None clears all suspects."""
        if state is None:
            self._forget()
            return
        self._suspects = {
            int(sample): Evidence(tuple(map(int, batches)), tuple(map(float, log_shares)))
            for sample, (batches, log_shares) in zip(np.asarray(state["samples"]), state["witnesses"], strict=True)
        }
        self._batches = list(state["batches"])
        self._first_step, self._num_refusals = int(state["first_step"]), int(state["num_refusals"])
        self._num_doubts = int(state["num_doubts"])
        self.is_watching = bool(self._suspects)


def _was(samples: Collection[int]) -> str:
    return "were" if len(samples) > 1 else "was"
