"""Predictions on several ranks: what each rank's logits say reaches the tables of all."""

import numpy as np
import pytest

from learnit_r8 import predictions_of
from learnit_r8.torch import RanksDiffer, SharedRun
from tests.drive import evidence_of, make, sample_losses
from tests.rank_common import in_threads
from tests.torch.distributed.test_shared_run import raised, shares


def said(indices, step):
    """Predictions of some samples: the same whoever asks."""
    logits = np.sin(np.outer(indices + 1, np.arange(1, 6)) * (1 + step))
    return predictions_of(logits.astype(np.float32), indices % 5)


def alone(num_samples, reports):
    r8 = make(num_samples, batch_size=8, num_epochs=3)
    for _ in r8.epoch_iterator():
        for indices, _ in r8.batch_iterator():
            step = r8.global_step
            predictions = said(indices, step) if reports(step) else None
            r8.update_with_loss(sample_losses(indices), predictions=predictions)
    return r8


@pytest.mark.parametrize("every", [1, 3, 16])
@pytest.mark.parametrize(("num_samples", "size"), [(48, 2), (49, 4), (5, 4)])
def test_evidence_is_that_of_one_process(every, num_samples, size):
    """The evidence of ranks that share batches is that of one process, short and filled-up batches included."""
    expected = evidence_of(alone(num_samples, lambda step: True))

    def job(ranks):
        shared = SharedRun(make(num_samples, batch_size=8, num_epochs=3), ranks, every=every)
        for share in shares(shared):
            shared.report(
                share.ticket, sample_losses(share.indices), predictions=said(share.indices, share.ticket.step)
            )
        return evidence_of(shared.r8).copy()

    for found in in_threads(size, job):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("every", [1, 4])
def test_predictions_may_begin_late_and_pause(every):
    """Steps without predictions in between, on all ranks alike, leave the others as they are."""

    def reports(step):
        return step > 5 and step % 3 > 0

    expected = evidence_of(alone(48, reports))

    def job(ranks):
        shared = SharedRun(make(48, batch_size=8, num_epochs=3), ranks, every=every)
        for share in shares(shared):
            step = share.ticket.step
            predictions = said(share.indices, step) if reports(step) else None
            shared.report(share.ticket, sample_losses(share.indices), predictions=predictions)
        return evidence_of(shared.r8).copy()

    for found in in_threads(2, job):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("reports", "text"),
    [
        (lambda rank, step: rank == 0, "all ranks must report predictions of as many classes"),
        (lambda rank, step: rank == 0 or step != 2, "all ranks must report predictions, or none, got some at step 3"),
    ],
)
def test_predictions_on_one_rank_alone_are_refused(reports, text):
    """A rank that reports none where others do is named, on all ranks, before a table differs."""

    def job(ranks):
        shared = SharedRun(make(48, batch_size=8), ranks, every=4)
        for share in shares(shared):
            step = share.ticket.step
            predictions = said(share.indices, step) if reports(ranks.rank, step) else None
            shared.report(share.ticket, sample_losses(share.indices), predictions=predictions)

    kind, message = raised(in_threads(2, job))
    assert kind is RanksDiffer
    assert text in message


def test_wrong_predictions_are_refused_at_once():
    """A length that does not fit the slice is refused where it is reported, and nothing was noted."""

    def job(ranks):
        shared = SharedRun(make(48, batch_size=8), ranks)
        share = next(iter(shares(shared)))
        shared.report(share.ticket, sample_losses(share.indices), predictions=said(share.indices[:1], 0))

    assert r"predictions.margin must have shape (4,)" in raised(in_threads(2, job))[1]


@pytest.mark.parametrize(
    ("kind", "targets", "text"),
    [
        (
            "multilabel",
            np.zeros((4, 5), int),
            "predictions must be of one class a sample on several ranks, got 5 labels",
        ),
        ("regression", np.zeros(4), "on several ranks, got numbers: report the losses alone there"),
    ],
)
def test_other_kinds_of_labels_are_refused(kind, targets, text):
    """Ranks exchange one class a sample; other kinds say so at the first report."""

    def job(ranks):
        shared = SharedRun(make(48, batch_size=8), ranks)
        share = next(iter(shares(shared)))
        outputs = np.zeros(targets.shape, np.float32)
        shared.report(share.ticket, sample_losses(share.indices), predictions=predictions_of(outputs, targets, kind))

    assert text in raised(in_threads(2, job))[1]
