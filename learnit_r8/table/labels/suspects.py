"""Suspects: the samples that look mislabelled, the labels within them, and the order of suspicion."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

HUMPS, MIRROR = "two humps", "mirrored margins"

NO_PROMISE = "no precision is promised, as losses had weights"
"""Samples that weigh little are learnt late, or not at all, right labels too, and before the weights began they were
visited too seldom: lists for a precision of .9 held .52 to .81 wrong ones."""

NO_CROSS_ENTROPY = (
    "the losses are not those of a cross entropy, as they hardly grow where another class is preferred: hard samples "
    "are not fitted then, and look like wrong labels. ranking() gives the order."
)
"""Of a generalised cross entropy, lists for a precision of .9 held .20 to .95 wrong ones, and clean labels had lists
(benchmarks/verdicts.py)."""


def _nobody() -> NDArray[np.int64]:
    return np.empty(0, np.int64)


class _Columns:
    """Values of samples, an array for each field."""

    indices: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> NoReturn:
        name = type(self).__name__
        raise TypeError(
            f"{name} must be looped over by a field, got a loop over all of them: for index in {name.lower()}.indices."
        )

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        name = type(self).__name__
        raise TypeError(f"{name} must be used by a field, got all of them as one array: x[{name.lower()}.indices].")


class Places(NamedTuple):
    """Labels that look wrong, of samples with several labels.

    Attributes:
        indices: int64[L], the sample of each, most suspect label first; a sample may be there several times.
        places: int64[L], which of its labels: the number of the label, the token, or the pixel (row * width + column).
        given, suggested, votes: int64[L], as in `Suspects`.
        score: float64[L], the probability that each is wrong.
        num_samples: N, of all samples.
        num_places: P, labels that a sample has at most.
    """

    indices: NDArray[np.int64]
    places: NDArray[np.int64]
    given: NDArray[Any]
    suggested: NDArray[Any]
    votes: NDArray[np.int64]
    score: NDArray[np.float64]
    num_samples: int
    num_places: int


@dataclass(frozen=True, repr=False, eq=False)
class Suspects(_Columns):
    """Samples that look mislabelled.

    Attributes:
        indices: int64[K], most suspect first: by score, then by mean loss.
        mean_loss: float32[K], mean loss of each over the run.
        score: float64[K], in [0, 1], the probability that each is not one of the learnt samples.
        why: K texts: the losses are "always high"; "rising", as the model learns what contradicts the label; or
            "memorised": high before, and low by now.
        noise_rate: An estimate of the share of wrong labels, K / (samples judged) or, from margins, the mean score of
            all; NaN if unknown.
        noise_range: Lower and upper estimate: the share of certain suspects, and of samples that are not certainly
            fine; from margins the mean score by a more careful fit, and the share of samples for which the model
            prefers another class.
        reason: Why there are no suspects; "" if there are some.
        precision: Estimated share of wrong labels among these; NaN if unknown.
        given: int64[K], the label of each; -1 without predictions. Of regression float64[K].
        suggested: int64[K], the class predicted most for each among those that are not its label; -1 if unknown. Of
            regression float64[K], the value expected.
        votes: int64[K], a lower bound on the visits at which it was predicted; 0 if unknown.
        num_judged: Number of samples that were visited often enough to be judged.
        method: "mirrored margins" if more labels look wrong by their predictions than right ones explain, "two humps"
            if the losses fall into two components; "" without suspects.
        places: With several labels a sample, those that look wrong: precision, noise_rate and noise_range are of them,
            and given, suggested, votes and score of the most suspect one of each sample. Else None.
        caution: Why no precision is promised, and ``precision`` is NaN; "" else. Losses had weights before the samples
            were visited often enough to be judged.
    """

    indices: NDArray[np.int64]
    mean_loss: NDArray[np.float32]
    score: NDArray[np.float64]
    why: tuple[str, ...]
    noise_rate: float
    noise_range: tuple[float, float]
    reason: str
    precision: float = math.nan
    given: NDArray[Any] = field(default_factory=_nobody)
    suggested: NDArray[Any] = field(default_factory=_nobody)
    votes: NDArray[np.int64] = field(default_factory=_nobody)
    method: str = ""
    num_judged: int = 0
    places: Places | None = None
    caution: str = ""

    def __repr__(self) -> str:
        if self.reason:
            return f"Suspects(none: {self.reason})"
        some = ", ".join(map(str, self.indices[:8])) + (", ..." if len(self.indices) > 8 else "")
        count, how = f"{len(self.indices)} samples", self.caution or f"about {self.precision:.0%} of them wrong"
        if self.places is not None:
            return f"Suspects({len(self.places.indices)} labels, {how}, in {count}: {some})"
        if self.method != MIRROR:
            how = f"{len(self.indices) / max(1, self.num_judged):.1%} of those judged"
        return f"Suspects({count}, {how}: {some})"


@dataclass(frozen=True, eq=False)
class Ranking(_Columns):
    """Samples in the order of suspicion, which is not a verdict.

    Attributes:
        indices: int64[K], most suspect first.
        mean_loss: float32[K], mean loss of each over the run.
        given, suggested, votes: As in `Suspects`.
    """

    indices: NDArray[np.int64]
    mean_loss: NDArray[np.float32]
    given: NDArray[Any]
    suggested: NDArray[Any]
    votes: NDArray[np.int64]


def no_suspects(reason: str) -> Suspects:
    """No suspects, and why."""
    nothing = np.empty(0)
    return Suspects(
        nothing.astype(np.int64), nothing.astype(np.float32), nothing, (), math.nan, (math.nan, math.nan), reason
    )
