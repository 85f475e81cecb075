"""Recovery in whole runs: of a user's two numbers, of a softmax regression in numpy, and of a network in torch."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from learnit_r8 import R8Scheduler, Recovery, TrainingDiverged, events
from tests.drive import INF, NAN, Weights, advance_to, batch_loss, known, make, sample_losses, steps, train
from tests.softmax import SoftmaxRegression

STEADY = Recovery(hold_steps=2, ramp_steps=4, steady_steps=8, heal_steps=3)


def with_model(model, num_samples=64, **more):
    more = {
        "scheduler_mode": "constant",
        "warmup_proportion": 0,
        "initial_lr": 1.0,
        "num_epochs": 3,
        "recovery": STEADY,
    } | more
    return make(num_samples, state_callback=model.get, load_callback=model.load, **more)


@pytest.mark.parametrize("step", [0, 1, 7])
@pytest.mark.parametrize("value", [NAN, INF, -INF, 1e38, -1e38])
def test_loss_that_is_not_finite_calls_the_load_callback(value, step):
    """NaN, infinities and values too large for float32 restore the RAM backup, from the very first step on."""
    model = Weights()
    r8 = with_model(model)
    advance_to(r8, step)
    model.values = np.array([NAN, NAN])
    outcome = r8.report(r8.draw(), value)

    assert (bool(outcome), outcome.rolled_back_to, outcome.verdict.value) == (False, 0, "not finite")
    assert model.values.tolist() == [0, 0]
    assert [from_ram for _, from_ram in model.loaded] == [True]


def test_vector_with_one_nan_is_refused():
    """One sample's NaN refuses its batch."""
    r8 = with_model(Weights())

    assert not r8.report(r8.draw(), np.array([1.0, 2.0, NAN, 1.0]))


def test_one_argument_load_callback_gets_the_state():
    """A load callback without from_ram is called with the state alone."""
    got = []
    r8 = make(load_callback=lambda source: got.append(source))
    r8.update_cpu_backup({"w": [1]})
    r8.report(r8.draw(), NAN)

    assert got == [{"w": [1]}]


@pytest.mark.parametrize("state", [np.array([1.0, 2.0]), {}, 0, ""], ids=repr)
def test_any_value_can_be_the_backup(state):
    """Arrays and empty values are restored like anything else."""
    got = []
    r8 = make(load_callback=got.append)
    r8.update_cpu_backup(state)
    r8.report(r8.draw(), NAN)

    assert repr(got) == repr([state])


def test_every_restore_is_a_fresh_copy():
    """The callback may change what it got; the next restore still has the saved values."""
    got = []

    def load(state):
        got.append(state["w"].tolist())
        state["w"][:] = NAN

    r8 = make(load_callback=load)
    weights = np.ones(2)
    r8.update_cpu_backup({"w": weights})
    weights[:] = 5
    for _ in range(3):
        r8.report(r8.draw(), NAN)

    assert got == [[1, 1]] * 3


def test_state_with_nan_is_not_backed_up():
    """A state with NaN is not taken as a backup: the model is restored to the one before."""
    model = Weights()
    r8 = with_model(model)
    advance_to(r8, 3)
    model.values = np.array([3.0, 3.0])
    r8.update_cpu_backup(model.get())
    advance_to(r8, 5)
    ticket = r8.draw()
    r8.report(ticket, 1.0)
    model.values = np.array([NAN, NAN])
    r8.update_cpu_backup(model.get())

    assert model.values.tolist() == [3, 3]


def test_batch_drawn_before_the_backup_does_not_prove_it():
    """The good loss of a batch drawn before a backup does not make the backup trusted."""
    model = Weights()
    r8 = with_model(model)
    advance_to(r8, 2)
    early = r8.draw()
    model.values = np.array([NAN, NAN])
    r8.update_cpu_backup(model.get())
    r8.report(early, 1.0)
    r8.report(r8.draw(), NAN)

    assert model.values.tolist() == [0, 0]


def test_rate_drops_holds_and_ramps_back():
    """After a refusal the rate is halved, held for hold_steps good steps, and back after ramp_steps more."""
    r8 = with_model(Weights())
    rates = []
    for _, indices, lr in steps(r8):
        rates.append(lr)
        r8.update_with_loss(NAN if r8.global_step == 2 else batch_loss(indices))
        if len(rates) == 11:
            break

    assert rates == [1, 1, 1, 0.5, 0.5, 0.5, 0.625, 0.75, 0.875, 1, 1]


def test_rate_multiplies_the_schedule():
    """The factor multiplies the schedule's rate; it does not replace it."""
    r8 = with_model(Weights(), scheduler_mode="linear")
    advance_to(r8, 24, bad={23})

    assert r8.lr == pytest.approx(0.5 * (1 - 24 / 48))


def test_repeated_refusals_lower_the_rate_further():
    """Refusals in a row go through the factors 0.5, 0.1, 0.02, and stay at the last."""
    r8 = with_model(Weights())
    rates = [r8.report(r8.draw(), NAN).lr for _ in range(4)]

    assert rates == pytest.approx([0.5, 0.1, 0.02, 0.02])


@pytest.mark.parametrize("kind", ["mean", "vector", "part"])
def test_refused_loss_leaves_the_table(kind):
    """A refused loss changes no estimate, no use count and no trend."""
    r8 = with_model(Weights())
    for _, indices, _ in steps(r8):
        bad = r8.global_step == 20
        before = known(r8), r8.table.trend, r8.table.untrained_loss
        losses = np.where(np.arange(4) == 1, NAN if bad else 1.0, sample_losses(indices))
        if kind == "mean":
            r8.update_with_loss(losses.mean())
        elif kind == "vector":
            r8.update_with_loss(losses)
        else:
            r8.update_with_loss(losses.reshape(2, 2).mean(axis=1), part_size=2)
        if bad:
            break

    np.testing.assert_equal((known(r8), r8.table.trend, r8.table.untrained_loss), before)


def test_refused_samples_get_their_turn_later():
    """Samples of a refused batch of the first epoch come in the second, and enter the table there."""
    r8 = with_model(Weights(), num_samples=16, num_epochs=2)
    seen = train(r8, bad={1})

    assert sorted(np.concatenate([batch for epoch, batch, _ in seen if epoch == 1])) == list(range(16))
    assert sorted(r8.table.usage_count.tolist()) == [1] * 4 + [2] * 12


def test_cataloguing_is_not_cut_short():
    """A refusal in the first epoch displaces nothing: every sample is still drawn once."""
    seen = train(with_model(Weights(), num_epochs=1), bad={2, 5})

    assert sorted(np.concatenate([batch for _, batch, _ in seen])) == list(range(64))


def test_steady_batches_come_from_the_lowest_quarter():
    """After a refusal past the first epoch the next batches, a quarter of an epoch, are of the lowest-loss quarter."""
    heard, steady = [], []
    r8 = with_model(Weights(), listeners=[heard.append])
    for _, indices, _ in steps(r8):
        if 21 <= r8.global_step < 25:
            quarter = np.argsort(r8.table.loss, kind="stable")[:16]
            steady.append(set(indices.tolist()) <= set(quarter.tolist()))
        r8.update_with_loss(np.full(4, NAN) if r8.global_step == 20 else sample_losses(indices))

    assert steady == [True] * 4
    assert [event.step for event in heard if isinstance(event, events.StepDone) and event.steady] == [22, 23, 24, 25]


def test_progress_never_goes_back():
    """Refused and steady batches are steps: the run has its number of steps in the end."""
    r8 = with_model(Weights())
    progress = []
    for _, indices, _ in steps(r8):
        r8.update_with_loss(NAN if r8.global_step in {5, 20, 21} else batch_loss(indices))
        progress.append(r8.progress)

    assert progress == [step / 48 for step in range(1, 49)]


def test_nan_for_ever_diverges():
    """Losses that stay refused end in TrainingDiverged after five refusals that go no further back."""
    model = Weights()
    r8 = with_model(model)
    advance_to(r8, 20)
    with pytest.raises(
        TrainingDiverged,
        match=r"6 losses were refused with at most \d+ good ones in a row between them, the last \(nan\) at step 25 "
        r"with lr=.*restored each time, last from backup of step \d+: is that state good\?",
    ):
        train(r8, bad=range(99))

    assert r8.global_step == 26
    assert len(model.loaded) == 6 + 1  # and back to the state that was put back first, as none was any better


def test_divergence_of_the_whole_batch_blames_no_sample():
    """If the losses of all samples of the batch are refused, the model is at fault and no sample is named."""
    r8 = with_model(Weights(), recovery=Recovery(max_tries=0))
    with pytest.raises(TrainingDiverged) as error:
        r8.report(r8.draw(), np.full(4, NAN))

    assert "Samples" not in str(error.value)


def test_divergence_names_the_samples():
    """With per-sample losses the diagnosis names the samples of the last refused batch."""
    r8 = with_model(Weights(), recovery=Recovery(max_tries=0))
    ticket = r8.draw()
    with pytest.raises(TrainingDiverged, match=rf"own loss was not finite in the last batch: \[{ticket.indices[2]}\]"):
        r8.report(ticket, np.array([1, 1, NAN, 1]))


def test_divergence_without_a_backup_says_what_to_add():
    """If nothing could ever be restored, the error says which arguments to pass."""
    r8 = make(num_epochs=9)
    with (
        pytest.warns(RuntimeWarning, match="nothing to restore the model from"),
        pytest.raises(
            TrainingDiverged,
            match=r"never restored: pass load_callback with state_callback, or call update_cpu_backup\(\)",
        ),
    ):
        train(r8, bad=range(99))

    assert r8.global_step == 5


def test_divergence_leaves_the_state_intact():
    """After TrainingDiverged the model is restored, the table is clean, and the run can continue."""
    model = Weights()
    r8 = with_model(model, recovery=Recovery(max_tries=0))
    advance_to(r8, 20)
    before = known(r8)
    model.values = np.array([NAN, NAN])
    with pytest.raises(TrainingDiverged):
        r8.report(r8.draw(), NAN)
    np.testing.assert_equal(known(r8), before)
    assert model.values.tolist() == [0, 0]
    train(r8)

    assert r8.global_step == 48


def test_refusals_far_apart_do_not_add_up():
    """Any number of refusals is survived if enough good losses lie between them."""
    r8 = with_model(Weights(), num_epochs=16, recovery=Recovery(heal_steps=3, hold_steps=1, ramp_steps=1))
    train(r8, bad=range(4, 256, 25))

    assert r8.global_step == 256


def test_refusals_far_apart_do_not_add_up_at_full_rate():
    """A recovery that keeps the rate (factors=(1.0,)) heals like any other."""
    heard = []
    r8 = with_model(
        Weights(),
        num_epochs=16,
        recovery=Recovery(factors=(1.0,), heal_steps=3, hold_steps=1, ramp_steps=1),
        listeners=[heard.append],
    )
    train(r8, bad=range(4, 256, 25))

    assert sum(isinstance(event, events.IncidentEnded) for event in heard) == 10


def test_listeners_hear_an_incident_and_its_end():
    """Listeners hear of refusals, rollbacks, the ceiling and, as soon as the trial is passed, the incident's end."""
    heard = []
    recovery = dataclasses.replace(STEADY, factors=(0.9,), calm_steps=10, relax_steps=5)
    model = Weights()
    train(with_model(model, listeners=[heard.append], recovery=recovery, backup_every=4), bad={20, 21})
    kinds = (events.BatchRefused, events.RolledBack, events.LrCapped, events.IncidentEnded, events.LrRestored)

    told = [(type(event).__name__, event.step) for event in heard if isinstance(event, kinds)]
    last = [event for event in heard if isinstance(event, events.RolledBack)][-1]
    trial = 21 - last.to_step + STEADY.heal_steps // 2

    assert told == [
        ("BatchRefused", 21), ("RolledBack", 21), ("BatchRefused", 22), ("LrCapped", 22), ("RolledBack", 22),
        ("IncidentEnded", 22 + trial), ("LrRestored", 22 + trial),
    ]  # fmt: skip


def test_without_a_backup_the_rate_is_lowered_with_one_warning():
    """With nothing to restore the rate is lowered, and one warning says what to pass."""
    r8 = make(64, num_epochs=3, recovery=STEADY, scheduler_mode="constant", warmup_proportion=0, initial_lr=1.0)
    with pytest.warns(
        RuntimeWarning, match=r"the loss of step 4 was nan, and there is nothing to restore .* Pass load_callback"
    ) as caught:
        advance_to(r8, 12, bad={4, 10})

    assert len(caught) == 1
    assert r8.lr == 0.5


def test_raising_load_callback_leaves_a_consistent_scheduler():
    """An error of the load callback reaches the caller; the step is counted, and the run can continue to its end."""

    def broken(state):
        raise KeyError("layer4")

    r8 = make(64, num_epochs=3, load_callback=broken, recovery=STEADY)
    r8.update_cpu_backup({})
    advance_to(r8, 20)
    before = known(r8)
    with pytest.raises(RuntimeError, match=r"from the RAM backup, a dict, but raised KeyError\('layer4'\)"):
        r8.report(r8.draw(), NAN)
    np.testing.assert_equal(known(r8), before)
    assert r8.global_step == 21
    seen = train(r8)

    assert (len(seen), r8.global_step) == (27, 48)


@pytest.mark.parametrize("policy", ["balanced", "quartile", "shuffle", "match_mean", "steady"])
def test_recovery_works_under_every_policy(policy):
    """The run survives refusals at several points under every policy."""
    r8 = with_model(Weights(), policy=policy)
    train(r8, bad={0, 15, 16, 31, 47})

    assert r8.global_step == 48


def test_tickets_in_flight_survive_a_refusal():
    """Tickets drawn before a refusal may be reported after it."""
    r8 = with_model(Weights())
    advance_to(r8, 20)
    tickets = [r8.draw() for _ in range(4)]
    outcomes = [r8.report(ticket, NAN if number == 0 else 1.0) for number, ticket in enumerate(tickets)]

    assert [bool(outcome) for outcome in outcomes] == [False, True, True, True]
    assert r8.global_step == 24


def fit(order, exact, damaged):
    """Accuracy after five epochs, and the number of refused losses; the weights become NaN in the damaged epochs."""
    model, heard = SoftmaxRegression(), []
    r8 = R8Scheduler(
        len(model.y), batch_size=32, num_epochs=5, initial_lr=0.5, state_callback=model.get, load_callback=model.load,
        backup_every=10, listeners=[heard.append],
    )  # fmt: skip
    for epoch in r8.epoch_iterator():
        for indices, lr in r8.batch_iterator():
            if epoch in damaged and r8.global_step % r8.steps_per_epoch == 25:
                model.weights = model.weights * NAN
            losses = model.forward(indices)
            loss = losses if exact else losses.mean()
            if order == "report, update":
                if r8.update_with_loss(loss):
                    model.step(lr)
            else:
                model.step(lr)
                r8.update_with_loss(loss)
    assert r8.global_step == r8.total_steps
    return model.accuracy, sum(isinstance(event, events.BatchRefused) for event in heard)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("order", ["report, update", "update, report"])
def test_real_model_heals(order, exact):
    """A softmax regression whose weights become NaN twice ends within 2 points of the undisturbed run's accuracy."""
    undisturbed, none = fit(order, exact, damaged=())
    healed, refused = fit(order, exact, damaged=(1, 3))

    assert (none, refused) == (0, 2)
    assert healed > undisturbed - 0.02 > 0.9


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("order", ["report, update", "update, report"])
def test_torch_model_heals(order):
    """A small torch network and its momentum heal from NaN weights in both orders of the loop."""
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)

    def get():
        return {"net": net.state_dict(), "optimizer": optimizer.state_dict()}

    def load(state, from_ram):
        assert from_ram
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])

    r8 = R8Scheduler(
        len(y), batch_size=32, num_epochs=5, initial_lr=0.1, state_callback=get, load_callback=load, backup_every=10
    )
    refused = 0
    for epoch in r8.epoch_iterator():
        for indices, lr in r8.batch_iterator():
            for group in optimizer.param_groups:
                group["lr"] = lr
            if epoch == 2 and r8.global_step % r8.steps_per_epoch == 25:
                with torch.no_grad():
                    net[0].weight.fill_(NAN)
            loss = torch.nn.functional.cross_entropy(net(x[indices]), y[indices])
            optimizer.zero_grad()
            if order == "report, update":
                if r8.update_with_loss(loss):
                    loss.backward()
                    optimizer.step()
                else:
                    refused += 1
            else:
                loss.backward()
                optimizer.step()
                refused += not r8.update_with_loss(loss)
    accuracy = float((net(x).argmax(dim=1) == y).float().mean())

    assert refused == 1
    assert accuracy > 0.95


@pytest.mark.parametrize("exact", [True, False], ids=["vector", "mean"])
def test_sample_that_is_always_nan_costs_its_batches_only(exact):
    """One sample whose loss is never finite neither undoes the training nor ends the run, and is named."""
    model, undisturbed = SoftmaxRegression(), SoftmaxRegression()
    bad = 123

    def train_on(model, bad):
        r8 = R8Scheduler(
            len(model.y),
            batch_size=32,
            num_epochs=12,
            initial_lr=0.5,
            state_callback=model.get,
            load_callback=model.load,
        )
        for _, indices, lr in steps(r8):
            losses = model.forward(indices)
            losses[indices == bad] = NAN
            if r8.update_with_loss(losses if exact else losses.mean()):
                model.step(lr)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train_on(model, bad)
    train_on(undisturbed, None)

    assert model.accuracy > undisturbed.accuracy - 0.03
    assert any("the loss of sample 123 was not finite for the second time" in str(w.message) for w in caught) is exact
