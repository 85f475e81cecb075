"""Samples that refused batches have in common are found, excluded, named, saved, and released on request."""

import warnings

import numpy as np
import pytest

from learnit_r8 import R8Scheduler, events
from learnit_r8.events.bus import Announcer
from learnit_r8.recovery.quarantine import Evidence, Quarantine
from learnit_r8.table.table import SampleTable
from learnit_r8.testing import record_events
from tests.drive import NAN, make, steps
from tests.softmax import SoftmaxRegression

BAD = 123


def watch(num_samples=2000):
    table, heard = SampleTable(num_samples, batch_size=32), record_events()
    return Quarantine(table, Announcer([heard], lambda: (0, 0.0))), table, heard


def fit(*, exact=False, bad=(BAD,), epochs=12, seed=0, policy="balanced", **more):
    """A softmax regression on the digits in which the losses of some samples are never finite."""
    model, heard, drawn = SoftmaxRegression(), record_events(), []
    r8 = R8Scheduler(
        len(model.y), batch_size=32, num_epochs=epochs, initial_lr=0.5, state_callback=model.get, seed=seed,
        load_callback=model.load, listeners=[heard], policy=policy, **more,
    )  # fmt: skip
    for epoch, indices, lr in steps(r8):
        losses = model.forward(indices)
        losses[np.isin(indices, bad)] = NAN
        drawn.append((epoch, indices.copy(), lr / r8.schedule(r8.progress)))
        if r8.update_with_loss(losses if exact else losses.mean()):
            model.step(lr)
    return r8, model, heard, drawn


@pytest.mark.filterwarnings("ignore:sample 123 was in")
@pytest.mark.filterwarnings("ignore:the loss of sample 123 was not finite")
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("policy", ["balanced", "shuffle", "quartile"])
def test_one_bad_sample_costs_one_sample(exact, policy):
    """A sample whose loss is never finite is found and not drawn any more, and the rate returns to its schedule."""
    r8, model, heard, drawn = fit(exact=exact, policy=policy)
    [found] = heard.of(events.SamplesQuarantined)
    later = [indices for epoch, indices, _ in drawn if epoch > found.step // r8.steps_per_epoch]

    assert found.samples == (BAD,)
    assert r8.table.quarantined.tolist() == [BAD]
    assert later
    assert not any(BAD in indices for indices in later)
    assert np.mean([share for *_, share in drawn[-len(drawn) // 3 :]]) > 0.99
    assert model.accuracy > 0.9
    assert "in quarantine: sample 123" in r8.summary()


@pytest.mark.filterwarnings("ignore:sample 123 was in")
@pytest.mark.filterwarnings("ignore:the loss of sample 123 was not finite")
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("order", ["before", "after"])
def test_a_sample_that_did_no_harm_causes_no_restore(exact, order):
    """If its loss is reported before the optimizer's step, nothing is restored; if after it, the model is."""
    model, heard = SoftmaxRegression(), record_events()
    r8 = R8Scheduler(
        len(model.y), batch_size=32, num_epochs=12, initial_lr=0.5, state_callback=model.get,
        load_callback=model.load, listeners=[heard],
    )  # fmt: skip
    for _, indices, lr in steps(r8):
        losses = model.forward(indices)
        is_bad = BAD in indices
        losses[indices == BAD] = NAN
        if order == "after":
            model.step(lr)
            if is_bad:
                model.weights = model.weights * NAN
        if r8.update_with_loss(losses if exact else losses.mean()) and order == "before":
            model.step(lr)
    refused, restored = len(heard.of(events.BatchRefused)), len(heard.of(events.RolledBack))

    assert len(heard.of(events.SamplesQuarantined)) == 1
    assert refused >= 2
    # The first batch mean that is not finite may be any sample's, and the weights'.
    assert restored == (refused if order == "after" else 1 - exact)
    assert np.isfinite(model.weights).all()


@pytest.mark.filterwarnings("ignore:sample 123 was in")
def test_epochs_keep_their_size():
    """An epoch has as many steps and samples as without the quarantine, and each other sample is used once."""
    r8, _, heard, drawn = fit(epochs=9)
    [found] = heard.of(events.SamplesQuarantined)
    last = [indices for epoch, indices, _ in drawn if epoch == 8]
    counts = np.bincount(np.concatenate(last), minlength=1797)

    assert found.step < 8 * r8.steps_per_epoch
    assert [len(indices) for indices in last] == [32] * 56 + [5]
    assert counts[BAD] == 0
    assert sorted(counts)[1:] == [1] * 1795 + [2]


@pytest.mark.filterwarnings("ignore:samples? .* refused batches")
def test_several_bad_samples_are_all_found():
    """Three bad samples in different batches are found, and no others."""
    r8, _, _, _ = fit(bad=(5, BAD, 1700), epochs=20)

    assert r8.table.quarantined.tolist() == [5, BAD, 1700]


def test_healthy_samples_of_a_refused_batch_are_cleared():
    """One isolated NaN quarantines no sample, and none is watched an epoch later."""
    heard = record_events()
    r8 = make(640, batch_size=32, num_epochs=6, listeners=[heard])

    def run():
        for _, indices, _ in steps(r8):
            r8.update_with_loss(NAN if r8.global_step == 30 else 1.0 + indices.mean() / 1e4)

    with pytest.warns(RuntimeWarning, match="nothing to restore"):
        run()

    assert not heard.of(events.SamplesQuarantined)
    assert len(r8.table.quarantined) == len(r8.table.exclusions.watched) == 0


@pytest.mark.filterwarnings("ignore:sample 123 was in")
def test_quarantine_survives_a_resume():
    """Suspects and quarantined samples are part of the state: a resumed run draws the same batches."""
    whole = fit(epochs=9)[3]
    model = SoftmaxRegression()
    r8 = R8Scheduler(
        len(model.y), batch_size=32, num_epochs=9, initial_lr=0.5, state_callback=model.get, load_callback=model.load
    )
    drawn = []

    def go_on(r8, until):
        for epoch, indices, lr in steps(r8):
            losses = model.forward(indices)
            losses[indices == BAD] = NAN
            drawn.append((epoch, indices.copy()))
            if r8.update_with_loss(losses.mean()):
                model.step(lr)
            if r8.global_step >= until:
                return

    for until in (100, 130, 160, 250, 10**9):
        go_on(r8, until)
        state = r8.state_dict()
        r8 = R8Scheduler(
            len(model.y), batch_size=32, num_epochs=9, initial_lr=0.5, state_callback=model.get,
            load_callback=model.load,
        )  # fmt: skip
        r8.load_state_dict(state)

    first_refusal = next(n for n, (_, indices, _) in enumerate(whole) if BAD in indices)
    assert r8.table.quarantined.tolist() == [BAD]
    assert all((a[1] == b[1]).all() for a, b in zip(whole[:first_refusal], drawn, strict=False))


@pytest.mark.filterwarnings("ignore:sample 123 was in")
def test_release():
    """A released sample is drawn again; releasing one that is not in quarantine raises and changes nothing."""
    r8, _, _, _ = fit(epochs=9)
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


def test_same_batch_is_no_new_evidence():
    """A batch that is drawn and refused again after a resume adds no evidence against its samples."""
    quarantine, table, _ = watch()
    batch = np.arange(32)
    quarantine.refused(batch, (), 10)
    for step in range(100, 2000, 100):
        assert quarantine.refused(batch[::-1], (), step) == np.inf
        assert quarantine.convict(step) == ((), 0)

    assert not len(table.quarantined)


def test_good_batch_clears():
    """A sample that was in a good batch since is no suspect any more."""
    quarantine, table, _ = watch()
    rng = np.random.default_rng(0)
    for step in range(0, 3000, 300):
        others = rng.choice(np.arange(1, 2000), 31, replace=False)
        quarantine.refused(np.append(others, 0), (), step)
        quarantine.cleared(np.arange(0, 2000, 1 + step % 2))
        quarantine.convict(step)

    assert not len(table.quarantined)


def test_chance_of_random_refusals():
    """Refusals of random batches convict fewer than one sample in a thousand runs."""
    rng = np.random.default_rng(1)
    convicted = 0
    for _ in range(300):
        quarantine, table, _ = watch(640)
        for step in range(200):
            batch = rng.choice(640, 32, replace=False)
            if rng.random() < 0.05:
                quarantine.refused(batch, (), step + 1)
                quarantine.convict(step + 1)
            else:
                quarantine.cleared(batch)
        convicted += len(table.quarantined)

    assert convicted <= 1


def test_evidence():
    """The chance is the number of samples accused first, times the share of refused steps for each other refusal."""
    assert np.exp(Evidence((1, 4, 7), (np.log(32), 0.0, 0.0)).log_chance(1 / 50)) == pytest.approx(32 / 2500)


def test_quarantine_is_bounded():
    """Beyond 5 % of the data nothing is quarantined, and a warning says so."""
    quarantine, table, _ = watch(110)

    def refuse_ten_in_turn():
        for step in range(0, 8000, 100):
            bad = step // 100 % 10
            quarantine.refused(np.array([bad, *range(20 + step // 100, 29 + step // 100)]), (bad,), step)
            quarantine.convict(step)

    with pytest.warns(RuntimeWarning) as caught:
        refuse_ten_in_turn()

    assert len(table.quarantined) == 5
    assert sum("more than 5% of the samples would be in quarantine" in str(w.message) for w in caught) == 1


def test_warning_names_the_sample():
    """The warning names the sample as in sample_ids, and says how to release it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(epochs=9, sample_ids=[f"img{number}.png" for number in range(1797)])

    assert any("'img123.png' was in" in str(w.message) and "release()" in str(w.message) for w in caught)
