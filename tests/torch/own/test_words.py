"""What a person is told of trouble: once on the terminal, and a line of the summary for each kind."""

import contextlib
import copy
import json
import warnings

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from learnit_r8 import R8Scheduler, TrainingDiverged, events
from learnit_r8.cli import main
from learnit_r8.dashboard.plain import PlainLog
from learnit_r8.dashboard.render.header import rate_part
from learnit_r8.dashboard.state.view import View
from learnit_r8.engine.settings import grouped
from learnit_r8.events.event import describe
from learnit_r8.testing import record_events
from learnit_r8.torch import attach
from learnit_r8.torch.state import damaged_copy
from tests.torch_common import DIGITS, classifier, descend, sgd

NAN = float("nan")


def run(*, bad_input=(), bad_weights=(), steps=140, on_error=None, **settings):
    """Train on batches of one's own; at some turns of the loop a batch or the weights are spoiled."""
    model, torch_loader = classifier(), DataLoader(DIGITS, batch_size=20)
    optimizer = sgd(model, lr=0.02)
    adapter = attach(model, optimizer, torch_loader, num_steps=steps, **grouped(settings))
    turn = 0
    with adapter:
        for _ in adapter.epochs():
            for inputs, labels in adapter.batches():
                turn += 1
                if turn in bad_input:
                    inputs[3] = NAN
                with contextlib.nullcontext() if on_error is None else on_error:
                    if adapter.report(loss := cross_entropy(model(inputs), labels)):
                        descend(optimizer, loss)
                if turn in bad_weights:
                    model[0].weight.data[0, 0] = NAN
    return adapter, model


def said_of(**given):
    """The warnings of a run, its summary and its model."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapter, model = run(**given)
    return [str(each.message) for each in caught], adapter.scheduler.summary().splitlines(), model


def test_first_refused_batch_is_said_once():
    """One warning says what was refused, where it began and what was done; the summary counts the others."""
    said, summary, _ = said_of(bad_input=(70, 90))

    assert len(said) == 1
    assert said[0].startswith("a loss was refused at step 70 (not finite): nothing is learned from it. It began at")
    assert "whose input holds NaN" in said[0]
    assert summary[1].startswith("losses refused: 2;")
    assert summary[2].startswith("  not finite: 2 incidents, the last at step 90: the refused batch was to blame")
    assert not any("transient fault" in each for each in (*said, *summary))


def test_healed_weights_are_said_once():
    """Weights that are mended, though no loss was refused, are a warning and a line of the summary; then a count."""
    said, summary, model = said_of(bad_weights=(70, 120), backup_every=1)

    assert len(said) == 1
    assert said[0].startswith("losses or weights were not finite at step 7")
    assert "0.weight had numbers that are not finite, and came from the backup of step 6" in said[0]
    assert summary[2].startswith("  weights not finite: 2 incidents, the last at step 119: ")
    assert all(each.isfinite().all() for each in model.parameters())


def test_a_bad_batch_that_the_run_ended_with_is_to_blame():
    """As the weights are healthy: that no other batch came after it leaves nothing to settle."""
    _, left_out, _ = said_of(bad_input=(140,))

    assert left_out[2].startswith(
        "  not finite: step 140: the refused batch was to blame, not the weights; the run ended"
    )
    assert "the weights are healthy" in left_out[2]


def test_plain_lines_and_warning_do_not_say_it_twice(capsys):
    """A listener that shows events on the terminal takes the place of the warning."""
    said, summary, _ = said_of(bad_input=(70,), bad_weights=(120,), backup_every=1, listeners=[PlainLog()])
    printed = capsys.readouterr().err

    assert said == []
    assert printed.count("loss nan refused") == 1
    assert printed.count("numbers that are not finite") == 1
    assert (
        len(
            [
                line
                for line in summary
                if line.startswith(("  not finite: one incident", "  weights not finite: one incident"))
            ]
        )
        == 2
    )


def test_summary_counts_over_a_resume(tmp_path):
    """A resumed run goes on counting, and warns of its own first one."""
    given = {"checkpoint_dir": tmp_path, "checkpoint_every": 50, "resume": "auto"}
    said_of(bad_input=(70,), steps=100, **given)
    said, summary, _ = said_of(bad_input=(10,), steps=200, **given)

    assert len([line for line in said if "was refused at step 1" in line]) == 1
    assert [line for line in summary if line.startswith("  not finite: 2 incidents, the last at step 1")]


@pytest.mark.parametrize("fault", [{"bad_input": (30, 32)}, {"bad_weights": (30,), "backup_every": 1}])
def test_warning_that_is_raised_leaves_a_whole_run(fault):
    """Where warnings are errors, as under pytest -W error, the call raises after its work is done: the run goes on."""
    fault = {**fault, "steps": 80}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, _ = run(**fault)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="not finite"):
            run(**fault)
        raised, model = run(**fault, on_error=contextlib.suppress(RuntimeWarning))

    assert raised.scheduler.global_step == expected.scheduler.global_step
    assert raised.scheduler.sentry.num_refused == expected.scheduler.sentry.num_refused
    assert raised.finished
    assert all(each.isfinite().all() for each in model.parameters())


def test_rates_of_ones_own_are_shown_as_they_are(tmp_path, capsys):
    """Record, screen, settings and the message of the end show the user's rate, and no rate that nobody chose."""
    heard = record_events()
    said_of(bad_input=(70,), run_dir=tmp_path / "run", listeners=[heard])
    view = View()
    for event in heard:
        view.fold(event)
    main(["incidents", str(tmp_path / "run"), "1"])

    assert json.loads((tmp_path / "run" / "incidents" / "1" / "incident.json").read_text())["refusals"][0]["lr"] == 0.02
    assert ", rate 0.02" in capsys.readouterr().out
    assert "".join(span.text for span in rate_part(view)).split() == ["lr", "0.02"]
    assert not {"initial_lr", "min_lr", "auto_find_lr"} & heard.of(events.RunStarted)[0].settings.keys()
    assert heard.of(events.RunStarted)[0].settings["scheduler_mode"] == "keep"


def test_rate_that_nobody_told_is_not_shown(tmp_path, capsys):
    """Without an adapter, and without lr= of the report, nothing stands in its place: no 1.0, no nan."""
    heard, model = record_events(), {"w": np.zeros(3)}
    r8 = R8Scheduler(
        num_steps=500, scheduler_mode="keep", run_dir=tmp_path / "run", state_callback=lambda: model,
        load_callback=model.update, listeners=[heard, PlainLog()],
    )  # fmt: skip

    def train():
        for step in r8.steps():
            r8.update_with_loss(1.0 / (step + 1) if step < 50 else NAN)

    with pytest.raises(TrainingDiverged) as diverged:
        train()
    view = View()
    for event in heard:
        view.fold(event)
    r8.controller.recorder.close()
    main(["incidents", str(tmp_path / "run"), "1"])
    printed = capsys.readouterr()
    texts = [describe(event).text for event in heard.of(events.BatchRefused)]

    assert "lr=" not in str(diverged.value)
    assert "rate " not in printed.out
    assert not [text for text in (*texts, printed.err) if "lr" in text]
    assert rate_part(view) == ()
    assert ", lr" not in r8.summary()


def test_ceiling_of_ones_own_rate_is_a_share_of_it():
    """What recovery lowers is a share of the user's rate, and is called so."""
    heard, model = record_events(), classifier()
    optimizer = sgd(model, lr=0.05)
    adapter = attach(model, optimizer, DataLoader(DIGITS, batch_size=20), num_steps=300, listeners=[heard])
    with adapter, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in adapter.epochs():
            for inputs, labels in adapter.batches():
                if adapter.scheduler.global_step == 100:
                    optimizer.param_groups[0]["lr"] = 100.0
                adapter.step(cross_entropy(model(inputs), labels))
    capped = heard.of(events.LrCapped)

    assert capped
    assert all("of yours: " in describe(event).text for event in capped)


def train_two(second, optimizer_of_second, *, also=None, nan_at=70, steps=600):
    """Train a model on what a second network makes of the inputs, which turns NaN; returns warnings and the error."""
    model = classifier()
    optimizer, error = sgd(model, lr=0.02), None
    adapter = attach(model, optimizer, DataLoader(DIGITS, batch_size=20), num_steps=steps, also=also)
    with warnings.catch_warnings(record=True) as caught, adapter:
        warnings.simplefilter("always")
        try:
            for _ in adapter.epochs():
                for inputs, labels in adapter.batches():
                    if adapter.report(loss := cross_entropy(model(second(inputs)), labels)):
                        for each in (optimizer, optimizer_of_second):
                            each.zero_grad()
                        loss.backward()
                        for each in (optimizer, optimizer_of_second):
                            each.step()
                    if adapter.scheduler.global_step == nan_at:
                        second.weight.data[0, 0] = NAN
        except TrainingDiverged as diverged:
            error = diverged
    return [str(each.message) for each in caught], error


def test_second_network_that_was_not_given_is_named():
    """The graph of the refused loss shows parameters that attach() does not know; so does the end, in words."""
    torch.manual_seed(1)
    second = torch.nn.Linear(64, 64)
    said, error = train_two(second, sgd(second))
    named = [each for each in said if "from 2 parameters that attach() was not given (1 of them not finite" in each]

    assert len(named) == 1
    assert "the first of shape (64, 64)" in named[0] or "the first of shape (64,)" in named[0]
    assert (
        len([each for each in said if "such as a second network" in each and "no state has finite losses" in each]) == 1
    )
    assert "such as a second network" in str(error)


def test_second_network_that_was_given_is_healed():
    torch.manual_seed(1)
    second = torch.nn.Linear(64, 64)
    optimizer = sgd(second)
    said, error = train_two(second, optimizer, also={"second": second, "its optimizer": optimizer}, steps=200)

    assert error is None
    assert second.weight.isfinite().all()
    assert not [each for each in said if "not given" in each]


@pytest.mark.parametrize("given", [1, 4])
def test_accumulation_that_was_not_told_is_said_once(given):
    """An optimizer that steps at every fourth report adds up gradients, as it seems."""
    model = classifier()
    optimizer = sgd(model, lr=0.02)
    adapter = attach(model, optimizer, DataLoader(DIGITS, batch_size=20), num_epochs=5, accumulate=given)
    with warnings.catch_warnings(record=True) as caught, adapter:
        warnings.simplefilter("always")
        for _ in adapter.epochs():
            for number, (inputs, labels) in enumerate(adapter.batches()):
                if adapter.report(loss := cross_entropy(model(inputs), labels)):
                    (loss / 4).backward()
                    if number % 4 == 3:
                        optimizer.step()
                        optimizer.zero_grad()
    said = [str(each.message) for each in caught if "at every 4 reports so far" in str(each.message)]

    assert len(said) == (given == 1)
    assert not said or "attach(..., accumulate=4)" in said[0]


@pytest.mark.parametrize("part", ["one", "all"])
def test_check_heals_before_the_weights_are_used(part):
    """check() between two steps puts back what is not finite, and says whether all was well; training goes on."""
    model, heard = classifier(), record_events()
    optimizer = sgd(model, lr=0.02)
    adapter = attach(model, optimizer, None, num_steps=200, listeners=[heard])
    sound = []
    with adapter:
        for step in adapter.steps():
            if step == 60:
                for each in list(model.parameters())[: 1 if part == "one" else None]:
                    each.data.fill_(NAN)
            if not step % 20:
                sound.append(adapter.check())
                assert all(each.isfinite().all() for each in model.parameters())
            place = 20 * (step % 10)
            inputs, labels = DIGITS[place : place + 20]
            if adapter.report(loss := cross_entropy(model(inputs), labels)):
                descend(optimizer, loss)

    assert [number for number, each in enumerate(sound) if not each] == [3]
    assert len(heard.of(events.DamageFound)) == 1
    assert not heard.of(events.BatchRefused)
    assert adapter.finished


def train_parts(bad, names="b", epochs=4):
    """Epochs of ten batches in numpy, with NaN in arrays of these names, of four, as the losses of ``bad`` come.

    From the second time on in the first of them alone.
    """
    state = {name: np.ones(2) for name in "abcd"}
    heard, turns = record_events(), []
    r8 = R8Scheduler(
        num_epochs=epochs, scheduler_mode="keep", backup_every=5, listeners=[heard], handle_signals=False,
        state_callback=lambda: {name: each.copy() for name, each in state.items()}, load_callback=state.update,
    )  # fmt: skip
    left = set(bad)
    for epoch in range(epochs):
        turns.append(0)
        for _ in r8.batches([np.ones((4, 2))] * 10):
            turns[epoch] += 1
            if r8.global_step in left:
                left.remove(r8.global_step)
                state.update({name: state[name] * np.nan for name in names})
                names = names[:1]
            r8.update_with_loss(float(sum(each.sum() for each in state.values())))
    r8.close()
    return r8, heard, turns


@pytest.mark.parametrize("place", [27, 28, 29], ids=["inner", "last but one", "last"])
def test_a_test_after_the_last_batch_of_an_epoch_leaves_nothing_out(place):
    """It takes the place of the epoch's last batch; after that it is a turn more, and the length is not wrong."""
    r8, heard, turns = train_parts([place])

    is_last = place == 29
    assert turns == [10, 10, 10 + is_last, 10]
    assert r8.global_step == 40 - (not is_last)
    assert ("A test of the weights took the place of one batch" in r8.summary()) is not is_last
    assert not [each for each in heard.of(events.Notice) if "a run through the loader gave" in each.text]
    assert [each.progress for each in heard.of(events.EpochDone)] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.filterwarnings("ignore:losses or weights were not finite:RuntimeWarning")
def test_an_incident_that_lasts_has_its_first_and_its_last_step():
    """Else what came from a later backup would be said of its first step."""
    r8, _, _ = train_parts([13, 25], "bacd", epochs=12)

    [line] = [line for line in r8.summary().splitlines() if "b had numbers that are not finite" in line]
    assert line.startswith("  not finite: one incident, at steps 14 to 26: b had numbers")


def test_no_other_guard_is_advised_where_none_would_help():
    """What is not finite is refused by every guard; too large updates are not blamed where nobody knows."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = {"w": np.ones(2)}
        r8 = R8Scheduler(
            num_steps=40, scheduler_mode="keep", guard="finite", handle_signals=False,
            state_callback=lambda: dict(state), load_callback=state.update,
        )  # fmt: skip
        for step in r8.steps():
            state["w"] = state["w"] * (np.nan if step == 20 else 1.0)
            r8.update_with_loss(float(state["w"].sum()))
        r8.close()
    said = " ".join(str(each.message) for each in caught)

    assert "restored to step" in said
    assert "See docs/recovery.md." in said
    assert "guard=" not in said
    assert "too large" not in said


def test_weights_that_are_spoiled_before_each_batch_blame_no_update():
    """Where no good update was made between two restores, something else wrote into the weights."""
    model = classifier()
    optimizer = sgd(model, lr=0.02)
    adapter = attach(model, optimizer, DataLoader(DIGITS, batch_size=20), num_steps=140)

    def train():
        batches = (batch for _ in adapter.epochs() for batch in adapter.batches())
        for turn, (inputs, labels) in enumerate(batches):
            if turn >= 20:
                for each in model.parameters():
                    each.data.fill_(NAN)
            if adapter.report(loss := cross_entropy(model(inputs), labels)):
                descend(optimizer, loss)

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with pytest.raises(TrainingDiverged) as error:
            train()
    told = " ".join(str(each.message) for each in said) + str(error.value)

    assert "with no good update since then" in told
    assert ", 0 updates back" not in told
    assert "updates are probably too large" not in told


@pytest.mark.parametrize("is_given", [False, True])
def test_an_average_that_keeps_nan_is_named(is_given):
    """A gradient of NaN reaches the user's average of the weights, too, before a loss shows it."""
    model = classifier()
    model.register_buffer("mask", torch.tensor(float("-inf")))
    average, optimizer = copy.deepcopy(model).requires_grad_(False), sgd(model, lr=0.02)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with attach(
            model, optimizer, DataLoader(DIGITS, batch_size=20), num_steps=140, ema=average if is_given else None
        ) as adapter:
            for _ in adapter.epochs():
                for inputs, labels in adapter.batches():
                    if adapter.report(loss := cross_entropy(model(inputs), labels)):
                        descend(optimizer, loss)
                        for one, own in zip(average.parameters(), model.parameters(), strict=True):
                            own.data += NAN if adapter.scheduler.global_step == 70 else 0.0
                            one.lerp_(own.detach(), 0.1)
    named = [str(each.message) for each in caught if "a copy of its weights or their average (" in str(each.message)]

    assert len(named) == (not is_given)
    assert all(bool(each.isfinite().all()) for each in average.parameters()) == is_given


def test_a_damaged_model_that_nothing_holds_is_no_copy():
    """A network of an earlier training, which only the next collection takes away, is not named."""
    model, earlier = classifier(), classifier()
    earlier[0].weight.data.fill_(NAN)
    earlier.__dict__["itself"] = earlier
    assert damaged_copy(model) == "Sequential"

    del earlier

    assert damaged_copy(model) == ""
