"""Label noise: samples look mislabelled if their losses stay above an untrained model's, apart from all others.

With predictions there is a second way, for losses that overlap: see `labels.mirror`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .figures import html_table, top_of
from .labels.columns import Columns, Fields, spread
from .labels.mirror import LEAST_POSITIVE, Mirror
from .labels.suspicion import LEAST_USES, Suspicion, are_spared, spare
from .labels.votes import votes_of
from .quantiles import falling_order

MOST_FITTED = 2**21
"""Samples to which the components are fitted; of more, a random part of a quarter as many."""

SURE = 0.9

MOST_SHOWN = 50
"""Samples in a notebook's table."""

HUMPS, MIRROR = "two humps", "mirrored margins"
FAR_APART = 3.5
"""Ashman's D from which two humps name suspects where margins name none. In `benchmarks/labels.py` lists from 3.5 on
held at least .94 wrong ones; those of two classes of CIFAR-10, with .55 to .66, had 2.1 to 2.3."""

_NOBODY = np.empty(0, np.int64)

TAIL = 0.007
"""Right labels that lose as much as wrong ones, as a share of all samples. Source: 1,300 digits, seeds 100 to 105."""

HIGH_EARLY = 0.75
FADED = 2 / 3
"""Labels are being memorised if fewer than this share of the margins above this quantile of the early positive ones are
left. Source: `benchmarks/labels.py`; a network that goes on learning leaves .62 or more, mostly .9, of those it had."""

ALWAYS_HIGH, RISING, MEMORISED = "always high", "rising", "memorised"


class Suspects(NamedTuple):
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
        given: int64[K], the label of each; -1 without predictions.
        suggested: int64[K], the class predicted most for each among those that are not its label; -1 if unknown.
        votes: int64[K], a lower bound on the visits at which it was predicted; 0 if unknown.
        num_judged: Number of samples that were visited often enough to be judged.
        method: "mirrored margins" if more labels look wrong by their predictions than right ones explain, "two humps"
            if the losses fall into two components; "" without suspects.
    """

    indices: NDArray[np.int64]
    mean_loss: NDArray[np.float32]
    score: NDArray[np.float64]
    why: tuple[str, ...]
    noise_rate: float
    noise_range: tuple[float, float]
    reason: str
    precision: float = math.nan
    given: NDArray[np.int64] = _NOBODY
    suggested: NDArray[np.int64] = _NOBODY
    votes: NDArray[np.int64] = _NOBODY
    method: str = ""
    num_judged: int = 0

    def __repr__(self) -> str:
        if self.reason:
            return f"Suspects(none: {self.reason})"
        some = ", ".join(map(str, self.indices[:8])) + (", ..." if len(self.indices) > 8 else "")
        if self.method == MIRROR:
            return f"Suspects({len(self.indices)} samples, about {self.precision:.0%} of them wrong: {some})"
        share = len(self.indices) / max(1, self.num_judged)
        return f"Suspects({len(self.indices)} samples, {share:.1%} of those judged: {some})"

    def _repr_html_(self) -> str:
        """The most suspect samples, for a notebook."""
        rows = zip(self.indices, self.mean_loss, self.score, self.why, strict=True)
        return html_table(repr(self), ("sample", "mean loss", "score", "why"), list(rows)[:MOST_SHOWN])


class Ranking(NamedTuple):
    """Samples in the order of suspicion, which is not a verdict.

    Attributes:
        indices: int64[K], most suspect first.
        mean_loss: float32[K], mean loss of each over the run.
        given, suggested, votes: int64[K], as in `Suspects`.
    """

    indices: NDArray[np.int64]
    mean_loss: NDArray[np.float32]
    given: NDArray[np.int64]
    suggested: NDArray[np.int64]
    votes: NDArray[np.int64]


def find_suspects(
    records: Any,
    untrained_loss: float,
    *,
    exact: bool,
    by_group: bool = False,
    evidence: Any = None,
    precision: float = 0.5,
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
        evidence: The fields of `EVIDENCE` by name, N each; None without predictions.
        precision: Least share of the list to be wrong, as estimated, in (0, 1).

    Source: the mean loss ranks wrong labels as well as the area under the margin of Pleiss et al. (arXiv:2001.10528);
    that and the two components are measured in ``benchmarks/suspects.py``, the margins in ``benchmarks/labels.py``.
    """
    if not exact:
        return _none("per-sample losses are needed: report a vector of losses.")
    known, shown = Columns.of(records, "usage_count"), None if evidence is None else Columns.of(evidence, "visits")
    num_judged = _num_judged(known, "usage_count")
    if not num_judged:
        return _none(f"too early: samples are judged from {LEAST_USES} uses on.")
    by_humps = partial(_by_humps, known, num_judged, untrained_loss, by_group, precision)
    if shown is None:
        found = by_humps(is_strict=precision > 0.5)
    else:
        found = _by_mirror(known, shown, untrained_loss, by_group, precision)
        if found.reason:
            # So few tell nothing against the losses.
            are_few = _num_positive(shown) < LEAST_POSITIVE
            apart = by_humps(is_strict=True, least=0.0 if are_few else FAR_APART)
            found = apart if are_few or not apart.reason else found
    given, suggested, votes = _suggestions(shown, found.indices)
    if shown is not None and found.method == MIRROR:
        num_judged = _num_judged(shown, "visits")
    return found._replace(given=given, suggested=suggested, votes=votes, num_judged=num_judged)


def _num_judged(columns: Columns, field: str) -> int:
    """Number of samples that were visited often enough to be judged."""
    return sum(int(np.count_nonzero(some[field] >= LEAST_USES)) for _, some in columns.blocks(field))


def _num_positive(evidence: Columns) -> int:
    """Number of samples for which the model prefers another class, among those that models are fitted to."""
    some = _part_of(evidence, "margin", "early")
    return int(np.count_nonzero(some[margin_field(some)] > 0))


def _part_of(columns: Columns, *fields: str) -> Fields:
    """Return some fields of the samples that models are fitted to: all, or a part if there are many."""
    size = len(columns)
    return columns.read(*fields, where=None if size <= MOST_FITTED else spread(size, MOST_FITTED // 4))


def _by_humps(
    records: Columns,
    num_judged: int,
    untrained_loss: float,
    by_group: bool,
    precision: float,
    *,
    is_strict: bool,
    least: float = 0.0,
) -> Suspects:
    """The samples of the higher component; none unless the components are as far apart as ``least``, by Ashman's D."""
    if not untrained_loss > 0:
        return _none(f"the loss of an untrained model must be > 0 to compare with, got {untrained_loss:.3g}.")
    part = _part_of(records, "mean", "usage_count", *(["group"] if by_group else []))
    suspicion = Suspicion.of(part["mean"], part["usage_count"], untrained_loss)
    if suspicion is None or suspicion.humps.separation < least:
        return _none("no group of samples stands apart from the others and is worse than an untrained model.")
    every, mean = _chosen(records, ("mean", "usage_count"), suspicion.flags)
    # The score never falls with the mean loss.
    order = falling_order(mean)
    every, score = every[order], suspicion.score(mean[order])
    if by_group:
        is_left = ~are_spared(records.read("group", where=every)["group"], part["group"])
        every, score = every[is_left], score[is_left]
    share, surely = len(every) / num_judged, np.count_nonzero(score > SURE) / num_judged
    indices = _longest(every, score, precision)
    score = score[: len(indices)]
    if not len(indices):
        return _none("no sample is more likely wrong than learnt.")
    # The upper component takes some right labels, too, which its scores do not show.
    sure = min(float(score.mean()), 1 - (TAIL * num_judged + is_strict) / len(indices))
    if is_strict and sure < precision:
        return _none("too few samples stand apart from the others for the precision asked for.")
    not_fine = float((suspicion.score(part["mean"]) > 1 - SURE)[part["usage_count"] >= LEAST_USES].mean())
    found = _found(records, indices, score, untrained_loss, HUMPS)
    return found._replace(
        precision=max(0.0, sure), noise_rate=share, noise_range=(min(surely, share), max(not_fine, share))
    )


def _chosen(
    columns: Columns, fields: tuple[str, str], choose: Callable[..., NDArray[np.bool_]]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return int64[K], the samples that ``choose`` selects by two of their fields, in order, and their first field."""
    places, values = [], []
    for start, some in columns.blocks(*fields):
        chosen = np.flatnonzero(choose(*(some[field] for field in fields)))
        places.append(chosen + start)
        values.append(some[fields[0]][chosen])
    return np.concatenate(places), np.concatenate(values)


def _longest(indices: NDArray[np.int64], score: NDArray[np.float64], precision: float) -> NDArray[np.int64]:
    """Return the longest prefix of a list, sorted by falling score, whose mean score is at least ``precision``."""
    enough = np.flatnonzero(np.cumsum(score) >= precision * np.arange(1, len(score) + 1))
    return indices[: int(enough[-1]) + 1] if len(enough) else indices[:0]


def _by_mirror(
    records: Columns, evidence: Columns, untrained_loss: float, by_group: bool, precision: float
) -> Suspects:
    """Return the samples whose margins cannot come from right labels; of many samples, only some are fitted."""
    part = _part_of(evidence, "margin", "early", "visits", "given")
    field = margin_field(part)
    judged = np.flatnonzero(part["visits"] >= LEAST_USES)
    group = (_part_of(records, "group")["group"] if by_group else part["given"])[judged].astype(np.int64)
    margin, mirror, chosen = mirror_margins(part[field][judged].astype(np.float64), group, precision)
    if mirror is None or not len(chosen):
        return _none("no more samples look wrong than hard ones with right labels would explain.")
    score, least = mirror.score(margin), margin[chosen[-1:]]
    indices, scores = judged[chosen], score[chosen]
    if len(part["visits"]) < len(evidence):
        named = (records, "group") if by_group else (evidence, "given")
        indices, high = _above(evidence, field, least, *named, group)
        scores = mirror.score(margin, high)
    careful = Mirror.of(margin, caution=3.0)
    low = 0.0 if careful is None else float(careful.score(margin).mean())
    return _found(records, indices, scores, untrained_loss, MIRROR)._replace(
        precision=max(0.0, 1 - float(mirror.expected(margin, least)[0]) / len(chosen)),
        noise_rate=float(score.mean()),
        noise_range=(low, float((margin > 0).mean())),
    )


def _above(
    evidence: Columns, field: str, least: NDArray[np.float64], named: Columns, name: str, groups: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """int64[K] and float64[K], all samples with at least this margin but those of groups with too many, and margins."""
    indices, high = _chosen(evidence, (field, "visits"), lambda margin, n: (margin >= least) & (n >= LEAST_USES))
    order = falling_order(high)
    indices, high = indices[order], high[order]
    is_left = ~are_spared(named.read(name, where=indices)[name], groups)
    return indices[is_left], high[is_left].astype(np.float64)


def margin_field(evidence: Any) -> str:
    """The field of the evidence by which labels are judged.

    Mean margins: those in which late visits count more, unless the labels are being memorised.
    """
    return "early" if _is_fading(evidence) else "margin"


def _is_fading(evidence: Any) -> bool:
    """Whether late visits no longer show what early ones did, as when a network learns the labels by heart."""
    early = evidence["early"]
    positive = early[early > 0]
    if not len(positive):
        return False
    high = np.quantile(positive, HIGH_EARLY)
    return bool(np.count_nonzero(evidence["margin"] > high) < FADED * np.count_nonzero(positive > high))


def mirror_margins(
    margin: NDArray[np.float64], group: NDArray[np.int64], precision: float
) -> tuple[NDArray[np.float64], Mirror | None, NDArray[np.int64]]:
    """The margins, their mirror, and the positions of the suspects, int64[K], highest margin first."""
    mirror = Mirror.of(margin)
    flagged = np.zeros(len(margin), bool)
    if mirror is not None:
        flagged[mirror.longest(margin, precision)] = True
        if flagged.any():
            spare(flagged, margin.astype(np.float32), group)
    chosen = np.flatnonzero(flagged)
    return margin, mirror, chosen[np.argsort(-margin[chosen], kind="stable")]


def _found(
    records: Columns, indices: NDArray[np.int64], score: NDArray[np.float64], untrained_loss: float, method: str
) -> Suspects:
    known = records.read("last", "mean", where=indices)
    why = _why(known["last"], known["mean"], untrained_loss)
    precision = float(score.mean())
    unknown = (math.nan, math.nan)
    return Suspects(indices, known["mean"], score, why, math.nan, unknown, "", precision, method=method)


def _suggestions(
    evidence: Columns | None, indices: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """int64[K] three times: labels of samples, the classes predicted in their place, and the votes for these."""
    unknown = np.full(len(indices), -1)
    if evidence is None:
        return unknown, unknown, np.zeros(len(indices), np.int64)
    known = evidence.read("lead", "visits", "given", "leader", where=indices)
    votes = votes_of(known)
    given = np.where(known["visits"] > 0, known["given"].astype(np.int64), -1)
    return given, np.where(votes > 0, known["leader"].astype(np.int64), -1), votes


def rank(records: Any, evidence: Any, top: int) -> Ranking:
    """Order the seen samples by suspicion: by their mean margins if predictions are known, else by their mean losses.

    Args:
        records: Fields mean float32[N] and usage_count uint16[N].
        evidence: The fields of `EVIDENCE` by name, N each; None without predictions.
        top: Most samples to return.
    """
    known, shown = Columns.of(records, "usage_count"), None if evidence is None else Columns.of(evidence, "visits")
    field, uses = (
        ("mean", "usage_count") if shown is None else (margin_field(_part_of(shown, "margin", "early")), "visits")
    )
    blocks = (known if shown is None else shown).blocks(field, uses, least=top)
    order = top_of(((start, np.where(some[uses] > 0, some[field], np.float32("nan"))) for start, some in blocks), top)
    return Ranking(order, known.read("mean", where=order)["mean"], *_suggestions(shown, order))


def _why(last: NDArray[np.float32], mean: NDArray[np.float32], untrained_loss: float) -> tuple[str, ...]:
    texts = np.array([MEMORISED, RISING, ALWAYS_HIGH], object)
    known = np.where(last < untrained_loss / 2, 0, np.where(last / 1.2 > mean, 1, 2))
    return tuple(texts[known].tolist())


def _none(reason: str) -> Suspects:
    nothing = np.empty(0)
    return Suspects(
        nothing.astype(np.int64), nothing.astype(np.float32), nothing, (), math.nan, (math.nan, math.nan), reason
    )
