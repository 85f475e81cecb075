"""The evidence about every label: learned with the losses, and treated as they are in whatever happens to a run."""

import itertools

import numpy as np
import pytest

from learnit_r8 import Predictions, R8Scheduler, predictions_of
from learnit_r8.engine.settings import grouped
from learnit_r8.table.labels.evidence import EARLY, EVIDENCE, HIGHEST, LATENESS, learn, votes_of
from learnit_r8.table.records import MOST_USES

CLASSES = 5
GIVEN = np.random.default_rng(2).integers(0, CLASSES, 100)


def scheduler(**settings):
    return R8Scheduler(100, **grouped({"batch_size": 8, "num_epochs": EARLY + 2, "policy": "shuffle", **settings}))


def logits_of(indices, step):
    return np.random.default_rng([5, step]).normal(size=(100, CLASSES))[indices].astype(np.float32)


def report(r8, ticket, loss=None, **changes):
    predictions = predictions_of(logits_of(ticket.indices, ticket.step), GIVEN[ticket.indices])._replace(**changes)
    loss = np.ones(len(ticket.indices), np.float32) if loss is None else loss
    return r8.report(ticket, loss, predictions=predictions)


def train(r8, steps):
    for _ in range(steps):
        report(r8, r8.draw())


def evidence_of(r8):
    r8.table.learner.hand_over()
    return r8.table.storage.evidence.whole


def slow(visits, given):
    """The record of a sample: its visits' (margin, predicted), one after the other."""
    margins = np.array([margin for margin, _ in visits], np.float64)
    is_right = [predicted == given for _, predicted in visits]
    forgotten = sum(before and not after for before, after in itertools.pairwise(is_right))
    rest = visits[-1][1], 1 + is_right.index(True) if any(is_right) else 0, forgotten
    weights = [np.prod([number + k for k in range(LATENESS)]) for number in range(1, len(visits) + 1)]
    leader, lead = 0, 0
    for number, (_, predicted) in enumerate(visits, start=1):
        if predicted == given:
            continue
        lead += number if predicted == leader else -number
        if lead < 0:
            leader, lead = predicted, -lead
    early = np.average(margins[:EARLY], weights=weights[:EARLY])
    means = np.average(margins, weights=weights), early, margins.mean(), margins.var(), margins[-1]
    return means, (len(visits), given, leader, lead, *rest)


@pytest.mark.parametrize("num_unlabelled", [1, 8])
def test_samples_without_a_label_are_not_judged(num_unlabelled):
    """Of samples with -1 for a label only the loss is learned; the others of their batch, and later visits, count."""
    r8 = scheduler()
    ticket = r8.draw()
    given = np.where(np.arange(8) < num_unlabelled, -1, GIVEN[ticket.indices])
    report(r8, ticket, given=given)
    evidence = evidence_of(r8)[ticket.indices]

    assert evidence["visits"].tolist() == (given >= 0).tolist()
    assert r8.table.usage_count[ticket.indices].tolist() == [1] * 8
    while r8.current_epoch < 2:
        train(r8, 1)
    assert evidence_of(r8)[ticket.indices]["visits"].tolist() == (1 + (given >= 0)).tolist()
    np.testing.assert_array_equal(r8.table.given, GIVEN)


@pytest.mark.parametrize("last_batch", ["short", "fill", "drop"])
def test_every_visit_is_learned_once(last_batch):
    """The mean margins and votes are those of learning each report as it comes, also of a batch that is filled up."""
    r8, visits = scheduler(last_batch=last_batch), {}
    for _ in range(r8.total_steps):
        ticket = r8.draw()
        found = predictions_of(logits_of(ticket.indices, ticket.step), GIVEN[ticket.indices])
        members = ticket.indices
        if last_batch == "fill" and (ticket.step + 1) % r8.steps_per_epoch == 0:
            members = members[: 100 % 8]
        for index, *visit in zip(members.tolist(), found.margin, found.predicted, strict=False):
            visits.setdefault(index, []).append(visit)
        report(r8, ticket)
    whole = evidence_of(r8)

    for index, seen in visits.items():
        margin, early, *counts, mean, variance, last, predicted, learned, forgotten = whole[index].tolist()
        means, expected = slow(seen, GIVEN[index])
        np.testing.assert_allclose([margin, early, mean, variance], means[:4], rtol=1e-4, atol=1e-5)
        assert last == np.float16(means[4])
        assert (*counts, predicted, learned, forgotten) == expected


def test_a_corrected_label_starts_anew():
    """What was predicted while the sample had another label says nothing about the new one."""
    records = np.zeros(2, EVIDENCE)
    for _ in range(3):
        learn(records, np.array([[1.0, 2.0], [0, 3], [4, 4]], np.float32))
    learn(records, np.array([[-5.0, 2.0], [2, 3], [2, 4]], np.float32))

    assert records[0].tolist() == (-5, -5, 1, 2, 0, 0, -5, 0, -5, 2, 1, 0)
    assert records["visits"][1] == 4


def test_extreme_margins_are_clipped():
    """One visit with an infinite or undefined margin does not outweigh all others; counts do not wrap around."""
    records = np.zeros(3, EVIDENCE)
    records["visits"] = records["lead"] = records["forgotten"] = MOST_USES
    records["leader"] = 1
    learn(records, np.array([[np.inf, np.nan, -np.inf], [1, 1, 1], [0, 0, 0]], np.float32))

    assert np.isfinite(records["margin"]).all()
    assert np.abs(records["margin"]).max() <= HIGHEST
    assert (records["visits"] == MOST_USES).all()
    assert (records["lead"] == MOST_USES).all()
    assert (records["forgotten"] == MOST_USES).all()


def test_votes_are_a_lower_bound():
    """Whatever a sample is predicted as, its suggestion has had at least the votes that are reported."""
    rng = np.random.default_rng(8)
    records, counts = np.zeros(500, EVIDENCE), np.zeros((500, CLASSES), int)
    for _ in range(90):
        predicted = rng.choice(CLASSES, 500, p=[0.1, 0.6, 0.1, 0.1, 0.1])
        counts[np.arange(500), predicted] += 1
        learn(records, np.stack([np.ones(500), predicted, np.zeros(500)]).astype(np.float32))
    votes = votes_of(records)

    assert (votes <= counts[np.arange(500), records["leader"]]).all()
    assert (records["leader"] == 1).mean() > 0.95
    assert votes.mean() > 5


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"margin": np.ones(3)}, ValueError, r"predictions.margin must have shape \(8,\)"),
        ({"predicted": np.full(8, CLASSES)}, ValueError, r"predictions.predicted must hold whole numbers in \[0, 5\)"),
        ({"given": np.full(8, -2)}, ValueError, r"predictions.given must hold whole numbers in \[-1, 5\)"),
        ({"given": np.full(8, 0.5)}, ValueError, r"predictions.given must hold whole numbers"),
        ({"given": np.full(8, np.nan)}, ValueError, r"predictions.given must hold whole numbers"),
        ({"given": np.array(["a"] * 8)}, TypeError, "predictions must hold real numbers"),
        ({"num_classes": 0}, ValueError, r"num_classes must be a whole number in \[1, 65535\], got 0"),
        ({"num_classes": 9}, ValueError, "num_classes must stay 5, as reported first, got 9"),
    ],
)
def test_wrong_predictions_change_nothing(changes, error, text):
    """The report is refused with what is wrong, and may be repeated with what is right."""
    r8 = scheduler()
    train(r8, 3)
    before, ticket = evidence_of(r8).copy(), r8.draw()

    with pytest.raises(error, match=text):
        report(r8, ticket, **changes)
    assert (evidence_of(r8) == before).all()
    assert r8.global_step == 3
    assert report(r8, ticket)


def test_predictions_must_be_predictions():
    """A bare array is no report of predictions."""
    r8 = scheduler()

    with pytest.raises(TypeError, match="predictions must be Predictions"):
        r8.report(r8.draw(), np.ones(8), predictions=np.ones(8))


@pytest.mark.parametrize(("loss", "settings"), [(1.0, {}), (np.ones(4), {"part_size": 2})])
def test_means_cannot_be_judged(loss, settings):
    """With batch means or means of parts nobody knows whose label is wrong: predictions are refused with the reason."""
    r8 = scheduler()
    ticket = r8.draw()
    predictions = predictions_of(logits_of(ticket.indices, 0), GIVEN[ticket.indices])

    with pytest.raises(ValueError, match="predictions need one loss for each sample"):
        r8.report(ticket, loss, predictions=predictions, **settings)
    assert r8.report(ticket, loss, **settings)


def test_single_samples_are_learned():
    """With one sample a batch, its loss may come without a dimension."""
    r8 = scheduler(batch_size=1)
    ticket = r8.draw()
    r8.report(ticket, 1.0, predictions=Predictions([0.5], [1], [0], CLASSES))

    assert evidence_of(r8)["visits"][ticket.indices].tolist() == [1]


def test_refused_losses_take_their_predictions_with_them():
    """What a broken model predicts is no evidence."""
    r8 = scheduler()
    train(r8, 10)
    before, ticket = evidence_of(r8).copy(), r8.draw()
    with pytest.warns(RuntimeWarning, match="nothing to restore the model from"):
        report(r8, ticket, np.full(8, np.nan))

    assert (evidence_of(r8) == before).all()


def test_reports_may_come_without_predictions():
    """Batches with and without predictions mix; a late batch is learned as well."""
    r8 = scheduler()
    first, second = r8.draw(), r8.draw()
    r8.report(second, np.ones(8))
    third = r8.draw()
    report(r8, third)
    report(r8, first)
    uses = evidence_of(r8)["visits"]

    assert uses[first.indices].all()
    assert uses[third.indices].all()
    assert not uses[second.indices].any()


def test_update_with_loss_takes_predictions():
    """The shortest loop reports them with its losses."""
    r8 = scheduler()
    for _ in r8.epoch_iterator():
        for indices, _ in r8.batch_iterator():
            predictions = predictions_of(logits_of(indices, 0), GIVEN[indices])
            r8.update_with_loss(np.ones(len(indices)), predictions=predictions)
    predicted = logits_of(np.arange(100), 0).argmax(1)

    assert (r8.table.given == GIVEN).all()
    assert (r8.table.suggested == np.where(predicted == GIVEN, -1, predicted)).all()


@pytest.mark.parametrize("in_background", [False, True])
def test_a_resumed_run_goes_on_alike(tmp_path, monkeypatch, in_background):
    """A checkpoint in mid-epoch holds the evidence; the run that goes on from it ends as the one that went on."""
    if in_background:
        monkeypatch.setattr("learnit_r8.recovery.persistence.LARGE", 1)
    r8 = scheduler(checkpoint_dir=tmp_path, checkpoint_every=20, keep_checkpoints=1)
    train(r8, 30)
    r8.host.persistence.saver.wait()
    train(r8, 8)
    resumed = scheduler(checkpoint_dir=tmp_path)
    resumed.load_checkpoint()

    assert resumed.global_step == 20
    train(resumed, 18)
    assert (evidence_of(resumed) == evidence_of(r8)).all()


def test_a_state_without_evidence_forgets_it():
    """A state of a run that reported no predictions has none."""
    r8, other = scheduler(), scheduler()
    train(r8, 5)
    r8.load_state_dict(other.state_dict())

    assert r8.table.storage.evidence.whole is None
    train(r8, 5)
    assert evidence_of(r8)["visits"].sum() == 40


def test_evidence_moves_with_its_samples(tmp_path):
    """After a resume with other samples, each has the evidence of the index that it had, and new ones have none."""
    r8 = scheduler(checkpoint_dir=tmp_path)
    train(r8, 20)
    r8.save_checkpoint()
    remap = np.append(np.arange(100)[::-1], -1)
    resumed = R8Scheduler.resume_from_checkpoint(tmp_path, num_samples=101, remap=remap)

    assert (resumed.table.storage.evidence.whole[:100] == evidence_of(r8)[::-1]).all()
    assert resumed.table.storage.evidence.whole[100] == np.zeros((), EVIDENCE)


def test_runs_without_predictions_keep_none():
    """The records take memory only where predictions are reported."""
    r8 = scheduler()
    r8.report(r8.draw(), np.ones(8))

    assert evidence_of(r8) is None
    assert r8.state_dict()["table"]["evidence"] is None
    assert (r8.table.given == -1).all()
    assert (r8.table.suggested == -1).all()


def test_large_tables_queue_their_evidence():
    """While the memory of a large table is not ready, evidence waits with the records, and none is lost."""
    count = 2**19
    r8 = R8Scheduler(count, batch_size=4096, num_epochs=1, policy="shuffle", seed=1)
    for _ in range(8):
        ticket = r8.draw()
        given = ticket.indices % CLASSES
        r8.report(ticket, np.ones(4096), predictions=Predictions(np.ones(4096), given * 0, given, CLASSES))
    whole = evidence_of(r8)

    assert int((whole["visits"] == 1).sum()) == 8 * 4096
    assert (whole["given"][whole["visits"] == 1] == np.flatnonzero(whole["visits"] == 1) % CLASSES).all()
