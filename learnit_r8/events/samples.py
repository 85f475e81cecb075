"""The survey of the samples."""

from __future__ import annotations

from dataclasses import dataclass

from .event import Event


@dataclass(frozen=True)
class SamplesSurveyed(Event):
    """Statistics of the sample table, at the end of an epoch and every few seconds.

    Only made if a listener has a true attribute ``wants_surveys``. Rows of quartiles are Q1 (lowest loss) to Q4.

    Attributes:
        epoch: The current epoch, 0-based.
        epoch_ended: Whether an epoch has just ended.
        source: Source of the losses of samples: "exact", "parts of 4", "batch means of 32".
        trust: How far to trust them: "exact", "fair" or "rough".
        num_read: Number of samples in the survey; fewer than N where a scan would cost too much.
        num_seen: Number of them that were seen at least once.
        low: Lowest loss of each quartile; empty while fewer than four samples were seen, as are all rows.
        high: Highest loss of each.
        mean: Mean loss of each.
        share: Share of the seen samples in each.
        uses: Mean number of times its samples were learned from.
        batch_share: Share of the last batch in each quarter that it was planned with; empty if unknown.
        loss_range: Lowest and highest loss of the histogram.
        loss_is_log: Whether its bins are of equal ratio, not of equal width.
        loss_counts: Samples in its bins; the first holds those below and the last those above, too.
        uses_range: Lowest and highest use.
        uses_counts: Samples in bins of equal width between them.
        hardest: Positions of the samples with the highest loss, highest first; at most 50.
        hardest_names: Their names.
        hardest_loss: Their loss.
        hardest_last: Their last observation.
        hardest_uses: Number of times each was learned from.
        hardest_history: Their losses at the ends of the last epochs, oldest first; NaN where unknown.
        hardest_suspected: Whether each is a suspect, listed or not.
        suspects: Positions of samples that look mislabelled, most suspect first; at most 50.
        suspect_names: Their names.
        suspect_loss: Their mean loss over the run.
        suspect_uses: Number of times each was learned from.
        suspect_history: Like that of the hardest.
        suspect_score: Certainty that each is not one of the learnt samples, in [0, 1].
        suspect_why: "always high", "rising" or "memorised".
        num_suspects: Number of all suspects.
        noise_rate: Estimated share of wrong labels; NaN if unknown.
        no_suspects: Reason why there are no suspects; "" if there are some.
        suspect_given: The label that each suspect was trained on; empty where unknown.
        suspect_suggested: The label that each should have, "" where unknown; empty without predictions.
        num_judged: Number of samples in the survey that were visited often enough to be suspected; 0 if unknown.
    """

    epoch: int
    epoch_ended: bool
    source: str
    trust: str
    num_read: int
    num_seen: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: tuple[float, ...]
    share: tuple[float, ...]
    uses: tuple[float, ...]
    batch_share: tuple[float, ...]
    loss_range: tuple[float, ...]
    loss_is_log: bool
    loss_counts: tuple[int, ...]
    uses_range: tuple[int, ...]
    uses_counts: tuple[int, ...]
    hardest: tuple[int, ...]
    hardest_names: tuple[str, ...]
    hardest_loss: tuple[float, ...]
    hardest_last: tuple[float, ...]
    hardest_uses: tuple[int, ...]
    hardest_history: tuple[tuple[float, ...], ...]
    hardest_suspected: tuple[bool, ...]
    suspects: tuple[int, ...]
    suspect_names: tuple[str, ...]
    suspect_loss: tuple[float, ...]
    suspect_uses: tuple[int, ...]
    suspect_history: tuple[tuple[float, ...], ...]
    suspect_score: tuple[float, ...]
    suspect_why: tuple[str, ...]
    num_suspects: int
    noise_rate: float
    no_suspects: str
    suspect_given: tuple[str, ...] = ()
    suspect_suggested: tuple[str, ...] = ()
    num_judged: int = 0


MOST_GROUPS = 256
"""Groups in an event; of more the largest."""


@dataclass(frozen=True)
class GroupsMeasured(Event):
    """The mean loss of each group of ``groups=``, from the sample table: at the end of an epoch and every 30 seconds.

    Attributes:
        epoch: The current epoch, 0-based.
        source: Source of the losses of samples: "exact", "parts of 4", "batch means of 32".
        names: The groups; of more than 256 those with the most samples.
        counts: Samples in each.
        means: Mean loss of those of them that were learned from; NaN without any.
        num_groups: Number of all groups.
    """

    epoch: int
    source: str
    names: tuple[str, ...]
    counts: tuple[int, ...]
    means: tuple[float, ...]
    num_groups: int


def count_text(num_suspects: int, num_judged: int) -> str:
    """The number of suspects and their share of the samples judged, as every view of a run says it.

    >>> count_text(175, 1400)
    '175 of 1,400 judged look mislabelled (12.5%)'
    """
    judged = f" of {num_judged:,} judged" if num_judged else " samples"
    share = f" ({num_suspects / num_judged:.1%})" if num_judged else ""
    return f"{num_suspects:,}{judged} look mislabelled{share}"
