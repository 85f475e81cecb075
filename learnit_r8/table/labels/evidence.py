"""The evidence about every label: 32 bytes a sample, beside the records, only where predictions are reported.

Late visits count more, with the square of their number. So nothing has to be known about the length of the run, and
what an untrained model says is soon forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..losses import EXACT, WHOLE_BATCH, Reading
from ..records import MOST_USES, Records
from .predictions import read_predictions
from .votes import vote

EVIDENCE = np.dtype(
    [
        ("margin", "<f4"), ("early", "<f4"), ("visits", "<u2"), ("given", "<u2"), ("leader", "<u2"), ("lead", "<u2"),
        ("mean_margin", "<f4"), ("variance", "<f4"),
        ("last_margin", "<f2"), ("predicted", "<u2"), ("learned", "<u2"), ("forgotten", "<u2"),
    ]
)  # fmt: skip
"""One sample: the mean margin in which late visits count more, and what it was after the first visits; visits
(saturating); the label; the class predicted most among those that are not the label, and the weight of its lead over
all others. For the data at a glance: the mean margin over all visits and the variance about it; the margin and the
class predicted at the last visit; the first visit at which that was the label, 0 if never; and how often it was the
label at a visit and was not at the next."""

LATENESS = 2
"""Weight of the v-th visit: v (v + 1) / 2 for 2, and 1 for 0. Measured in benchmarks/labels.py."""

EARLY = 6
"""Visits in the early margin, which are over before a network knows wrong labels by heart. Measured on 1,300 digits."""

HIGHEST = 25.0
"""Margins are clipped to this, so that one absurd visit does not outweigh all others: odds of 1e11."""


class Evidence:
    """The evidence of N samples; takes memory from the first predictions on.

    Args:
        num_samples: N.

    Attributes:
        num_classes: C; 0 before the first predictions.
        records: The records; None before.
    """

    def __init__(self, num_samples: int) -> None:
        self.num_classes = 0
        self.records: Records | None = None
        self._num_samples = num_samples

    @property
    def whole(self) -> NDArray[Any] | None:
        """EVIDENCE[N], a view, for the thread that learns; None before the first predictions."""
        return None if self.records is None else self.records.whole

    def resize(self, num_samples: int) -> None:
        """Have this many records, once there are any; see `Records.resize`."""
        self._num_samples = num_samples
        if self.records is not None:
            self.records.resize(num_samples)

    def take(self, indices: NDArray[np.int64]) -> NDArray[Any] | None:
        """EVIDENCE[M], copies of some records; None before the first predictions."""
        return None if self.records is None else self.records.take(indices)

    def with_predictions(self, reading: Reading, predictions: Any, kind: int) -> Reading:
        """The reported losses together with checked predictions; changes nothing.

        Args:
            reading: The losses.
            predictions: `Predictions` of the same samples.
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
        rows = read_predictions(predictions, np.size(reading.means), self.num_classes)
        return reading._replace(predictions=rows)

    def make_records(self, num_classes: int) -> None:
        """Note the number of classes; the first time, make the records, which takes as long as with the table's own."""
        if self.records is None:
            self.records = Records(self._num_samples, EVIDENCE)
        self.num_classes = num_classes

    def updated(self, indices: NDArray[np.int64], rows: NDArray[np.float32]) -> Callable[[], None]:
        """A function that stores what is learned from predictions.

        Args:
            indices: int64[M], distinct.
            rows: float32[3, M], see `PredictionRows`.
        """
        assert self.records is not None
        records = self.records
        new = records.take(indices)
        learn(new, rows)
        return lambda: records.put(indices, new)

    def state_dict(self) -> dict[str, Any] | None:
        """Arrays of N by field name, and the number of classes; None without predictions."""
        return None if self.records is None else {**self.records.columns(), "num_classes": self.num_classes}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Load what `state_dict` returned; None forgets everything."""
        if state is None:
            self.num_classes, self.records = 0, None
            return
        arrays = {name: np.asarray(state[name], EVIDENCE[name]) for name in EVIDENCE.names or ()}
        self.make_records(int(state["num_classes"]))
        whole = self.whole
        assert whole is not None
        for name, values in arrays.items():
            whole[name][:] = values


def learn(records: NDArray[Any], rows: NDArray[np.float32]) -> None:
    """Update records with one visit each.

    Args:
        records: EVIDENCE[M], changed. A sample whose label has changed starts afresh.
        rows: float32[3, M], see `PredictionRows`.
    """
    margin, predicted, given = rows
    anew = records["given"] != given
    if anew.any():
        records[anew] = np.zeros((), EVIDENCE)
        records["given"] = given
    visits = records["visits"].astype(np.float32) + 1
    weight = (1 + LATENESS) / (visits + LATENESS)
    # NaN counts as the highest.
    margin = np.fmax(np.fmin(margin, np.float32(HIGHEST)), np.float32(-HIGHEST))
    records["margin"] += (margin - records["margin"]) * weight
    change = margin - records["mean_margin"]
    records["mean_margin"] += change / visits
    records["variance"] += (change * (margin - records["mean_margin"]) - records["variance"]) / visits
    records["early"] = np.where(visits <= EARLY, records["margin"], records["early"])
    is_right = predicted == given
    was_right = (visits > 1) & (records["predicted"] == given)
    records["forgotten"] += was_right & ~is_right & (records["forgotten"] < MOST_USES)
    records["visits"] = np.minimum(visits, MOST_USES)
    records["learned"] = np.where(is_right & (records["learned"] == 0), records["visits"], records["learned"])
    records["last_margin"], records["predicted"] = margin, predicted
    vote(records, predicted.astype(np.uint16))
