"""Mistakes of a second visit: each is said with what would be right, before anything is changed."""

import atexit
import re
import sys
import threading
import warnings
from contextlib import nullcontext as nothing
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import learnit_r8
from learnit_r8 import EarlyStopping, R8Scheduler, events
from learnit_r8.cli import main
from learnit_r8.engine.settings import grouped
from learnit_r8.journal.run import UnreadableRun, find_run
from learnit_r8.loops import Period, after, every, loop
from learnit_r8.report import write_report
from learnit_r8.state.store import NoValidCheckpoint
from learnit_r8.streams import best, early_stop, pipe, take
from learnit_r8.testing import FakeClock, record_events
from learnit_r8.torch import attach
from learnit_r8.torch.predictions import predictions_of as torch_predictions_of
from tests.drive import make


def run(**settings):
    """A scheduler of two batches of ten an epoch."""
    return R8Scheduler(**grouped({"num_samples": 20, "batch_size": 10, "num_epochs": 2, **settings}))


def train(r8, loss=1.0, batches=None):
    for _ in r8.epoch_iterator():
        for _ in r8.batch_iterator() if batches is None else r8.batches(batches):
            r8.update_with_loss(loss)


def one_epoch(r8, loss=1.0):
    """Train without a loop over epochs."""
    for _ in r8.batch_iterator():
        r8.update_with_loss(loss)
    return r8


def opened(r8):
    """The scheduler with a batch open."""
    next(r8.batch_iterator())
    return r8


class Script:
    """A model, its data and its adapter, with R8's batches or with those of a loader of its own."""

    def __init__(self, own=False, num_epochs=1, **settings):
        torch.manual_seed(0)
        self.model, self.own = torch.nn.Linear(4, 2), own
        self.data = TensorDataset(torch.randn(20, 4), torch.zeros(20, dtype=torch.int64))
        self.loader, self.noted = DataLoader(self.data, batch_size=10), None
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1)
        given = {"num_epochs": num_epochs, **({} if own else {"batch_size": 10}), **settings}
        self.adapter = attach(self.model, self.optimizer, self.loader if own else self.data, **grouped(given))

    def batches(self):
        return self.adapter.batches() if self.own else self.adapter.loader()

    def losses(self, inputs, labels, reduction="none"):
        return cross_entropy(self.model(inputs), labels, reduction=reduction)

    def loss(self, inputs, labels):
        """What `step` takes."""
        losses = self.losses(inputs, labels)
        return losses.mean() if self.own else self.adapter.loss(losses)

    def train(self, act=None):
        """Train all epochs; ``act(script, inputs, labels)`` stands for a right step."""
        for _ in self.adapter.epochs():
            self.one_epoch(act)
        return self

    def one_epoch(self, act=None):
        for inputs, labels in self.batches():
            if act is None:
                self.adapter.step(self.loss(inputs, labels))
            else:
                act(self, inputs, labels)
        return self


WRONG = torch.nn.Linear(4, 2)
SGD = torch.optim.SGD(WRONG.parameters(), 0.1)
ROWS = TensorDataset(torch.randn(20, 4))
ONE_HOT = np.eye(3)


def attached(*given, **more):
    return attach(*given, **grouped({"batch_size": 10, "num_epochs": 1, **more}))


def backward_first(script, inputs, labels):
    loss = script.loss(inputs, labels)
    loss.backward()
    script.adapter.step(loss)


def with_state(state):
    return opened(run(state_callback=lambda: state, load_callback=lambda _: None))


def unreported(r8):
    next(r8.epoch_iterator())
    list(r8.batch_iterator())
    return r8


# fmt: off
ERRORS = [
    # A report in a wrong place, or of something else.
    (lambda folder: unreported(run()).update_with_loss(1.0), RuntimeError,
     "dropped, as the next one was drawn.*within the loop, once for each batch"),
    (lambda folder: [opened(r8 := run()).update_with_loss(1.0), r8.update_with_loss(1.0)], RuntimeError,
     "at step 1 with no batch open; the last one was reported already; report each batch once"),
    (lambda folder: run().update_with_loss(1.0), RuntimeError, "at step 0 with no batch open; draw one first"),
    (lambda folder: opened(r8 := run()).update_with_loss(1.0, r8.lr), TypeError,
     r"takes the losses alone, got 0\.0\d+ after them: .* as lr=\."),
    (lambda folder: run().report(np.ones(10)), TypeError, r"give the losses to update_with_loss\(\)"),
    *[(lambda folder, shape=shape: opened(run()).update_with_loss(np.ones(shape)), ValueError, text)
      for shape, text in (
          ((10, 1), r"got shape \(10, 1\)\. Add \.squeeze\(1\)\."), ((7,), r"got shape \(7,\)\.$"),
          ((10, 3), r"Average several losses of a sample with \.mean\(1\); class scores are not losses\."),
          ((10, 3, 2), r"with \.mean\(\(1, 2\)\)"), ((10, 10), r"outputs\[:, 0\] gives both one shape"))],
    (lambda folder: Script().one_epoch(backward_first), RuntimeError,
     r"step\(loss\) calls backward\(\) itself: take loss.backward\(\) out"),
    (lambda folder: (s := Script()).adapter.loss(s.losses(*next(iter(s.loader)))), RuntimeError,
     r"got none out: .* for batch in adapter\.loader\(\)"),
    *[(lambda folder, value=value: make().log(acc=value), (TypeError, ValueError),
       rf"log\(\) takes one number for each metric: acc must be {text}")
      for value, text in (("high", "a real number"), (None, "a real number"), (1j, "a real number"),
                          ([1.0, 2.0], r"one number, got shape \(2,\)"))],
    *[(lambda folder, given=given: make().log(*given), TypeError,
       r"log\(\) takes metrics by their names, as in log\(val_loss=0\.5\), got ")
      for given in ((0.5,), ("val_loss", 0.5), ({"val_loss": 0.5},))],
    *[(lambda folder, length=length: run().cool_down(length), ValueError,
       f"steps must be a whole number >= 1, got '{length}'.* Give {meant}")
      for length, meant in (("20min", "seconds=1200"), ("2 epochs", "epochs=2"), ("5", "steps=5"))],
    # What attach() and the scheduler take.
    *[(lambda folder, given=given, more=more: attached(*given, **more), (TypeError, ValueError), text, 300)
      for given, more, text in (
          ((WRONG, SGD, (torch.randn(20, 4), torch.zeros(20))), {},
           r"of the shapes \[\(20, 4\), .*TensorDataset\(x, y\)"),
          ((WRONG, [SGD, SGD], ROWS), {}, r'give the first, and the others as also=\{"second"'),
          ((SGD, WRONG, ROWS), {}, r"got SGD \( Parameter Group 0 .*\.\.\.\.$"),
          ((WRONG, SGD, DataLoader(ROWS)), {}, "or leave batch_size out"),
          ((WRONG, SGD, ROWS), {"shuffle": True}, "The scheduler decides which samples come next"),
          ((WRONG, SGD, ROWS), {"num_workers": 2}, r"adapter\.loader\(\.\.\.\) takes it"))],
    *[(lambda folder, name=name: attached(WRONG, SGD, ROWS, **{name: 1}), TypeError,
       rf"argument '{name}'. (attach\(|The model is on its device)")
      for name in ("gradient_clip_val", "gradient_accumulation_steps", "amp", "device")],
    (lambda folder: make(state_callback=torch.nn.Linear(99, 99).state_dict()), TypeError,
     "must be a function or None, got OrderedDict", 200),
    *[(lambda folder, state=state: with_state(state), TypeError, "got the Linear itself; return its state_dict")
      for state in (WRONG, {"net": WRONG})],
    (lambda folder: make(state_callback=lambda: None, load_callback=print).draw(), TypeError,
     "state_callback must return the state of the model, got None"),
    (lambda folder: EarlyStopping(patience=3, monitor="val_loss"), TypeError, "arguments of R8Scheduler and attach"),
    (lambda folder: Script().adapter.loader(num_workers="2"), ValueError,
     "num_workers must be a whole number >= 0, got '2', which is a str"),
    (lambda folder: train(run(num_samples=None, batch_size=None, scheduler_mode="keep"), batches=iter([1.0])),
     RuntimeError, "a loader that gives batches in each epoch"),
    # One thing in place of another.
    (lambda folder: write_report(make(), folder / "page.html"), TypeError,
     r"run_dir must be a run folder, such as r8\.run_dir, got R8Scheduler"),
    (lambda folder: [(folder / "ck_000000000001.r8").touch(), find_run(str(folder))], UnreadableRun,
     r"got '.*'\. It holds checkpoints; run_dir= keeps a run folder"),
    *[(lambda folder, over=over: iter(over()), TypeError, text) for over, text in (
        (make, r"R8Scheduler must be looped over by epochs.*for batch, lr in r8\.batch_iterator\(\)"),
        (lambda: make().epoch_iterator, r"write epoch_iterator\(\)"),
        (lambda: make().batch_iterator, r"write batch_iterator\(\)"),
        (lambda: Script().adapter.epochs, r"epochs must be called .*got the method itself; write epochs\(\)"),
        (lambda: Script().adapter.loader, r"write loader\(\)"),
        (lambda: Script(own=True).adapter.batches, r"write batches\(\)"),
        (lambda: make().table.suspects(), r"Suspects must be looped over by a field.* in suspects\.indices"),
        (lambda: make().table.ranking(), r"for index in ranking\.indices"),
        (lambda: make().table.hardest, r"write hardest\(\)"))],
    (lambda folder: np.ones(5)[run().table.suspects()], (TypeError, ValueError), r"x\[suspects.indices\]"),
    (lambda folder: make().table.suspects(10), ValueError, r"precision must be in \(0, 1\), got 10; .* call ranking\("),
    (lambda folder: learnit_r8.predictions_of(ONE_HOT, ONE_HOT), (TypeError, ValueError), r"targets.argmax\(1\)"),
    (lambda folder: learnit_r8.predictions_of(np.arange(3), np.arange(3)), (TypeError, ValueError),
     "give one for each class"),
    *[(lambda folder, made=made: made(iter([{"loss": 1.0}])), TypeError, text) for made, text in (
        (lambda told: pipe(told, early_stop, take(5)), r"write pipe\(events, early_stop\(\.\.\.\)\), got early"),
        (lambda told: pipe(told, best), r"write pipe\(events, best\(\.\.\.\)\), got best itself"),
        (lambda told: take(told, 5), r"write pipe\(events, take\(\.\.\.\)\), got the events"),
        (lambda told: early_stop(told, "loss", 3), r"pipe\(events, early_stop\(\.\.\.\)\), got the events"))],
    (lambda folder: every(minutes=10), ValueError, r"got \{'minutes': 10\}; .* time=\"10min\""),
    (lambda folder: every(time="10 minutes"), ValueError, "got '10 minutes'; as a text write"),
    # Names of other libraries.
    *[(lambda folder, name=name: getattr(make(), name), AttributeError, rf"no attribute '{name}'\..*{text}|{text}")
      for name, text in (
          ("step", r"Report each batch with update_with_loss\(losses\)"), ("update", r"update_with_loss\(losses\)"),
          ("get_last_lr", r"The rate is r8\.lr\."), ("get_lr", r"The rate is r8\.lr\."),
          ("learning_rate", r"The rate is r8\.lr\."), ("epochs", r"for epoch in r8\.epoch_iterator\(\)"),
          ("loader", r"for batch, lr in r8\.batch_iterator\(\)"), ("epoch", r"It is r8\.current_epoch\."),
          ("suspects", r"r8\.table\.suspects\(\)"), ("save", r"r8\.save_checkpoint\(\)"),
          ("loadbest", "Did you mean 'load_best'"), ("_step", "no attribute '_step'"),
          ("fly", r"no attribute 'fly'\.$"))],
    *[(lambda folder, own=own, name=name: getattr(Script(own).adapter, name), AttributeError, text)
      for own, name, text in (
          (False, "stop", r"no attribute 'stop'\. It is adapter\.scheduler\.stop\."),
          (False, "epoch_iterator", r"for epoch in adapter\.epochs\(\)"), (False, "loaders", "Did you mean 'loader'"),
          (True, "batch_iterator", r"no attribute 'batch_iterator'\..*for batch in adapter\.batches\(\)"),
          (True, "stop", r"adapter\.scheduler\.stop"),
          *[(own, name, text) for own in (False, True) for name, text in (
              ("suspects", r"table\.suspects\(\)"), ("save", "save_checkpoint"), ("backward", r"step\(loss\) does"))])],
    *[(lambda folder, name=name: exec(f"from learnit_r8 import {name}"), ImportError,
       rf"write: from learnit_r8\.\w+.* import {name}") for name in ("attach", "R8Callback", "train_loop")],
    *[(lambda folder, name=name: getattr(learnit_r8, name), AttributeError, "write: from")
      for name in ("attach", "R8Callback", "train_loop")],
]
"""What fails, the error, what it says, and perhaps how long it may be."""
# fmt: on


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("row", ERRORS, ids=[re.sub(r"\W+", " ", row[2])[:50] for row in ERRORS])
def test_a_mistake_is_told_what_would_be_right(row, tmp_path):
    """In an error."""
    wrong, kind, text, *most = row
    with pytest.raises(kind, match=text) as error:
        wrong(tmp_path)

    assert len(str(error.value)) < (most or [10**4])[0]


def said_of(function):
    """What a function warns of, in one text."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        function()
    return " | ".join(str(each.message) for each in said if issubclass(each.category, RuntimeWarning))


def closed(r8, act):
    act(r8)
    r8.close()


def after_close():
    r8 = run()
    r8.close()
    train(r8)


def other_optimizer(script, inputs, labels):
    losses = script.losses(inputs, labels)
    if script.adapter.report(losses):
        losses.mean().backward()
        torch.optim.SGD(script.model.parameters(), 0.1).step()


def anew(is_made_anew):
    """A run over an own loader of 32 batches, with an optimizer that is made anew in each epoch, or kept."""
    model, loader = torch.nn.Linear(4, 2), DataLoader(TensorDataset(torch.randn(64, 4)), batch_size=2)
    kept = torch.optim.Adam(model.parameters(), 0.01)
    adapter = attach(model, kept, loader, num_epochs=5)
    for epoch in range(5):
        optimizer = torch.optim.Adam(model.parameters(), 0.01) if is_made_anew and epoch else kept
        for (inputs,) in adapter.batches():
            loss = model(inputs).square().mean()
            if adapter.report(loss):
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()


def anew_once(is_made_anew):
    """A loop over steps, with an optimizer that is made anew in its middle, or kept."""
    model, inputs = torch.nn.Linear(4, 2), torch.randn(64, 4)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    adapter = attach(model, optimizer, None, num_steps=256)
    for step in adapter.steps():
        if adapter.report(loss := model(inputs).square().mean()):
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        if is_made_anew and step == 100:
            optimizer = torch.optim.Adam(model.parameters(), 0.001)


def other_model(script, inputs, labels):
    script.adapter.step(script.adapter.loss(cross_entropy(OTHER(inputs), labels, reduction="none")))


def reduced(how):
    return lambda script, inputs, labels: script.adapter.step(script.adapter.loss(script.losses(inputs, labels, how)))


def logged(step):
    """A run that logs after each epoch, with a step."""
    r8 = R8Scheduler(40, batch_size=10, num_epochs=3)
    r8.log(val_loss=1.0, step=0)
    for epoch in r8.epoch_iterator():
        one_epoch(r8)
        r8.log(val_loss=1.0, step=step(epoch, r8))


def early(each_batch):
    """A run that stops early, by values of each batch or of each epoch."""
    script = Script(num_epochs=4, monitor="val_loss", early_stopping=2)

    def act(script, inputs, labels):
        script.adapter.step(script.adapter.cross_entropy(script.model(inputs), labels))
        if each_batch:
            script.adapter.scheduler.log(val_loss=1.0)

    for _ in script.adapter.epochs():
        script.one_epoch(act)
        if not each_batch:
            script.adapter.scheduler.log(val_loss=1.0)
    assert script.adapter.scheduler.phase == "finished early"


def beyond(loop, r8):
    """Four loops over batches, where the budget is two epochs."""
    for _ in range(4):
        loop()
    assert r8.global_step == 4


def stopped():
    r8 = run()
    r8.requests.stop("enough")
    train(r8)
    assert (r8.pace.is_stopped, r8.global_step) == (True, 0)


KEEP = {"num_samples": None, "batch_size": None, "scheduler_mode": "keep"}
OTHER = torch.nn.Linear(4, 2)
SPENT = "the budget was spent at step 4, so this loop trains nothing"
# fmt: off
WARNED = [
    (after_close, "was closed at step 0: what is trained from here on is not recorded", 1),
    (lambda: closed(run(), one_epoch), r"closed at step 2 of 4: .* for epoch in r8.epoch_iterator\(\)", 1),
    (lambda: Script(num_epochs=2).one_epoch().adapter.close(),
     r"closed at step 2 of 4: .* for epoch in adapter\.epochs\(\)", 1),
    (lambda: R8Scheduler(32, batch_size=64, num_epochs=1), "batch_size 64 is more than the 32 samples", 1),
    (lambda: R8Scheduler(32, batch_size=32, num_epochs=1), "batch_size", 0),
    *[(lambda own=own: Script(own, num_epochs=3, monitor="val_loss", early_stopping=1).train(),
       "'val_loss'; logged were none so far", 1) for own in (False, True)],
    (lambda: Script(num_epochs=2).train(other_optimizer), r"attach\(\) got took no step with a gradient in an", 1),
    (lambda: Script(num_epochs=2).train(other_model), "another model than its own, is trained", 1),
    (lambda: anew(True), r"attach\(\) got has taken no step for 9[67] good batches: .*made anew in each epoch", 1),
    (lambda: anew(False), "has taken no step", 0),
    (lambda: anew_once(True), r"has taken no step for 9\d good batches: .*made anew", 1),
    (lambda: anew_once(False), "has taken no step", 0),
    (lambda: Script().train(reduced("sum")), "the loss is a sum over the batch", 1),
    (lambda: Script().train(reduced("mean")), "the loss is a sum over the batch", 0),
    # Losses of both signs look like errors; those of densities, of one sign, do not.
    *[(lambda mean=mean: one_epoch(R8Scheduler(40, batch_size=20, num_epochs=2), np.linspace(mean - 1, mean + 1, 20)),
       "if they are errors", times) for mean, times in ((0.0, 1), (3.0, 0), (-3.0, 0))],
    (lambda: logged(lambda epoch, r8: epoch), "number of the epoch", 1),
    (lambda: logged(lambda epoch, r8: r8.global_step), "number of the epoch", 0),
    (lambda: early(True), "one step after the other", 1),
    (lambda: early(False), "one step after the other", 0),
    (lambda: beyond(lambda r8=(r8 := run()): one_epoch(r8), r8), SPENT, 1),
    (lambda: beyond((s := Script(own=True, num_epochs=2)).one_epoch, s.adapter.scheduler), SPENT, 1),
    (stopped, "was spent", 0),
    (lambda: list(run(**KEEP).batches(iter([]))), "a generator is used up after one epoch", 1),
    (lambda: next(run(**KEEP).steps()), "this loop does not end by itself", 1),
    (lambda: next(run(**{**KEEP, "num_epochs": None, "num_steps": 2}).steps()), "does not end", 0),
]
"""What is done, the warning, and how often it is said."""
# fmt: on


@pytest.mark.parametrize(("act", "text", "times"), WARNED, ids=[f"{text[:45]} {times}" for _, text, times in WARNED])
def test_a_doubt_is_said_once(act, text, times):
    """In a warning; and not where there is none."""
    assert len(re.findall(text, said_of(act))) == times


def detached(script, inputs, labels):
    script.noted = script.loss(inputs, labels)
    script.adapter.step(script.noted.detach())


# fmt: off
STEPS = [
    (False, lambda s, x, y: s.adapter.step(s.losses(x, y, "mean")), RuntimeError,
     re.escape('adapter.loss(cross_entropy(outputs, labels, reduction="none"))')),
    (False, detached, ValueError,
     r"loss must come from the model with its graph.* without detach\(\)"),
    (False, lambda s, x, y: s.adapter.loss(s.model(x), y), TypeError, r"adapter\.cross_entropy\(logits, targets\)"),
    (True, lambda s, x, y: s.adapter.step(s.losses(x, y)), ValueError,
     r"got the shape \(10,\); call step\(losses\.mean\(\), losses=losses\)"),
]
# fmt: on


@pytest.mark.parametrize(("own", "wrong", "kind", "text"), STEPS)
def test_a_wrong_step_changes_nothing(own, wrong, kind, text):
    """The same batch is trained on by a right one, to the end of the run."""

    def act(script, inputs, labels):
        with pytest.raises(kind, match=text):
            wrong(script, inputs, labels)
        script.adapter.step(script.loss(inputs, labels) if script.noted is None else script.noted)

    assert Script(own, num_epochs=2).train(act).adapter.scheduler.global_step == 4


# fmt: off
COMMANDS = [
    (["ls", "a", "b"], "RUN must be one folder or name, got 'a' and 'b' (--find b lists the runs with that text)"),
    (["status", "a", "b"], "got 'a' and 'b' (compare takes several)"),
    (["ls", "a", "--finn"], "unrecognized arguments: --finn; did you mean --find"),
    (["report", "--out", "page.html"], "did you mean --html?"),
    (["report", "a", "page.html"], "--html FILE names the page"),
    (["samples", "a", "--csv", "out.csv"], "> FILE writes to a file"),
    (["export", "a", "--csv"], "did you mean --format"),
    (["suspects", "a"], "did you mean samples"),
    # What is nearly right.
    *[(command, f"did you mean {meant}?") for command, meant in (
        (["stauts"], "status"), (["watch", "--veiw", "data"], "--view"), (["watch", "--view", "dta"], "data"),
        (["sample", "--json"], "samples"), (["ask", "run", "pase"], "pause"))],
    (["samples", "--suspects", "--precision", "much"], "must be a number above 0, got 'much'."),
]
# fmt: on


@pytest.mark.parametrize(("command", "said"), COMMANDS)
def test_a_wrong_command_is_told_the_right_one(command, said, capsys):
    """Options and commands of other programs, too."""
    with pytest.raises(SystemExit):
        main(command)
    assert said in capsys.readouterr().err


def test_what_is_asked_of_runs_that_are_not_there(tmp_path, monkeypatch, capsys):
    """A text that no run has, no run at all, an option of another list."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("R8_RUNS", "runs")
    assert main(["status"]) == 1
    with run(num_epochs=1, run_dir="a/run", config={"lr": 0.1}) as r8:
        train(r8)
    assert main(["ls", "a", "--find", "lr=0.1"]) == 0
    assert main(["ls", "a", "--find", "lr=0.3"]) != 0
    assert main(["samples", "a/run", "--precision", "0.9"]) == 1
    said = capsys.readouterr().err
    for text in ("run_dir=True or use_curses=True", "given with --suspects or --places", "got 'lr=0.3', which none of"):
        assert text in said


def test_resume_takes_a_folder(tmp_path):
    """A folder of checkpoints means its newest valid one."""
    with make(checkpoint_dir=tmp_path / "saved") as r8:
        train(r8)
    (tmp_path / "empty").mkdir()

    with pytest.warns(RuntimeWarning, match="nothing to do"):
        assert make(resume=tmp_path / "saved").global_step == r8.global_step
    with pytest.raises(NoValidCheckpoint, match=r"resume must hold a valid checkpoint, got none in .*empty"):
        make(resume=tmp_path / "empty")


@pytest.mark.skipif(not hasattr(Exception, "add_note"), reason="exceptions have no notes before Python 3.11")
def test_an_exception_of_the_state_callback_says_who_called_it():
    """The user's own exception is raised, with a note on where the call came from."""
    r8 = make(state_callback=lambda: 1 // 0, load_callback=lambda state: None)
    with pytest.raises(ZeroDivisionError) as caught:
        r8.draw()

    assert "raised by state_callback" in caught.value.__notes__[0]


def test_two_threads_on_one_loop_are_told_apart():
    """A second thread that begins the loop of another is told which calls are for several threads."""
    r8, said = run(), []
    epochs = r8.epoch_iterator()
    next(epochs)

    def second():
        try:
            next(r8.epoch_iterator())
        except RuntimeError as error:
            said.append(str(error))

    thread = threading.Thread(target=second)
    thread.start()
    thread.join()

    assert "draw_if_any() and report()" in said[0]
    epochs.close()
    next(r8.epoch_iterator())


def test_two_runs_in_one_folder_of_one_process_are_said(tmp_path):
    """The second one says so and goes on recording; the first one's record ends, and the file stays readable."""
    first = run(run_dir=tmp_path)
    with pytest.warns(RuntimeWarning, match="was not closed, and another one starts there"):
        second = run(run_dir=tmp_path)
    train(second)
    second.close()
    first.close()
    run(run_dir=tmp_path).close()


def test_a_loop_over_the_loader_itself_is_said_and_ends():
    """Epochs of batches that did not come through `batches` would never end."""
    script = Script(own=True, num_epochs=2)
    script.batches = lambda: script.loader
    with (
        pytest.warns(RuntimeWarning, match=r"step 0 is of no batch of adapter\.batches\(\)"),
        pytest.raises(RuntimeError, match="epoch 0 ended with no batch reported"),
    ):
        script.train()
    assert script.adapter.scheduler.global_step == 2


def test_epochs_left_by_a_break_go_on():
    """A break in each epoch is no loop without batches, and the validation's own loader is none of ours."""
    script = Script(own=True, num_epochs=2)
    for _ in script.adapter.epochs():
        for inputs, labels in script.batches():
            script.adapter.step(script.loss(inputs, labels))
            break
        assert len(list(script.loader)) == 2
    assert script.adapter.scheduler.is_over


def test_batches_of_which_no_loss_came_are_counted():
    """The summary says how many batches of a loader were not reported."""
    adapter = Script(num_epochs=3).adapter
    with pytest.warns(RuntimeWarning) as said:
        _ = [list(adapter.loader()) for _ in range(4)]
    assert "no loss reported" in str(said[0].message)
    assert "adapter.step(adapter.loss(losses))" in str(said[0].message)
    assert "batches not reported: 6;" in adapter.scheduler.summary()


def test_rows_in_a_list_are_a_data_set():
    """Two samples of equal shapes are not two columns."""
    attach(WRONG, SGD, [torch.zeros(2, 4), torch.ones(2, 4)], batch_size=1, num_epochs=1)


def softmaxed(rows=10, classes=3):
    return torch.randn(rows, classes).softmax(1), torch.arange(rows) % classes


@pytest.mark.parametrize("of", [learnit_r8.predictions_of, torch_predictions_of])
def test_probabilities_in_place_of_logits_are_said(of):
    """Logits, and log probabilities, are not taken for them; nor is a handful of numbers that may be anything."""
    chances, classes = softmaxed()
    with pytest.warns(RuntimeWarning, match="logits look like probabilities, as each row sums to 1") as said:
        of(chances, classes)
    assert said[0].filename == __file__

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for right in (torch.randn(10, 3), chances.log(), chances[:2], chances + 0.1, torch.ones(10, 3)):
            of(right, classes[: len(right)])
        of(torch.rand(10, 2, 4).softmax(1).log(), torch.zeros(10, 4, dtype=torch.int64), axis=1)


def test_an_adapter_says_probabilities_once():
    """Of a model that ends with a softmax; training goes on."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        Script(num_epochs=2).train(lambda s, x, y: s.adapter.step(s.adapter.cross_entropy(s.model(x).softmax(1), y)))
    assert [each.filename for each in said if "look like probabilities" in str(each.message)] == [__file__]


@pytest.mark.parametrize(("monitor", "more", "worst"), [
    ("val_acc", {}, False), ("val_loss", {}, True), ("val_acc", {"mode": "min"}, True),
])  # fmt: skip
def test_the_direction_of_a_monitor_is_that_of_its_name(monitor, more, worst):
    """An accuracy that rises is no reason to stop; a mode that is given is left alone, and said to be odd."""
    odd = pytest.warns(RuntimeWarning, match="'val_acc', of which higher is better by its name") if more else nothing()
    with odd:
        script = Script(num_epochs=4, monitor=monitor, early_stopping=2, **more)
    r8 = script.adapter.scheduler
    for epoch in script.adapter.epochs():
        script.one_epoch()
        r8.log(**{monitor: epoch / 10})
    assert (r8.phase, r8.load_best()) == (("finished early", 0.0) if worst else ("finished", 0.3))


def test_losses_of_every_pair_are_asked_about():
    """Once; not where B tokens have a loss each, as no number of theirs was one of a sample."""
    model, tokens = torch.nn.Linear(4, 1), torch.nn.Linear(4, 10)

    def pairs(script, inputs, labels):
        script.adapter.step(script.adapter.loss(((model(inputs) - labels) ** 2).clamp(max=9) * 2))

    def of_tokens(script, inputs, labels):
        logits, classes = tokens(inputs)[:, :, None] * torch.ones(3), torch.zeros(10, 10, dtype=torch.int64)
        script.adapter.step(script.adapter.loss(cross_entropy(logits.mT, classes, reduction="none")))

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        Script().one_epoch(pairs)
    assert [each.filename for each in said if "outputs.squeeze(1)" in str(each.message)] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Script().one_epoch(of_tokens)


@pytest.mark.parametrize(("returned", "kind"), [(lambda s: {"loss": 1.0}, "dict"), (lambda s: (s, {"l": 1}), "tuple")])
def test_metrics_that_become_the_state_of_a_loop_are_said(returned, kind):
    """A state that is a dictionary from the start, or a number that becomes an array, is none of that."""
    with pytest.warns(RuntimeWarning, match=r"changes from Linear to .*dict.*logs\(\)\.add_metric") as said:
        state = loop(torch.nn.Linear(1, 1), range(3), {every(1): [returned]})[0]
    assert (len(said), type(state).__name__) == (1, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop({}, range(3), {every(1): lambda state, batch: {**state, batch: 1}})
        loop(None, range(3), {every(1): lambda state: {"weights": 1}})
        loop(0, range(3), {every(1): lambda state: np.zeros(3)})


def test_a_time_in_words_is_a_time_everywhere():
    for trigger in (every("10min"), every(time="10min"), every(time=600)):
        assert (trigger.unit, trigger.interval) == ("time", 600)
    assert after("2h").point == Period(time="2h").time == 7200


def test_suspects_are_counted_as_a_list_is():
    """`len` of suspects is how many there are, so that none are false."""
    suspects = make().table.suspects()
    assert (len(suspects), bool(suspects)) == (0, False)


def test_time_that_ends_at_the_start_of_an_epoch_is_no_mistake():
    clock = FakeClock()
    for more in ({"num_samples": 20, "batch_size": 10}, {"scheduler_mode": "keep"}):
        r8 = R8Scheduler(train_duration_seconds=5, clock=clock, **grouped(more))
        for epoch in r8.epoch_iterator():
            clock.now += 9 * epoch
            for _ in r8.batch_iterator() if "batch_size" in more else r8.batches([1, 2]):
                r8.update_with_loss(1.0)
        assert r8.is_over


def test_rows_without_labels_are_noted():
    for data, count in ((torch.randn(20, 4), 1), (ROWS, 0)):
        heard = record_events()
        attach(WRONG, SGD, data, batch_size=10, num_epochs=1, listeners=[heard])
        said = [each for each in heard.of(events.Notice) if "TensorDataset(x, y)" in each.text]
        assert len(said) == count


def test_a_validation_through_the_adapter_is_said():
    """A training that gives its losses detached, or over another loader, is none."""
    script = Script(own=True, num_epochs=2)

    def validate():
        for inputs, labels in script.adapter.batches(list(script.loader)):
            with torch.no_grad():
                script.adapter.report(script.loss(inputs, labels))

    for inputs, labels in script.adapter.batches(list(script.loader)):
        script.adapter.report(script.loss(inputs, labels).detach())
    assert len(re.findall(r"step 2 has no gradient.*adapter\.log\(val_loss=", said_of(validate))) == 1


def test_checkpoints_without_a_model_are_said(tmp_path):
    """As a run goes on from one, and in it where nobody listens yet."""
    about = {"checkpoint_dir": tmp_path, "backup_dir": False, "resume": "auto"}
    r8 = make(num_epochs=9, load_callback=print, **about)
    r8.draw()
    r8.save_checkpoint()
    with pytest.warns(RuntimeWarning, match="With save_callback= it would hold it"):
        make(num_epochs=9, load_callback=print, **about)
    heard = record_events()
    make(num_epochs=9, listeners=[heard], **about).draw()
    assert ["With save_callback=" in each.text for each in heard.of(events.Notice)] == [True]


def test_an_attach_within_the_loop_is_said():
    """One after another, with the first run closed, is none."""
    script = Script(own=True, num_epochs=2)

    def step():
        inputs, labels = next(iter(script.batches()))
        script.adapter.step(script.loss(inputs, labels))

    step()
    with pytest.warns(RuntimeWarning, match=r"attach\(\) was called again .*call it once, before the loop"):
        script.adapter = attach(script.model, script.optimizer, script.loader, num_epochs=2)
    step()
    script.adapter.close()
    attach(script.model, script.optimizer, script.loader, num_epochs=2)


def test_a_file_that_is_no_checkpoint_is_told_from_one(tmp_path):
    r8 = make(checkpoint_dir=tmp_path)
    saved = r8.save_checkpoint().path
    (tmp_path / "x.safetensors").write_bytes(b"0" * 99)
    for name, kind in (("x.safetensors", ValueError), ("nonexistent.r8", FileNotFoundError)):
        with pytest.raises(kind, match=rf"file of a checkpoint, got .*{name}' is in the folder '.*{saved.name}"):
            r8.load_checkpoint(tmp_path / name)


def test_a_resume_with_another_optimizer_is_said(tmp_path):
    model, data = torch.nn.Linear(4, 2), ROWS
    about = {"batch_size": 10, "num_epochs": 1, "checkpoint_dir": tmp_path, "backup_dir": False}
    with attach(model, torch.optim.AdamW(model.parameters()), data, **grouped(about)) as adapter:
        adapter.scheduler.save_checkpoint()
    with pytest.raises(RuntimeError, match=r"the kind of this one, SGD, got one with options of Adam; give that one"):
        attach(model, torch.optim.SGD(model.parameters(), 0.1), data, resume="auto", **grouped(about))
    attach(model, torch.optim.Adam(model.parameters()), data, resume="auto", **grouped(about))


def test_python_adds_no_guess_of_its_own():
    """It would name a private attribute, behind the right hint."""
    r8 = make()
    with pytest.raises(AttributeError, match=r"It is r8.table.suspects\(\)") as raised:
        r8.suspects()
    assert (raised.value.name, raised.value.obj) == ("suspects", None)


@pytest.mark.parametrize("of_torch", [False, True])
def test_one_epoch_of_several_is_said_at_exit(monkeypatch, of_torch):
    """Scripts seldom close a run."""
    at_exit = []
    monkeypatch.setattr(atexit, "register", at_exit.append)
    loop = Script(num_epochs=2).one_epoch() if of_torch else one_epoch(run())
    assert loop
    assert "To train all epochs" in said_of(lambda: [each() for each in at_exit])
    # After an exception the loop was cut short, wherever it came from.
    monkeypatch.setattr(sys, "last_value", KeyboardInterrupt(), raising=False)
    assert not said_of(lambda: [each() for each in at_exit])


@pytest.mark.parametrize(("error", "own", "said"), [
    (IndexError("only integers, slices (`:`), ..."), False, "for batch, lr in"),
    (ValueError("too many values to unpack (expected 2)"), True, "without a rate"),
])  # fmt: skip
def test_what_the_first_batch_was_taken_for_is_said_at_exit(monkeypatch, error, own, said):
    """Where the error is numpy's or Python's own, and no batch was reported."""
    at_exit = []
    monkeypatch.setattr(atexit, "register", at_exit.append)
    r8 = run(**(KEEP if own else {}))
    next(iter(r8.batches([[1, 2, 3]]) if own else r8.batch_iterator()))
    monkeypatch.setattr(sys, "last_value", error, raising=False)
    assert said in said_of(lambda: [each() for each in at_exit])


def test_another_run_in_the_folder_is_told_how_to_begin_anew(tmp_path):
    def go(width, batch_size=10):
        model, data = torch.nn.Linear(4, width), Script().data
        given = {"batch_size": batch_size, "num_epochs": 1, "checkpoint_dir": tmp_path, "resume": "auto"}
        with attach(model, torch.optim.SGD(model.parameters(), 0.1), data, **given) as adapter:
            for inputs, labels in adapter.loader():
                adapter.step(adapter.cross_entropy(model(inputs), labels))

    go(2)
    with pytest.raises(RuntimeError, match="another checkpoint_dir, or resume=None, begins a new run"):
        go(3)
    with pytest.raises(ValueError, match="another checkpoint_dir begins a new run"):
        go(2, batch_size=5)


@pytest.mark.parametrize("text", ["a,b\n1,x,3\n", "x,y\nimport os, sys, re\n"])
def test_a_file_that_is_no_table_is_said(tmp_path, text, capsys):
    (tmp_path / "t.csv").write_text(text)
    assert main(["labels", str(tmp_path / "t.csv")]) == 1
    assert "more values than names in its row 1" in capsys.readouterr().err


def test_a_home_is_found_without_a_shell(tmp_path, monkeypatch):
    """No folder of the name "~" comes to be."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for epochs in (1, 2):
        with R8Scheduler(
            20, batch_size=10, num_epochs=epochs, run_dir="~/run", checkpoint_dir=Path("~/saved"), resume="auto"
        ) as r8:
            assert r8.current_epoch == epochs - 1
            train(r8)
    assert [each.name for each in tmp_path.iterdir()] == ["home"]
    assert sorted(each.name for each in (tmp_path / "home").iterdir()) == ["run", "saved"]


def test_what_is_missing_of_a_model_is_said(tmp_path):
    said = pytest.warns(RuntimeWarning, match="goes on at step 2 with the model as the script has made it")
    for num_epochs, expected in ((1, nothing()), (2, said)):
        with run(num_epochs=num_epochs, checkpoint_dir=tmp_path, resume="auto") as r8, expected:
            train(r8)
    with pytest.raises(RuntimeError, match=r"needs a state_callback.* and a load_callback; got neither"):
        r8.load_best()
