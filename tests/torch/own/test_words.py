"""What a person is told of trouble: once on the terminal, and a line of the summary for each kind."""

import contextlib
import json
import warnings

import numpy as np
import pytest
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from learnit_r8 import R8Scheduler, TrainingDiverged, events
from learnit_r8.cli import main
from learnit_r8.dashboard.event_text import describe
from learnit_r8.dashboard.plain import PlainLog
from learnit_r8.dashboard.render.header import rate_part
from learnit_r8.dashboard.state.view import View
from learnit_r8.testing import record_events
from learnit_r8.torch import attach
from tests.torch_common import DIGITS, classifier, sgd

NAN = float("nan")


def run(*, bad_input=(), bad_weights=(), steps=200, on_error=None, **settings):
    """Train on batches of one's own; at some turns of the loop a batch or the weights are spoiled."""
    model, torch_loader = classifier(), DataLoader(DIGITS, batch_size=20)
    optimizer = sgd(model, lr=0.02)
    adapter = attach(model, optimizer, torch_loader, num_steps=steps, **settings)
    turn = 0
    with adapter:
        for _ in adapter.epochs():
            for inputs, labels in adapter.batches():
                turn += 1
                if turn in bad_input:
                    inputs[3] = NAN
                with contextlib.nullcontext() if on_error is None else on_error:
                    if adapter.report(loss := cross_entropy(model(inputs), labels)):
                        optimizer.zero_grad()
                        loss.backward()
                        optimizer.step()
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
    assert summary[2].startswith("  not finite: 2, the last at step 90: the refused batch was to blame")


def test_healed_weights_are_said_once():
    """Weights that are mended, though no loss was refused, are a warning and a line of the summary; then a count."""
    said, summary, model = said_of(bad_weights=(70, 120))

    assert len(said) == 1
    assert said[0].startswith("losses or weights were not finite at step 7")
    assert "0.weight had numbers that are not finite, and came from the backup of step 6" in said[0]
    assert summary[2].startswith("  weights not finite: 2, the last at step 12")
    assert all(each.isfinite().all() for each in model.parameters())


def test_healthy_run_says_nothing():
    said, summary, _ = said_of()

    assert said == []
    assert len(summary) == len([line for line in summary if line.startswith("  Q")]) + 3


def test_plain_lines_and_warning_do_not_say_it_twice(capsys):
    """A listener that shows events on the terminal takes the place of the warning."""
    said, summary, _ = said_of(bad_input=(70,), bad_weights=(120,), listeners=[PlainLog()])
    printed = capsys.readouterr().err

    assert said == []
    assert printed.count("loss nan refused") == 1
    assert printed.count("numbers that are not finite") == 1
    assert len([line for line in summary if line.startswith(("  not finite: 1", "  weights not finite: 1"))]) == 2


def test_summary_counts_over_a_resume(tmp_path):
    """A resumed run goes on counting, and warns of its own first one."""
    given = {"checkpoint_dir": tmp_path, "checkpoint_every": 50, "resume": "auto"}
    said_of(bad_input=(70,), steps=100, **given)
    said, summary, _ = said_of(bad_input=(10,), steps=200, **given)

    assert len([line for line in said if "was refused at step 1" in line]) == 1
    assert [line for line in summary if line.startswith("  not finite: 2, the last at step 1")]


@pytest.mark.parametrize("fault", [{"bad_input": (70, 72)}, {"bad_weights": (70,)}])
def test_warning_that_is_raised_leaves_a_whole_run(fault):
    """Where warnings are errors, as under pytest -W error, the call raises after its work is done: the run goes on."""
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
