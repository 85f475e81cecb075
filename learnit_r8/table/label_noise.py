"""Label noise: samples look mislabelled if their losses stay above an untrained model's, apart from all others.

With predictions there is a second way, for losses that overlap: see `labels.mirror`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .labels.evidence import votes_of
from .labels.margins import Margins, class_margins, common_class, fields_of, margins_of, predicts
from .labels.mirror import LEAST_POSITIVE, Mirror
from .labels.suspects import HUMPS, MIRROR, NO_CROSS_ENTROPY, NO_PROMISE, Places, Ranking, Suspects, no_suspects
from .labels.suspicion import LEAST_USES, Suspicion, are_spared, spare, unlearned
from .labels.trust import BOUNDED, EARLY, PLAIN, WEIGHED, least_trust, trust_in
from .quantiles import top_of
from .radix import falling_order
from .records import Columns, Fields, spread

MOST_FITTED = 2**21
"""Samples to which the components are fitted; of more, a random part of a quarter as many."""

SURE = 0.9

FAR_APART = 3.5
"""Ashman's D from which two humps name suspects where margins name none. In `benchmarks/labels.py` lists from 3.5 on
held at least .94 wrong ones; those of two classes of CIFAR-10, with .55 to .66, had 2.1 to 2.3."""

TAIL = 0.007
"""Right labels that lose as much as wrong ones, as a share of all samples. Source: 1,300 digits, seeds 100 to 105."""

_NOBODY = np.empty(0, np.int64)

ALWAYS_HIGH, RISING, MEMORISED = "always high", "rising", "memorised"


MOST_ALIKE, MOST_ALIKE_OF_TWO = 10, 2
"""Places of a sample that may be alike, at most: as many of them count as one observation. Measured on clean tokens in
benchmarks/label_kinds.py, which repeat; there and in benchmarks/verdicts.py several labels, each of another kind, have
a gain of 3 at most on clean data, as if each were an observation."""


NOT_EXACT = "per-sample losses are needed: report a vector of losses."

STILL_WRONG = 0.25
"""Share of the labels that looked wrong before weights began, from which on those that still do must show wrong labels,
too, however few; where fewer do, all have been learnt by heart. In benchmarks/verdicts.py, narrow network, digits, it
was .36 to .48 in the 13 of 125 clean trainings that had a list."""

NOT_ANY_MORE = "what looked wrong before weights began has been learnt since, as hard right labels are."

LEAST_CLUMP = 1.0
"""Labels that err with another of their sample, from which on two classes are an object and its background: several
labels a sample have .03 or less, masks 13 or more in benchmarks/label_kinds.py."""


def find_suspects(
    records: Any,
    untrained_loss: float,
    *,
    exact: bool,
    by_group: bool = False,
    evidence: Any = None,
    precision: float = 0.5,
    trust: str = PLAIN,
) -> Suspects:
    """Find the samples that look mislabelled: two components of the losses, or margins without a mirror image.

    With predictions the margins decide, if enough of them are positive to fit anything. Without, the suspects are those
    whose losses form a component of their own, worse than untrained; also where the margins name none, if that
    component is far away. A network that expects labels to be wrong in one way has margins like those of right labels.

    Args:
        records: Fields last, mean float32[N] and usage_count uint16[N]; also group uint16[N] if ``by_group``. Arrays,
            or `Columns`, which are read block by block.
        untrained_loss: Loss of an untrained model, in the unit of the loss.
        exact: Whether the losses were reported per sample; otherwise there are no suspects.
        by_group: Whether to protect groups, see `Suspicion.flags`.
        evidence: The fields of `EVIDENCE` by name, N each, or N P with P labels a sample; None without predictions.
        precision: Least share of the list to be wrong, as estimated, in (0, 1).
        trust: Which margins may be judged by what is known beside the losses, see `labels.trust`.

    Source: the mean loss ranks wrong labels as well as the area under the margin of Pleiss et al. (arXiv:2001.10528);
    that and the two components are measured in ``benchmarks/learning.py``, the margins in ``benchmarks/labels.py``.
    """
    of_losses = trust_of(records, evidence, PLAIN)
    trust = least_trust([trust, of_losses])
    search = _Search(Columns.of(records, "usage_count"), untrained_loss, by_group, precision)
    shown = None if evidence is None else Columns.of(evidence, "visits")
    found = search.find(shown, trust, is_entropy=of_losses == PLAIN) if exact else no_suspects(NOT_EXACT)
    return replace(found, precision=math.nan, caution=NO_PROMISE) if trust == WEIGHED else found


def trust_of(records: Any, evidence: Any, trust: str) -> str:
    """Which margins may be judged, by the losses of the last visits, too; arguments as for `find_suspects`."""
    shown = None if evidence is None else Columns.of(evidence, "visits")
    if shown is None or "last_margin" not in shown.names:
        return trust
    last = _part_of(Columns.of(records, "usage_count"), "last")["last"]
    return least_trust([trust, trust_in(last, _part_of(shown, "last_margin")["last_margin"])])


class _Search(NamedTuple):
    """A search for wrong labels.

    Attributes:
        records: The losses and uses of the samples.
        untrained_loss, by_group, precision: As for `find_suspects`.
    """

    records: Columns
    untrained_loss: float
    by_group: bool
    precision: float

    def find(self, evidence: Columns | None, trust: str, *, is_entropy: bool) -> Suspects:
        """The suspects by margins, or by losses; see `find_suspects`.

        Args:
            evidence: What predictions say; None without any.
            trust: Which margins may be judged.
            is_entropy: Whether the losses may be cross entropies; of others nobody knows what is high.
        """
        records, num_judged = self.records, _num_judged(self.records, "usage_count")
        if not num_judged:
            return no_suspects(f"too early: samples are judged from {LEAST_USES} uses on.")
        if evidence is None:
            found = self.by_humps(num_judged, is_strict=self.precision > 0.5)
            return replace(found, **suggestions(None, found.indices), num_judged=num_judged)
        if trust == BOUNDED:
            return replace(no_suspects(NO_CROSS_ENTROPY), num_judged=num_judged)
        found = self.by_mirror(evidence, trust)
        if found.method == MIRROR and trust == EARLY and is_entropy:
            part = _part_of(evidence, "early", "margin")
            late, num_early = part["margin"].astype(np.float64), int(np.count_nonzero(part["early"] > 0))
            num_late = int(np.count_nonzero(late > 0))
            are_few = STILL_WRONG * num_early <= num_late < LEAST_POSITIVE
            found = no_suspects(NOT_ANY_MORE) if are_few and Mirror.of(late, least=num_late) is None else found
        if len(evidence) > len(records) or "residual" in evidence.names:
            # The mean loss of several labels says little of each, and the losses of numbers have no two components.
            if len(evidence) > len(records) and found.places is None:
                found = replace(found, places=self.places(evidence, _NOBODY, np.empty(0)))
            return replace(found, num_judged=num_judged)
        if found.reason and is_entropy:
            # So few tell nothing against the losses.
            some = _part_of(evidence, *fields_of(evidence.names))
            margins = margins_of(some, is_early=trust == EARLY)
            are_few = int(np.count_nonzero(margins.of(some) > 0)) < LEAST_POSITIVE
            apart = self.by_humps(num_judged, is_strict=True, least=0.0 if are_few else FAR_APART)
            found = apart if are_few or not apart.reason else found
        if found.method == MIRROR:
            num_judged = _num_judged(evidence, "visits")
        return replace(found, **suggestions(evidence, found.indices), num_judged=num_judged)

    def by_humps(self, num_judged: int, *, is_strict: bool, least: float = 0.0) -> Suspects:
        """The samples of the higher component; none unless the two are as far apart as ``least``, by Ashman's D."""
        records, untrained_loss, precision = self.records, self.untrained_loss, self.precision
        if not untrained_loss > 0:
            return no_suspects(f"the loss of an untrained model must be > 0 to compare with, got {untrained_loss:.3g}.")
        part = _part_of(records, "mean", "usage_count", *(["group"] if self.by_group else []))
        suspicion = Suspicion.of(part["mean"], part["usage_count"], untrained_loss)
        if suspicion is None or suspicion.humps.separation < least:
            return no_suspects("no group of samples stands apart from the others and is worse than an untrained model.")
        flags = suspicion.flags
        # The score never falls with the mean loss.
        every, mean = _falling(
            (start, some["mean"], flags(some["mean"], some["usage_count"]))
            for start, some in records.blocks("mean", "usage_count")
        )
        score = suspicion.score(mean)
        if self.by_group:
            is_left = ~are_spared(records.read("group", where=every)["group"], part["group"])
            every, score = every[is_left], score[is_left]
        share, surely = len(every) / num_judged, np.count_nonzero(score > SURE) / num_judged
        # The longest list whose mean score is at least the precision.
        enough = np.flatnonzero(np.cumsum(score) >= precision * np.arange(1, len(score) + 1))
        indices = every[: int(enough[-1]) + 1] if len(enough) else every[:0]
        score = score[: len(indices)]
        if not len(indices):
            return no_suspects("no sample is more likely wrong than learnt.")
        # The upper component takes some right labels, too, which its scores do not show.
        sure = min(float(score.mean()), 1 - (TAIL * num_judged + is_strict) / len(indices))
        if is_strict and sure < precision:
            return no_suspects("too few samples stand apart from the others for the precision asked for.")
        not_fine = float((suspicion.score(part["mean"]) > 1 - SURE)[part["usage_count"] >= LEAST_USES].mean())
        rates = min(surely, share), max(not_fine, share)
        found = self.found(indices, score, HUMPS)
        return replace(found, precision=max(0.0, sure), noise_rate=share, noise_range=rates)

    def by_mirror(self, evidence: Columns, trust: str) -> Suspects:
        """The samples whose margins no right labels explain, by margins of all labels or, of many, of some."""
        width = len(evidence) // len(self.records)
        part = _part_of(evidence, *{*fields_of(evidence.names), "visits", "given", *(["leader"] if width > 1 else [])})
        margins = margins_of(part, LEAST_USES, is_early=trust == EARLY)
        judged = np.flatnonzero(part["visits"] >= LEAST_USES)
        is_part = len(part["visits"]) < len(evidence)
        judged_at = spread(len(evidence), MOST_FITTED // 4)[judged] if is_part else judged
        some = {name: values[judged] for name, values in part.items()}
        group = self.groups_of(some, judged_at, width)
        is_binary = some["given"].dtype.kind in "ui" and int(some["given"].max(initial=0)) < 2
        of_labels: dict[str, Any] = {
            "alike": min(width, MOST_ALIKE_OF_TWO if is_binary else MOST_ALIKE),
            "sample": judged_at // width if width > 1 else None, "is_binary": is_binary,
            "is_steady": trust == PLAIN,
        }  # fmt: skip
        every, image = margins.of(some).astype(np.float64), margins.image(some)
        spared = unlearned(every, some["given"], judged_at % width) if width > 1 else None
        common = common_class(some["given"]) if width > 1 else -1
        if is_binary and common >= 0:
            # Of two classes each is what the other is taken for, unless labels make up objects on a background.
            whole = Mirror.of(every, **of_labels)
            common = -1 if whole is None or whole.clump < LEAST_CLUMP else common
        lists: list[tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]] = []
        count, right, noise = 0, 0.0, np.zeros(2)
        for is_common in (None,) if common < 0 else (True, False):
            own = every if is_common is None else np.where(predicts(some, every, common) == is_common, every, np.nan)
            margin, mirror, chosen = mirror_margins(own, group, self.precision, image=image, **of_labels)
            if mirror is None:
                continue
            if spared is not None:
                chosen = chosen[~spared(some["given"][chosen], judged_at[chosen] % width)]
            score, careful = mirror.score(margin)[: len(judged)], Mirror.of(margin, caution=3.0, **of_labels)
            noise += score.mean(), 0.0 if careful is None else careful.score(margin)[: len(judged)].mean()
            if not len(chosen):
                continue
            least = margin[chosen[-1:]]
            # Of those that are spared, as many are right.
            listed = len(chosen) / np.count_nonzero(margin[: len(judged)] >= least)
            count, right = count + len(chosen), right + listed * float(mirror.expected(margin, least)[0])
            if not is_part:
                lists.append((judged_at[chosen], margin[chosen], score[chosen]))
                continue
            indices, high = _above(evidence, margins, float(least[0]), common, is_common)
            known = evidence.read("given", where=indices)
            is_left = ~are_spared(self.groups_of(known, indices, width), group)
            if spared is not None:
                is_left &= ~spared(known["given"], indices % width)
            sizes = high[is_left].astype(np.float64)
            lists.append((indices[is_left], sizes, mirror.score(margin, sizes)))
        if not count:
            return no_suspects("no more samples look wrong than hard ones with right labels would explain.")
        indices, sizes, scores = (np.concatenate(parts) for parts in zip(*lists, strict=True))
        order = np.argsort(-sizes, kind="stable")
        rates, range_ = float(noise[0]), (float(noise[1]), float((every > 0).mean()))
        found = self.of_places(evidence, indices[order], scores[order])
        return replace(found, precision=max(0.0, 1 - right / count), noise_rate=rates, noise_range=range_)

    def groups_of(self, some: Fields, where: NDArray[np.int64], width: int) -> NDArray[np.int64]:
        """int64[M], the groups to protect: the user's, else the labels; one group for several labels, numbers."""
        if self.by_group:
            return self.records.read("group", where=where // width)["group"].astype(np.int64)
        if width > 1 or "residual" in some or some["given"].dtype.kind == "f":
            return np.zeros(len(where), np.int64)
        return some["given"].astype(np.int64)

    def of_places(self, evidence: Columns, flat: NDArray[np.int64], score: NDArray[np.float64]) -> Suspects:
        """The suspects, from positions of labels, most suspect first."""
        if len(evidence) == len(self.records):
            return replace(self.found(flat, score, MIRROR), **suggestions(evidence, flat))
        places = self.places(evidence, flat, score)
        first = np.sort(np.unique(places.indices, return_index=True)[1])
        labels = {name: getattr(places, name)[first] for name in ("given", "suggested", "votes")}
        return replace(self.found(places.indices[first], score[first], MIRROR), places=places, **labels)

    def places(self, evidence: Columns, flat: NDArray[np.int64], score: NDArray[np.float64]) -> Places:
        """Labels by their positions among those of all samples."""
        size = len(self.records)
        at, labels = np.divmod(flat, len(evidence) // size), suggestions(evidence, flat)
        return Places(*at, score=score, num_samples=size, num_places=len(evidence) // size, **labels)

    def found(self, indices: NDArray[np.int64], score: NDArray[np.float64], method: str) -> Suspects:
        """The suspects with their losses, and why."""
        known = self.records.read("last", "mean", where=indices)
        last, mean = known["last"], known["mean"]
        texts = np.array([MEMORISED, RISING, ALWAYS_HIGH], object)
        why = texts[np.where(last < self.untrained_loss / 2, 0, np.where(last / 1.2 > mean, 1, 2))].tolist()
        precision, unknown = float(score.mean()), (math.nan, math.nan)
        return Suspects(indices, mean, score, tuple(why), math.nan, unknown, "", precision, method=method)


def _num_judged(columns: Columns, field: str) -> int:
    """Number of samples that were visited often enough to be judged."""
    return sum(int(np.count_nonzero(some[field] >= LEAST_USES)) for _, some in columns.blocks(field))


def _part_of(columns: Columns, *fields: str) -> Fields:
    """Return some fields of the samples that models are fitted to: all, or a part if there are many."""
    size = len(columns)
    return columns.read(*fields, where=None if size <= MOST_FITTED else spread(size, MOST_FITTED // 4))


def _falling(
    blocks: Iterable[tuple[int, NDArray[np.float32], NDArray[np.bool_]]],
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """int64[K] and float32[K], the chosen ones of values that come block by block: their positions, highest first."""
    found = [(np.flatnonzero(is_chosen) + start, values[is_chosen]) for start, values, is_chosen in blocks]
    indices, high = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = falling_order(high)
    return indices[order], high[order]


def _above(
    evidence: Columns, margins: Margins, least: float, common: int, is_common: bool | None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """int64[K] and float32[K], all labels with at least this margin, highest first, and their margins.

    Args:
        common: See `common_class`.
        is_common: Whether that class is predicted for them; None for any.
    """

    def chosen(some: Fields, margin: NDArray[np.float32]) -> NDArray[np.bool_]:
        is_high: NDArray[np.bool_] = (margin >= least) & (some["visits"] >= LEAST_USES)
        return is_high if is_common is None else is_high & (predicts(some, margin, common) == is_common)

    more = () if is_common is None else ("leader", "given")
    blocks = evidence.blocks(*{*margins.fields, "visits", *more})
    each = ((start, some, margins.of(some)) for start, some in blocks)
    return _falling((start, margin, chosen(some, margin)) for start, some, margin in each)


def mirror_margins(
    margin: NDArray[np.float64],
    group: NDArray[np.int64],
    precision: float,
    *,
    image: NDArray[np.float64] | None = None,
    **of_labels: Any,
) -> tuple[NDArray[np.float64], Mirror | None, NDArray[np.int64]]:
    """The margins, their mirror, and the positions of the suspects, int64[K], highest margin first.

    Args:
        margin: float64[M].
        group: int64[M], see `Suspicion.flags`.
        precision: Least share of the list to be wrong.
        image: Margins whose negative ones mirror the positive ones, in place of the negative ones of ``margin``; then
            they are behind the margins that are returned.
        of_labels: See `Mirror.of`.
    """
    size = len(margin)
    if image is not None and len(image):
        margin = np.concatenate([np.where(margin > 0, margin, np.nan), image[image < 0]])
    mirror = Mirror.of(margin, **of_labels)
    flagged = np.zeros(size, bool)
    if mirror is not None:
        flagged[mirror.longest(margin, precision)] = True
        spare(flagged, margin[:size].astype(np.float32), group)
    chosen = np.flatnonzero(flagged)
    return margin, mirror, chosen[np.argsort(-margin[chosen], kind="stable")]


def suggestions(evidence: Columns | None, indices: NDArray[np.int64]) -> dict[str, Any]:
    """Labels of samples, the classes predicted in their place or the values expected, and the votes: K each."""
    unknown, nobody = np.full(len(indices), -1), np.zeros(len(indices), np.int64)
    if evidence is None:
        return {"given": unknown, "suggested": unknown, "votes": nobody}
    if "residual" in evidence.names:
        known = evidence.read("given", "residual", "visits", where=indices)
        given = np.where(known["visits"] > 0, known["given"].astype(np.float64), np.nan)
        return {"given": given, "suggested": given - known["residual"], "votes": nobody}
    known = evidence.read("lead", "visits", "given", "leader", where=indices)
    votes = votes_of(known)
    given = np.where(known["visits"] > 0, known["given"].astype(np.int64), -1)
    return {"given": given, "suggested": np.where(votes > 0, known["leader"].astype(np.int64), -1), "votes": votes}


def rank(records: Any, evidence: Any, top: int) -> Ranking:
    """Order the seen samples by suspicion: by their mean margins if predictions are known, else by their mean losses.

    With several labels a sample, by the most suspect one.

    Args:
        records: Fields mean float32[N] and usage_count uint16[N].
        evidence: The fields of `EVIDENCE` by name, N or N P each; None without predictions.
        top: Most samples to return.
    """
    known, nan = Columns.of(records, "usage_count"), np.float32("nan")
    if evidence is None:
        blocks = known.blocks("mean", "usage_count", least=top)
        order = top_of(((start, np.where(some["usage_count"] > 0, some["mean"], nan)) for start, some in blocks), top)
        return Ranking(order, known.read("mean", where=order)["mean"], **suggestions(None, order))
    shown = Columns.of(evidence, "visits")
    width = max(1, len(shown) // max(1, len(known)))
    margins = margins_of(_part_of(shown, *fields_of(shown.names)))
    fields = {*margins.fields, "visits"}

    def of_samples(some: Fields) -> NDArray[np.float32]:
        """float32[M, P], the margins of the labels of each sample; NaN where a label was never seen."""
        return np.where(some["visits"] > 0, margins.of(some), nan).reshape(-1, width)

    blocks = shown.blocks(*fields, least=top * width, multiple=width)
    order = top_of(((start // width, np.fmax.reduce(of_samples(some), axis=1)) for start, some in blocks), top)
    every = shown.read(*fields, where=(order[:, None] * width + np.arange(width)).reshape(-1))
    flat = order * width + np.nan_to_num(of_samples(every), nan=-np.inf).argmax(axis=1)
    return Ranking(order, known.read("mean", where=order)["mean"], **suggestions(shown, flat))


FEW = 0.005
"""Share of the samples that may have missed visits without being left out."""


class MarginLimit(NamedTuple):
    """A criterion for wrong labels from predictions, for samples that were not looked at, too.

    A sample is wrong if its mean margin is at least the limit. One that was left out stays out: its margin is of a
    younger network than those of the others, and says no more how they compare.

    Attributes:
        least: The lowest mean margin in a list of suspects, > 0; infinity if the list is empty.
        field: The field of the evidence that it is of: the margins in which late visits count more, or others where
            those fade.
        fresh: Least visits of a sample that was not left out.
        levels: Mean margins > 0, rising, and the probability that a label is wrong from each on.
    """

    least: float
    field: str
    fresh: int
    levels: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())

    @classmethod
    def of(
        cls, records: Any, evidence: Any, *, precision: float, by_group: bool, is_weighed: bool = False
    ) -> MarginLimit | None:
        """The limit of the list that the margins give for this precision; None where nobody is left out.

        Args:
            records: Field group uint16[M] if ``by_group``, M >= 1.
            evidence: EVIDENCE[M].
            precision: Least share of the list to be wrong, as estimated, in (0, 1).
            by_group: Whether to protect groups, see `Suspicion.flags`.
            is_weighed: Whether losses have had weights; until then they get some only where labels are surely wrong.
        """
        visits = evidence["visits"]
        judged = np.flatnonzero(visits >= LEAST_USES)
        if not len(judged):
            return None
        field = class_margins(evidence).field
        # Each sweep over the data takes the samples that look right once, so those that were never left out differ by
        # one visit at most; but for a few, whose batches were refused.
        taken = visits[judged][evidence[field][judged] <= 0]
        place = int(FEW * len(taken))
        limit = cls(math.inf, field, int(np.partition(taken, place)[place]) if len(taken) else 0)
        margin = limit.margins(evidence)[judged]
        is_fresh = margin < np.inf
        group = (records["group"] if by_group else evidence["given"])[judged].astype(np.int64)
        fitted, _, chosen = mirror_margins(margin[is_fresh].astype(np.float64), group[is_fresh], precision)
        if len(chosen):
            return limit._replace(least=float(fitted[chosen[-1]]), levels=_levels(fitted, is_sure=not is_weighed))
        # Those left out are what lists of this precision have held.
        return None if is_fresh.all() else limit._replace(levels=((math.inf,), (precision,)))

    def margins(self, evidence: Any) -> NDArray[np.float32]:
        """float32[M], mean margins: infinity for samples that stay out, minus infinity for those not judged yet."""
        visits = evidence["visits"]
        margin: NDArray[np.float32] = evidence[self.field]
        margin = np.where((visits < self.fresh) & (margin > 0), np.float32(np.inf), margin)
        return np.where(visits >= LEAST_USES, margin, np.float32(-np.inf))

    def flags(self, margin: NDArray[np.float32], group: NDArray[Any] | None = None) -> NDArray[np.bool_]:
        """bool[M], the samples to leave out.

        Args:
            margin: float32[M], as `margins` gives them.
            group: int[M], see `Suspicion.flags`.
        """
        return _flagged(margin, self.least, group)

    def wrong(self, margin: NDArray[np.float32], group: NDArray[Any] | None = None) -> NDArray[np.float32]:
        """float32[M], the probability that each label is wrong.

        Args:
            margin, group: As for `flags`; the samples that this would spare count as right.
        """
        margins, chances = self.levels
        if not margins:
            return np.zeros(len(margin), np.float32)
        level = np.searchsorted(np.array(margins, np.float32), margin, side="right")
        chance = np.array([0.0, *chances], np.float32)[level]
        return np.where(_flagged(margin, margins[0], group), chance, np.float32(0))


def _flagged(margin: NDArray[np.float32], least: float, group: NDArray[Any] | None) -> NDArray[np.bool_]:
    flagged: NDArray[np.bool_] = margin >= np.float32(least)
    spare(flagged, margin, group)
    return flagged


def _levels(margin: NDArray[np.float64], *, is_sure: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The lowest margin of each score above 0, which never falls with the margin, and the scores.

    A list must hold what was asked for, so it is fitted with caution; a weight must neither be too high nor too low.
    """
    mirror = Mirror.of(margin, caution=0.0, is_sure=is_sure)
    score = np.zeros(len(margin)) if mirror is None else mirror.score(margin)
    order = np.flatnonzero(score > 0)
    order = order[np.argsort(margin[order])]
    chances, firsts = np.unique(score[order], return_index=True)
    return tuple(margin[order[firsts]].tolist()), tuple(chances.tolist())
