"""Samples that refused batches have in common are found, excluded, named, saved, and released on request."""

import json
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learnit_r8 import R8Scheduler, events
from learnit_r8.engine.settings import grouped
from learnit_r8.events.bus import Announcer
from learnit_r8.recovery.quarantine import Quarantine
from learnit_r8.table.table import SampleTable
from learnit_r8.testing import record_events
from tests.drive import NAN, make, steps
from tests.softmax import SoftmaxRegression

BAD = 123
pytestmark = pytest.mark.filterwarnings("ignore:samples? .* in no good one since", "ignore:more than half of the last")


def watch(num_samples=2000, **more):
    table, heard = SampleTable(num_samples, batch_size=32), record_events()
    return Quarantine(table.storage, Announcer([heard], lambda: (0, 0.0)), **more), table, heard


def fit(*, exact=False, bad=(BAD,), epochs=12, policy="balanced", model=None, **more):
    """A softmax regression on the digits in which the losses of some samples are never finite."""
    model, heard, drawn = model or SoftmaxRegression(), record_events(), []
    r8 = R8Scheduler(
        len(model.y), batch_size=32, num_epochs=epochs, initial_lr=0.5, state_callback=model.get,
        load_callback=model.load, listeners=[heard], policy=policy, **grouped(more),
    )  # fmt: skip
    for epoch, indices, lr in steps(r8):
        losses = model.forward(indices)
        losses[np.isin(indices, bad)] = NAN
        drawn.append((epoch, indices.copy()))
        if r8.update_with_loss(losses if exact else losses.mean()):
            model.step(lr)
    return r8, model, heard, drawn


@pytest.mark.parametrize(("count", "is_refused"), [(2, True), (1, False), (0, False)])
def test_a_loss_that_a_hard_batch_may_have_is_refused_if_a_sample_is_suspected_twice(count, is_refused):
    """It clears nobody either; a bad sample of which some batches are less bad would be trained on."""
    model, outcomes = SoftmaxRegression(), []
    r8 = R8Scheduler(
        len(model.y), batch_size=32, num_epochs=6, initial_lr=0.5, state_callback=model.get, load_callback=model.load
    )
    for _, indices, lr in steps(r8):
        loss, suspect = model.forward(indices).mean(), int(indices[0])
        is_bad = r8.global_step == 200 and not outcomes
        if is_bad:
            r8.controller.quarantine.counts = {suspect: count} if count else {}
            loss = 31.0 * max([*r8.controller.lineage.progress.recent][-8:])
        outcome = r8.update_with_loss(loss)
        if is_bad:
            outcomes.append(bool(outcome))
            assert bool(count) is (suspect in r8.controller.quarantine.counts)
        if outcome:
            model.step(lr)

    assert outcomes == [not is_refused]


def test_most_losses_of_a_batch_accuse_no_sample_of_it():
    """Where most losses of a batch are not finite, and not all, as with damaged weights and dropout, no sample is to
    blame, even if some of them are in the next such batch, too."""
    model, hit = SoftmaxRegression(), set()
    r8 = R8Scheduler(
        len(model.y), batch_size=32, num_epochs=6, initial_lr=0.5, state_callback=model.get, load_callback=model.load
    )
    for _, indices, lr in steps(r8):
        losses = model.forward(indices)
        if r8.global_step == 100 or (len(hit) == 26 and hit & set(indices.tolist())):
            again = sorted(indices.tolist(), key=lambda sample: sample not in hit)[:26]
            losses[np.isin(indices, again)] = NAN
            hit |= set(again)
        if r8.update_with_loss(losses):
            model.step(lr)

    assert r8.sentry.num_refused == 2
    assert len(r8.table.quarantined) == 0


@pytest.mark.parametrize(("exact", "policy"), [(False, "balanced"), (False, "quartile"), (True, "shuffle")])
def test_one_bad_sample_costs_one_sample(exact, policy):
    """A sample whose loss is never finite is found and not drawn any more; nothing is restored, no rate lowered."""
    r8, model, heard, drawn = fit(exact=exact, policy=policy)
    [found] = heard.of(events.SamplesQuarantined)
    later = [indices for epoch, indices in drawn if epoch > found.step // r8.steps_per_epoch]

    assert found.samples == (BAD,)
    assert r8.table.quarantined.tolist() == [BAD]
    assert later
    assert not any(BAD in indices for indices in later)
    assert not heard.of(events.RolledBack, events.LrCapped)
    assert model.accuracy > 0.9
    assert "in quarantine: sample 123" in r8.summary()


@pytest.mark.parametrize(("exact", "share"), [(False, 0.005), (True, 0.1)])
def test_many_bad_samples(exact, share):
    """Half a percent of bad samples by means, a tenth by their own losses: all are found, no good one, none in vain."""
    count = int(1797 * share)
    bad = np.random.default_rng(0).choice(1797, count, replace=False)
    r8, model, heard, _ = fit(exact=exact, bad=bad, epochs=14)

    assert set(r8.table.quarantined.tolist()) <= set(bad.tolist())
    assert len(r8.table.quarantined) > 0.8 * count
    assert not heard.of(events.RolledBack)
    assert model.accuracy > 0.9


def test_epochs_keep_their_size():
    """An epoch has as many steps and samples as without the quarantine, and each other sample is used once."""
    r8, _, heard, drawn = fit(epochs=12)
    [found] = heard.of(events.SamplesQuarantined)
    last = [indices for epoch, indices in drawn if epoch == 11]
    counts = np.bincount(np.concatenate(last), minlength=1797)

    assert found.step < 11 * r8.steps_per_epoch
    assert [len(indices) for indices in last] == [32] * 56 + [5]
    assert counts[BAD] == 0
    assert sorted(counts)[1:] == [1] * 1795 + [2]


def test_isolated_fault_quarantines_nobody():
    """One isolated NaN quarantines no sample, and none is watched an epoch later."""
    heard = record_events()
    r8 = make(640, batch_size=32, num_epochs=6, listeners=[heard])

    def run():
        for _, indices, _ in steps(r8):
            r8.update_with_loss(NAN if r8.global_step == 30 else 1.0 + indices.mean() / 1e4)

    with pytest.warns(RuntimeWarning, match="nothing to restore"):
        run()

    assert not heard.of(events.SamplesQuarantined)
    assert len(r8.table.quarantined) == len(r8.table.storage.exclusions.watched) == 0


def test_release():
    """A released sample is drawn again; releasing one that is not in quarantine raises and changes nothing."""
    r8, _, _, _ = fit()
    heard = []
    r8.host.announcer.add(heard.append)
    with pytest.raises(ValueError, match=r"indices must be in quarantine \(\[123\]\), got \[7\] that are not"):
        r8.release([BAD, 7])
    with pytest.raises(TypeError, match=r"indices must be whole numbers, positions of samples, got 'x'"):
        r8.release("x")
    assert r8.table.quarantined.tolist() == [BAD]
    r8.release(BAD)

    assert r8.table.quarantined.tolist() == []
    assert [event.samples for event in heard] == [(BAD,)]


def test_release_of_one_keeps_the_others():
    """Whoever is not released stays in quarantine."""
    _, table, _ = watch()
    table.storage.exclusions.quarantine(np.array([3, 5, 8]))
    table.storage.exclusions.release(np.array([5]))

    assert table.quarantined.tolist() == [3, 8]


def test_own_loss_needs_two_batches():
    """A sample whose own loss was not finite twice is bad; the others of its batch are cleared at once."""
    quarantine, table, _ = watch()
    batch = np.arange(32)
    quarantine.refused(batch, (5,))
    assert (quarantine.suspects, len(table.quarantined)) == ((5,), 0)
    quarantine.refused(batch, (5,))

    assert table.quarantined.tolist() == [5]


def test_only_sole_suspects_are_convicted_by_means():
    """By means, a sample is bad only if the other samples of its refused batches were cleared by good ones."""
    quarantine, table, _ = watch()
    for _ in range(9):
        quarantine.refused(np.arange(32), ())
    assert not len(table.quarantined)
    quarantine.cleared(np.arange(1, 2000))

    assert quarantine.suspects == (0,)


def test_passing_faults_are_no_evidence():
    """A suspect of several refused batches is not found bad while batches of known good samples fail as often."""
    quarantine, table, _ = watch()
    table.storage.records.whole["usage_count"][1:], table.storage.num_seen = 1, 1999
    for _ in range(9):
        quarantine.refused(np.arange(32), ())
        quarantine.refused(np.arange(32, 64), ())
        quarantine.cleared(np.arange(32, 64))

    assert (quarantine.suspects, len(table.quarantined)) == ((0,), 0)


def test_good_batch_clears():
    """A sample that was in a good batch since is no suspect any more."""
    quarantine, _, _ = watch()
    quarantine.refused(np.arange(32), ())
    quarantine.cleared(np.arange(10))

    assert quarantine.suspects == tuple(range(10, 32))
    assert quarantine.counts


def test_random_refusals_convict_hardly_anybody():
    """Refusals of random batches convict at most one sample in a hundred runs."""
    rng = np.random.default_rng(1)
    convicted = 0
    for _ in range(100):
        quarantine, table, _ = watch(640)
        for _ in range(200):
            batch = rng.choice(640, 32, replace=False)
            if rng.random() < 0.05:
                quarantine.refused(batch, ())
            else:
                quarantine.cleared(batch)
        convicted += len(table.quarantined)

    assert convicted <= 1


@given(st.lists(st.tuples(st.lists(st.integers(0, 49), min_size=1, max_size=8), st.integers(0, 8)), max_size=60))
def test_never_exceeds_its_share(script):
    """Whatever is refused and cleared, no more than the share of all samples is in quarantine."""
    quarantine, table, _ = watch(50, most_share=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for samples, accused in script:
            batch = np.array(samples)
            if accused == 8:
                quarantine.cleared(batch)
            else:
                quarantine.refused(batch, samples[:accused])

    assert len(table.quarantined) <= 5
    assert not set(quarantine.suspects) & set(table.quarantined.tolist())


def test_full_quarantine_is_said_once():
    """Beyond its share nothing is quarantined, and one warning says so."""
    quarantine, table, _ = watch(100, most_share=0.05)

    def accuse():
        for _ in range(2):
            for sample in range(10):
                quarantine.refused(np.array([sample, 99]), (sample,))

    with pytest.warns(RuntimeWarning) as caught:
        accuse()

    assert len(table.quarantined) == 5
    assert sum("more than 5% of the samples would be in quarantine" in str(w.message) for w in caught) == 1


@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=8), max_size=20))
def test_state(batches):
    """Saved and loaded at any time, a quarantine has the same suspects and comes to the same decisions."""
    quarantine, _, _ = watch(100)
    for number, batch in enumerate(batches):
        quarantine.refused(np.array(batch), ()) if number % 2 else quarantine.cleared(np.array(batch))
    state, (other, _, _) = quarantine.state_dict(), watch(100)
    other.load_state_dict(state | {"clean": json.loads(json.dumps(state["clean"]))})

    assert other.suspects == quarantine.suspects
    assert other.counts == quarantine.counts
    assert repr(other.state_dict()) == repr(state)


def test_names():
    """Eight samples are named as in sample_ids, the rest is counted."""
    table = SampleTable(100, batch_size=4, sample_ids=[f"img{number}.png" for number in range(100)])
    quarantine = Quarantine(table.storage, Announcer([], lambda: (0, 0.0)))

    assert quarantine.named([7]) == "sample 'img7.png'"
    assert quarantine.named(range(10)).endswith("'img7.png' and 2 more")
