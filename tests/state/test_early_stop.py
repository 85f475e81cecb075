"""Early stops: validate, stop, keep the best; they are a success, also for whoever runs the program again."""

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from learnit_r8 import EarlyStopping, R8Scheduler, events
from learnit_r8.cli import main
from learnit_r8.dashboard.watch import look
from learnit_r8.engine.settings import grouped
from learnit_r8.events.event import describe
from learnit_r8.loops import early_stopping, every, logs, loop
from learnit_r8.streams import early_stop, pipe
from learnit_r8.torch import attach
from tests.drive import make

VALUES = [1.0, 0.8, 0.5, 0.7, 0.9, 0.6, 0.4]


class Model:
    """Weights that are the number of steps trained."""

    def __init__(self):
        self.weights = np.zeros(1)

    def get(self):
        return self.weights

    def load(self, source, from_ram=False):
        self.weights = np.array(source if from_ram else np.load(source))

    def save(self, state, path):
        with open(path, "wb") as file:
            np.save(file, state["model"])


def scheduler(model, tmp_path=None, **more):
    callbacks = {"state_callback": model.get, "load_callback": model.load}
    if tmp_path is not None:
        callbacks |= {"save_callback": model.save, "checkpoint_dir": tmp_path / "ck"}
    given = {"num_epochs": 7, "monitor": "val_loss", "early_stopping": 3, **callbacks, **more}
    return R8Scheduler(12, batch_size=4, **grouped(given))


def train(r8, model, values=VALUES):
    for epoch in r8.epoch_iterator():
        for _ in r8.batch_iterator():
            if r8.update_with_loss(1.0):
                model.weights = model.weights + 1
        r8.log(val_loss=values[epoch])


@pytest.mark.parametrize("has_folder", [False, True], ids=["in RAM", "checkpoints"])
def test_a_run_ends_when_it_gets_no_better_and_its_best_model_comes_back(tmp_path, has_folder):
    """Three values without a better one end it after that epoch; the best model is kept without a setting more."""
    model = Model()
    with scheduler(model, tmp_path if has_folder else None) as r8:
        train(r8, model)

    assert r8.global_step == 6 * 3
    assert (r8.phase, r8.is_over) == ("finished early", True)
    assert model.weights[0] == 18
    assert r8.load_best() == 0.5
    assert model.weights[0] == 9


def note_value(state, value):
    return logs().add_metric("v", value)


@pytest.mark.filterwarnings("ignore:mode='max' was given")
@pytest.mark.parametrize("rule", [2, EarlyStopping(2), EarlyStopping(patience=2, min_delta=0.25)])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_one_rule_ends_scheduler_loop_and_stream(rule, mode):
    """The scheduler, loops and streams end with the same value, whatever the values are."""
    patience, min_delta = (rule, 0.0) if isinstance(rule, int) else (rule.patience, rule.min_delta)
    rng = np.random.default_rng(0)
    for _ in range(8):
        values = np.where(rng.random(9) < 0.1, np.nan, rng.normal(size=9)).tolist()
        model = Model()
        r8 = scheduler(model, num_epochs=9, early_stopping=rule, mode=mode)
        train(r8, model, values)
        seen = pipe([{"v": value} for value in values], early_stop("v", patience, mode, min_delta))
        stopping = early_stopping("v", patience, min_delta, mode, restore_best_weights=False)
        elapsed = loop(0, values, {every(1): note_value}, stopping)[2]

        assert r8.global_step / 3 == len(list(seen)) == elapsed.steps


def test_the_loop_ends_its_run_with_a_reason(tmp_path):
    """`stop` ends it after the step; every view says "finished early", and the exit code is that of a success."""
    heard = []
    r8 = make(num_epochs=5, run_dir=tmp_path / "run", listeners=[heard.append])
    with r8:
        for _ in r8.epoch_iterator():
            for _ in r8.batch_iterator():
                r8.update_with_loss(1.0)
                if r8.global_step == 4:
                    r8.stop("good enough")
    stopped = next(event for event in heard if isinstance(event, events.RunStopped))

    assert r8.global_step == 4
    assert look(tmp_path / "run").state[:2] == ("finished early", "good enough")
    assert main(["status", str(tmp_path / "run")]) == 0
    assert heard[-1].early == "good enough"
    assert describe(stopped)[:2] == ("good", "ends early: good enough")


def test_another_budget_goes_on_with_a_run_that_its_loop_has_ended(tmp_path):
    """Who gives more epochs to a run that `stop` has ended wants them."""
    with make(num_epochs=5, checkpoint_dir=tmp_path) as r8:
        r8.report(r8.draw(), 1.0)
        r8.stop("good enough")
    again = make(num_epochs=9, checkpoint_dir=tmp_path, resume="auto")

    assert not again.is_over


def test_a_request_from_outside_only_breaks_a_run_off(tmp_path, capsys):
    """`requests.stop` stays what it is, also where the program asked for its end too: stopped, exit code 5."""
    r8 = make(num_epochs=5, run_dir=tmp_path / "run")
    with r8:
        next(r8.epoch_iterator())
        r8.report(r8.draw(), 1.0)
        r8.stop("done")
        r8.requests.stop("by hand")
        assert r8.draw_if_any() is None

    assert r8.phase == "stopped"
    assert main(["status", str(tmp_path / "run"), "--json"]) == 5
    assert json.loads(capsys.readouterr().out)["state"] == "stopped"


def test_a_run_that_finished_early_does_nothing_when_it_is_run_again(tmp_path):
    """With resume="auto" the same program trains nothing more, and says so; more patience or another budget goes on."""
    model = Model()
    with scheduler(model, tmp_path, resume="auto") as r8:
        train(r8, model)
    with pytest.warns(RuntimeWarning, match=r"finished early, at step 18 \(val_loss: no value lower than 0.5 in 3"):
        again = scheduler(Model(), tmp_path, resume="auto")
    with again:
        train(again, Model())
    patient = scheduler(Model(), tmp_path, resume="auto", early_stopping=4)
    longer = scheduler(Model(), tmp_path, resume="auto", num_epochs=9)

    assert (again.global_step, again.phase) == (18, "finished early")
    assert again.load_best() == 0.5
    assert not patient.is_over
    assert not longer.is_over


def test_the_count_goes_on_after_a_resume(tmp_path):
    """Values before a kill count: a run of two sessions ends where one of one session does."""
    model = Model()
    r8 = scheduler(model, tmp_path)
    state = None
    for epoch in r8.epoch_iterator():
        for _ in r8.batch_iterator():
            r8.update_with_loss(1.0)
        r8.log(val_loss=VALUES[epoch])
        if epoch == 3:
            state = r8.state_dict()
            break
    second = scheduler(Model())
    second.load_state_dict(state)
    train(second, Model())

    assert second.global_step == 18


@pytest.mark.parametrize("logs_late", [False, True])
def test_a_mistyped_monitor_is_said_after_the_first_epoch_that_logged(logs_late):
    """In the first epoch it is an error that names what was meant; later a warning, as hours are not thrown away."""
    r8 = scheduler(Model(), monitor="val_los")

    def go_on():
        for epoch in r8.epoch_iterator():
            for _ in r8.batch_iterator():
                r8.update_with_loss(1.0)
            if epoch or not logs_late:
                r8.log(val_loss=1.0, accuracy=0.5)

    message = r"monitor must be a metric given to log\(\), got 'val_los'; logged were \['accuracy', 'val_loss'\]"
    if logs_late:
        with (
            pytest.warns(RuntimeWarning, match=message),
            pytest.warns(RuntimeWarning, match=r"logged were none so far\. Until it is"),
        ):
            go_on()
        assert r8.global_step == 21
    else:
        with pytest.raises(ValueError, match=message + r".* Did you mean 'val_loss'\?"):
            go_on()
        assert r8.global_step == 3


def test_a_monitor_that_is_only_late_is_no_error():
    """Training metrics of the first epoch, and validation every other one: a warning, and the run goes on."""
    r8 = scheduler(Model(), early_stopping=2)

    def go_on():
        for epoch in r8.epoch_iterator():
            for _ in r8.batch_iterator():
                r8.update_with_loss(1.0)
                r8.log(batch_loss=1.0)
            if epoch % 2:
                r8.log(val_loss=1.0)

    with pytest.warns(RuntimeWarning, match="Until it is, there is no best model and no early stopping"):
        go_on()

    assert r8.phase == "finished early"


@pytest.mark.parametrize("has_folder", [False, True], ids=["in RAM", "checkpoints"])
def test_with_attach_no_epoch_begins_after_the_end(tmp_path, has_folder):
    """The loop of an adapter ends with the epoch that was one too many; the best weights come back."""
    torch.manual_seed(0)
    x = torch.randn(40, 4)
    model = torch.nn.Linear(4, 2)
    data = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())
    more = {"checkpoint_dir": tmp_path / "ck"} if has_folder else {}
    counts, best = [], None
    with attach(model, torch.optim.SGD(model.parameters(), 0.1), data, batch_size=10, num_epochs=7,
                early_stopping=2, **grouped(dict(monitor="val_loss", **more))) as adapter:  # fmt: skip
        for epoch in adapter.epochs():
            counts.append(0)
            for inputs, labels in adapter.loader():
                adapter.step(adapter.loss(cross_entropy(model(inputs), labels, reduction="none")))
                counts[-1] += 1
            adapter.scheduler.log(val_loss=VALUES[epoch])
            best = model.weight.detach().clone() if epoch == 2 else best
    adapter.scheduler.load_best()

    assert counts == [4] * 5
    assert torch.equal(model.weight, best)


def test_load_best_says_what_it_needs():
    with pytest.raises(RuntimeError, match=r"load_best\(\) needs a state_callback.* and a load_callback; got neither"):
        make().load_best()
    with pytest.raises(RuntimeError, match=r"load_best\(\) needs a best model, got none so far: name a metric"):
        scheduler(Model()).load_best()
