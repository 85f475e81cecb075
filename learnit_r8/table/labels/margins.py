"""Margins: one number a label, > 0 where it looks wrong, whatever the kind of the label.

Of a class it is by how much the model prefers another one. Of a number it is how far the residual exceeds what the
noise of such samples explains: zero where it is as likely to be one's own residual as that to another sample's target.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..records import Fields

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

HIGH_EARLY = 0.75
FADED = 2 / 3
"""Labels are being memorised if fewer than this share of the margins above this quantile of the early positive ones are
left. Source: `benchmarks/labels.py`; a network that goes on learning leaves .62 or more, mostly .9, of those it had."""

MOST_PARTS, LEAST_IN_PART = 24, 50
"""Parts of the samples by number predicted, and by restlessness, that have a noise of their own; samples in each."""

TAIL = 2.5
"""Degrees of freedom of Student's distribution, whose logarithm makes the odds of large residuals fall evenly. Measured
in benchmarks/label_kinds.py."""

NORMAL = 1.4826
"""Standard deviation of normal residuals, in units of the median of their size."""


class ClassMargins(NamedTuple):
    """The margins of classes, as they were learned.

    Attributes:
        field: The mean margins in which late visits count more, or others where those fade.
    """

    field: str

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of the evidence that they are computed from."""
        return (self.field,)

    def of(self, some: Fields) -> Floats:
        """float32[M], the margins of some labels."""
        margin: Floats = some[self.field]
        return margin

    def image(self, some: Fields) -> Doubles:
        """The mirror image of the margins beside those that are negative: none."""
        return np.empty(0)


class Steps(NamedTuple):
    """A function of one number that is known at some places, with straight lines between them."""

    places: Doubles
    values: Doubles

    @classmethod
    def of(cls, by: Doubles, sizes: Doubles) -> Steps:
        """The median size among samples that are alike in ``by``, float64[M] both."""
        parts = np.array_split(np.argsort(by, kind="stable"), max(1, min(MOST_PARTS, len(by) // LEAST_IN_PART)))
        return cls(
            np.array([np.median(by[part]) for part in parts]), np.array([np.median(sizes[part]) for part in parts])
        )

    def at(self, by: Doubles) -> Doubles:
        """float64[M], the values at some places."""
        return np.interp(by, self.places, self.values)


class ValueMargins(NamedTuple):
    """The margins of numbers, by the residuals of samples that are alike in the number predicted and its restlessness.

    Attributes:
        noise: Typical size of a residual, by the number predicted.
        unrest: Typical size of a residual in units of that, by the standard deviation of the prediction over visits.
        least: Least size, so that a perfect fit has some.
        bound: Residual in these units at which it is as likely to be that to another sample's target.
    """

    noise: Steps
    unrest: Steps
    least: float
    bound: float

    @property
    def fields(self) -> tuple[str, ...]:
        """As for `ClassMargins`."""
        return ("residual", "spread", "given")

    @classmethod
    def fit(cls, some: Fields) -> ValueMargins:
        """Fit them to samples."""
        (residual, expected, unrest), no_unrest = _parts_of(some), Steps(np.zeros(1), np.ones(1))
        if not len(expected):
            return cls(Steps(np.zeros(1), np.zeros(1)), no_unrest, 1e-30, 1.0)
        least = 1e-6 * float(np.std(some["given"].astype(np.float64))) + 1e-30
        found = cls(Steps.of(expected, np.abs(residual)), no_unrest, least, 1.0)
        found = found._replace(unrest=Steps.of(unrest, NORMAL * found._sizes(residual, expected, unrest)))
        own, other = found._sizes(residual, expected, unrest), found._sizes(*_exchanged(some))
        # Where the two densities cross, their distributions are furthest apart.
        both = np.sort(np.concatenate([own, other]))
        own, other = np.sort(own), np.sort(other)
        gap = np.searchsorted(own, both, side="right") - np.searchsorted(other, both, side="right")
        return found._replace(bound=float(both[int(np.argmax(gap))]))

    def _sizes(self, residual: Doubles, expected: Doubles, unrest: Doubles) -> Doubles:
        scale = np.maximum(self.noise.at(expected) * self.unrest.at(unrest) * NORMAL, self.least)
        sizes: Doubles = np.abs(residual) / scale
        return sizes

    def _margins(self, sizes: Doubles) -> Doubles:
        margins: Doubles = np.log1p(sizes**2 / TAIL) - np.log1p(self.bound**2 / TAIL)
        return margins

    def of(self, some: Fields) -> Floats:
        """float32[M], the margins of some numbers."""
        return self._margins(self._sizes(*_parts_of(some))).astype(np.float32)

    def image(self, some: Fields) -> Doubles:
        """float64[M], the margins that they would have with another sample's target, as mirror images: < 0 if large."""
        return -self._margins(self._sizes(*_exchanged(some)))


def _parts_of(some: Fields) -> tuple[Doubles, Doubles, Doubles]:
    """Residuals, numbers predicted, and their standard deviations over the visits."""
    residual, given = some["residual"].astype(np.float64), some["given"].astype(np.float64)
    return residual, given - residual, np.sqrt(np.maximum(some["spread"].astype(np.float64), 0))


def _exchanged(some: Fields) -> tuple[Doubles, Doubles, Doubles]:
    """The same with the target of another sample, always the same one."""
    _, expected, unrest = _parts_of(some)
    other = some["given"].astype(np.float64)[np.random.default_rng(0).permutation(len(expected))]
    return other - expected, expected, unrest


Margins = ClassMargins | ValueMargins


def fields_of(names: Any) -> tuple[str, ...]:
    """The fields that `margins_of` reads, of the fields that there are."""
    return ("residual", "spread", "given", "visits") if "residual" in names else ("margin", "early")


def margins_of(some: Fields, least: int = 1, *, is_early: bool = False) -> Margins:
    """The margins by which labels are judged, fitted to some of them.

    Args:
        some: What `fields_of` names.
        least: Visits from which on a number is used for the fit.
        is_early: Whether the early margins of classes count, whatever became of them.
    """
    if "residual" not in some:
        return ClassMargins("early") if is_early else class_margins(some)
    seen = some["visits"] >= least
    return ValueMargins.fit({name: values[seen] for name, values in some.items()})


def class_margins(some: Any) -> ClassMargins:
    """The margins of classes, EVIDENCE[M] or its fields."""
    positive = some["early"][some["early"] > 0]
    high = np.quantile(positive, HIGH_EARLY) if len(positive) else np.inf
    # Late visits have lost what early ones showed, as in a network that learns labels by heart.
    is_fading = np.count_nonzero(some["margin"] > high) < FADED * np.count_nonzero(positive > high)
    return ClassMargins("early" if is_fading else "margin")


def common_class(given: NDArray[Any]) -> int:
    """The class that more than half of the labels have, -1 without one: the background of masks, an absent label."""
    names, counts = np.unique(given, return_counts=True)
    most = int(counts.argmax()) if len(counts) else 0
    return int(names[most]) if len(counts) and 2 * counts[most] > len(given) else -1


def predicts(some: Fields, margin: Floats | Doubles, code: int) -> NDArray[np.bool_]:
    """bool[M], the labels for which this class is predicted, rightly or wrongly; float[M] margins.

    Right labels in whose place it is predicted have their mirror image among those of that class, not among others.
    """
    return np.asarray(np.where(margin > 0, some["leader"], some["given"]) == code)
