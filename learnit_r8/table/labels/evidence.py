"""The evidence about every label: 32 bytes a sample, beside the records, only where predictions are reported.

Late visits count more, with a power of their number. So nothing has to be known about the length of the run, and
what an untrained model says is soon forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..losses import EXACT, WHOLE_BATCH
from ..records import MOST_USES, Lock, Records
from .predictions import NUM_ROWS, UNLABELLED, VALUES, PredictionRows, read_predictions
from .suspicion import LEAST_USES

MOST_WEIGHT = 64
"""The vote of a visit weighs its number, but at most this."""

MOST_LEAD = 2**16 - 1


def votes_of(records: Any) -> NDArray[np.int64]:
    """int64[M], visits at which the leading class was predicted, at least; EVIDENCE[M] or its fields by name."""
    most = np.clip(records["visits"].astype(np.int64), 1, MOST_WEIGHT)
    votes: NDArray[np.int64] = -(-records["lead"].astype(np.int64) // most)
    return votes


EVIDENCE = np.dtype(
    [
        ("margin", "<f4"), ("early", "<f4"), ("visits", "<u2"), ("given", "<u2"), ("leader", "<u2"), ("lead", "<u2"),
        ("mean_margin", "<f4"), ("variance", "<f4"),
        ("last_margin", "<f2"), ("predicted", "<u2"), ("learned", "<u2"), ("forgotten", "<u2"),
    ]
)  # fmt: skip
"""The label of a sample: the mean margin in which late visits count more, and that after the first visits; visits
(saturating); the label; the class predicted most among those that are not the label, and the weight of its lead over
all others. For the data at a glance: the mean margin over all visits and the variance about it; the margin and the
class predicted at the last visit; the first visit at which that was the label, 0 if never; and how often it was the
label at a visit and was not at the next."""

PLACE_EVIDENCE = np.dtype([(name, EVIDENCE[name]) for name in (EVIDENCE.names or ())[:6]])
"""One of several labels of a sample: the first fields of `EVIDENCE`."""

VALUE_EVIDENCE = np.dtype([("residual", "<f4"), ("spread", "<f4"), ("given", "<f4"), ("visits", "<u4")])
"""One number: the mean of the target less the number predicted, the variance of that over the visits (late ones count
more in both), the target, and visits."""

LAYOUTS = (EVIDENCE, PLACE_EVIDENCE, VALUE_EVIDENCE)

MOST_PLACES = 2**25
"""Most labels of all samples: half a gigabyte."""

LATENESS, LATENESS_OF_PLACES = 2, 6
"""Weight of the v-th visit: v (v + 1) / 2 for 2, and 1 for 0; measured in benchmarks/labels.py. Of several labels a
sample a network learns the wrong ones by heart later, if at all: measured in benchmarks/label_kinds.py."""

EARLY = 6
"""Visits in the early margin, which are over before a network knows wrong labels by heart. Measured on 1,300 digits."""

HIGHEST = 25.0
"""Margins are clipped to this, so that one absurd visit does not outweigh all others: odds of 1e11."""


class Evidence:
    """The evidence of N samples; takes memory from the first predictions on.

    A sample has P labels, its places: one, or as many as the reports have shown at most. Those of a sample are next to
    each other.

    Args:
        num_samples: N.

    Attributes:
        num_classes: C; 0 before the first predictions.
        records: The records, N P of them; None before.
        is_frozen: Whether the early margins are those of before losses had weights.
    """

    def __init__(self, num_samples: int) -> None:
        self.num_classes = 0
        self.records: Records | None = None
        self.is_frozen = False
        self._num_samples = num_samples

    @property
    def whole(self) -> NDArray[Any] | None:
        """EVIDENCE[N P], a view, for the thread that learns; None before the first predictions."""
        return None if self.records is None else self.records.whole

    @property
    def num_places(self) -> int:
        """P; 1 before the first predictions."""
        return 1 if self.records is None else max(1, len(self.records) // max(1, self._num_samples))

    @property
    def of_classes(self) -> Records | None:
        """The records where a sample has one label, a class; else None."""
        return self.records if self.num_places == 1 and self.num_classes != VALUES else None

    def freeze(self, lock: Lock) -> None:
        """Keep the margins as they are now, before losses have weights, if the samples were visited often enough."""
        records = self.of_classes
        if records is None or records.whole["visits"].mean() < LEAST_USES:
            return
        for _, some in records.slices(lock):
            some["early"] = some["margin"]
        self.is_frozen = True

    def resize(self, num_samples: int) -> None:
        """Have records of this many samples, once there are any; see `Records.resize`."""
        if self.records is not None:
            self.records.resize(num_samples * self.num_places)
        self._num_samples = num_samples

    def take(self, indices: NDArray[np.int64]) -> NDArray[Any] | None:
        """EVIDENCE[M], copies of some records, where a sample has one label, a class; else None."""
        records = self.of_classes
        return None if records is None else records.take(indices)

    def checked(self, predictions: Any, count: int, kind: int) -> PredictionRows:
        """Reported predictions, checked; changes nothing.

        Args:
            predictions: `Predictions` of the samples of a batch.
            count: Number of losses reported with them.
            kind: EXACT, WHOLE_BATCH or the size of a part.

        Raises:
            TypeError: the predictions are none.
            ValueError: they do not fit, or there is no loss for each sample to compare them with.
        """
        if kind != EXACT:
            raise ValueError(
                "predictions need one loss for each sample, got "
                + ("the mean of the batch" if kind == WHOLE_BATCH else f"means of parts of {kind}")
                + ": a mean does not show whose label is wrong. Report a vector of losses."
            )
        rows = read_predictions(predictions, count, self.num_classes)
        if rows.num_places * self._num_samples > MOST_PLACES and rows.num_places > 1:
            raise ValueError(
                f"predictions must hold at most {MOST_PLACES:,} places in all, got {rows.num_places:,} for each of "
                f"{self._num_samples:,} samples: leave out some, as in logits[..., ::2, ::2], targets[..., ::2, ::2]."
            )
        return rows

    def make_records(self, rows: PredictionRows) -> None:
        """Note the number of classes; make the records the first time, and wider ones where a sample has more places.

        That takes as long as with the table's own.
        """
        if self.records is None or rows.num_places > self.num_places:
            is_value, is_single = rows.num_classes == VALUES, rows.num_places == 1
            self._widen(rows.num_places, VALUE_EVIDENCE if is_value else EVIDENCE if is_single else PLACE_EVIDENCE)
        self.num_classes = rows.num_classes

    def _widen(self, num_places: int, dtype: np.dtype[Any]) -> None:
        wide, known = Records(self._num_samples * num_places, dtype), self.whole
        if known is not None:
            before = known.reshape(-1, self.num_places)
            for name in dtype.names or ():
                wide.whole.reshape(-1, num_places)[name][:, : self.num_places] = before[name]
        self.records = wide

    def updated(self, indices: NDArray[np.int64], rows: NDArray[np.float32]) -> Callable[[], None]:
        """A function that stores what is learned from predictions.

        Args:
            indices: int64[M], distinct.
            rows: float32[3 P, M], see `PredictionRows`.
        """
        assert self.records is not None
        records, places = self.records, len(rows) // NUM_ROWS
        if places > 1 or self.num_places > 1:
            indices = (indices[:, None] * self.num_places + np.arange(places)).reshape(-1)
            rows = rows.reshape(NUM_ROWS, places, -1).swapaxes(1, 2).reshape(NUM_ROWS, -1)
        is_value = self.num_classes == VALUES
        has_label = rows[-1] == rows[-1] if is_value else rows[-1] != UNLABELLED
        if not has_label.all():
            indices, rows = indices[has_label], rows[:, has_label]
        new = records.take(indices)
        (learn_values(new, rows) if is_value else learn(new, rows, is_frozen=self.is_frozen))
        return lambda: records.put(indices, new)

    def state_dict(self) -> dict[str, Any] | None:
        """Arrays of N, or of N and P, by field name, and the number of classes; None without predictions."""
        if self.records is None:
            return None
        places, columns = self.num_places, self.records.columns()
        if places > 1:
            columns = {name: values.reshape(-1, places) for name, values in columns.items()}
        return {**columns, "num_classes": self.num_classes, "is_frozen": self.is_frozen}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Load what `state_dict` returned; None forgets everything."""
        self.num_classes, self.records, self.is_frozen = 0, None, False
        if state is None:
            return
        if not isinstance(state, Mapping):
            raise ValueError(f"evidence must be a dict or None, got {str(state)[:40]!r}.")
        dtype = next((each for each in LAYOUTS if set(each.names or ()) <= state.keys()), None)
        if dtype is None:
            raise ValueError(f"evidence must have the fields {LAYOUTS[0].names}, got {sorted(state)}.")
        for name in dtype.names or ():
            values, is_float = state[name], dtype[name].kind == "f"
            is_alike = isinstance(values, np.ndarray) and values.dtype.kind in ("f" if is_float else "iu")
            if not is_alike:
                raise ValueError(f"evidence.{name} must be an array of {dtype[name]}, got {str(values)[:40]!r}.")
        for name in dtype.names or ():
            shape, wanted = state[name].shape, state["given"].shape
            if shape != wanted:
                raise ValueError(f"evidence.{name} must have the shape of evidence.given, {wanted}, got {shape}.")
        if type(state["num_classes"]) is not int:
            raise ValueError(f"evidence.num_classes must be a whole number, got {str(state['num_classes'])[:40]!r}.")
        arrays = {name: np.asarray(state[name], dtype[name]) for name in dtype.names or ()}
        self._widen(max(1, arrays["given"].size // max(1, self._num_samples)), dtype)
        self.num_classes = int(state["num_classes"])
        # Older states do not say.
        self.is_frozen = state.get("is_frozen") is True
        whole = self.whole
        assert whole is not None
        for name, values in arrays.items():
            whole[name][:] = values.reshape(-1)


def learn(records: NDArray[Any], rows: NDArray[np.float32], *, is_frozen: bool = False) -> None:
    """Update records with one visit each.

    Args:
        records: EVIDENCE[M], changed. A sample whose label has changed starts afresh.
        rows: float32[3, M], see `PredictionRows`.
        is_frozen: Whether the early margins stay as they are; those of a sample that starts afresh say nothing then.
    """
    margin, predicted, given = rows
    has_history = "learned" in (records.dtype.names or ())
    weight = _begin_visit(records, given, LATENESS if has_history else LATENESS_OF_PLACES)
    # NaN counts as the highest.
    margin = np.fmax(np.fmin(margin, np.float32(HIGHEST)), np.float32(-HIGHEST))
    records["margin"] += (margin - records["margin"]) * weight
    if not is_frozen:
        records["early"] = np.where(records["visits"] <= EARLY, records["margin"], records["early"])
    if has_history:
        visits = records["visits"]
        change = margin - records["mean_margin"]
        records["mean_margin"] += change / visits
        records["variance"] += (change * (margin - records["mean_margin"]) - records["variance"]) / visits
        is_right, was_right = predicted == records["given"], (visits > 1) & (records["predicted"] == records["given"])
        records["forgotten"] += was_right & ~is_right & (records["forgotten"] < MOST_USES)
        records["learned"] = np.where(is_right & (records["learned"] == 0), visits, records["learned"])
        records["last_margin"], records["predicted"] = margin, predicted
    # A class with most of the votes for others leads at last (Boyer & Moore, "MJRTY", 1981); late votes count more.
    predicted, lead = predicted.astype(np.uint16), records["lead"].astype(np.int64)
    weight = np.minimum(records["visits"], MOST_WEIGHT).astype(np.int64)
    agrees = predicted == records["leader"]
    lead += np.where(predicted != records["given"], np.where(agrees, weight, -weight), 0)
    records["leader"] = np.where(lead < 0, predicted, records["leader"])
    records["lead"] = np.minimum(np.abs(lead), MOST_LEAD)


def learn_values(records: NDArray[Any], rows: NDArray[np.float32]) -> None:
    """Update records of numbers with one visit each.

    Args:
        records: VALUE_EVIDENCE[M], changed. A sample whose target has changed starts afresh.
        rows: float32[3, M], see `PredictionRows`.
    """
    residual, _, given = rows
    weight = _begin_visit(records, given, LATENESS)
    before = residual - records["residual"]
    records["residual"] += before * weight
    records["spread"] += (before * (residual - records["residual"]) - records["spread"]) * weight


def _begin_visit(records: NDArray[Any], given: NDArray[np.float32], lateness: int) -> NDArray[np.float32]:
    """Count a visit, from the first on where the label has changed; float32[M], what this one weighs."""
    anew = records["given"] != given
    if anew.any():
        records[anew] = np.zeros((), records.dtype)
        records["given"] = given
    visits = records["visits"].astype(np.float32) + 1
    records["visits"] = np.minimum(visits, MOST_USES)
    weight: NDArray[np.float32] = np.float32(1 + lateness) / (visits + np.float32(lateness))
    return weight


Fields = Mapping[str, NDArray[Any]]


def combine(first: Fields | None, others: Sequence[Fields | None]) -> dict[str, NDArray[Any]]:
    """The evidence of several runs as that of one: mean margins, and the votes of all visits together.

    Another run counts for the samples that it has visited often enough with the label of the first. Networks that
    start from other weights err on other samples, so among right labels fewer margins are positive by chance.

    Args:
        first: Fields margin, early, visits, given, leader and lead of `EVIDENCE`, N each; None without predictions.
        others: The same for other runs.

    Raises:
        ValueError: a run has no predictions, or another number of samples.
    """
    if first is None or any(each is None or "margin" not in each for each in (first, *others)):
        raise ValueError("runs must all have reported predictions with the losses; one has not.")
    found = {name: first[name] for name in ("margin", "early", "visits", "given", "leader", "lead")}
    count = np.ones(len(found["margin"]), np.float32)
    leader, lead = found["leader"].astype(np.int64), found["lead"].astype(np.int64)
    margin, early = found["margin"].copy(), found["early"].copy()
    for other in others:
        assert other is not None
        if len(other["margin"]) != len(count):
            raise ValueError(f"runs must be of the same {len(count):,} samples, got one of {len(other['margin']):,}.")
        same = (other["visits"] >= LEAST_USES) & (other["given"] == found["given"])
        count += same
        margin += np.where(same, other["margin"] - margin, 0) / count
        early += np.where(same, other["early"] - early, 0) / count
        # As Boyer and Moore merge the counts of parts.
        votes = np.where(same, other["lead"].astype(np.int64), 0)
        lead = np.where(other["leader"] == leader, lead + votes, lead - votes)
        leader = np.where(lead < 0, other["leader"], leader)
        lead = np.abs(lead)
        found["visits"] = np.where(same, np.maximum(found["visits"], other["visits"]), found["visits"])
    return found | {"margin": margin, "early": early, "leader": leader, "lead": lead}
