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

import learnit_r8
from learnit_r8 import EarlyStopping, R8Scheduler, events
from learnit_r8.checkpoint.store import NoValidCheckpoint
from learnit_r8.cli import main
from learnit_r8.engine.settings import grouped
from learnit_r8.journal.run import UnreadableRun, find_run
from learnit_r8.loops import Period, after, every, loop
from learnit_r8.report import write_report
from learnit_r8.streams import best, early_stop, pipe, take
from learnit_r8.testing import FakeClock, record_events
from learnit_r8.torch import attach
from learnit_r8.torch.predictions import predictions_of as torch_predictions_of
from tests.drive import make


def train(r8):
    for _ in r8.epoch_iterator():
        for _ in r8.batch_iterator():
            r8.update_with_loss(1.0)


def attached(num_epochs=1, **more):
    model = torch.nn.Linear(4, 2)
    data = torch.utils.data.TensorDataset(torch.randn(20, 4), torch.zeros(20, dtype=torch.int64))
    return model, attach(
        model, torch.optim.SGD(model.parameters(), 0.1), data, batch_size=10, num_epochs=num_epochs, **grouped(more)
    )


def test_a_report_outside_of_the_batch_loop_is_told_where_it_belongs():
    """A loop that reports once an epoch is told that each batch is reported within the loop, once."""
    r8 = R8Scheduler(20, batch_size=10, num_epochs=2)
    next(r8.epoch_iterator())
    with pytest.warns(RuntimeWarning, match="was not reported"):
        list(r8.batch_iterator())
    with pytest.raises(RuntimeError, match=r"dropped, as the next one was drawn.*within the loop, once for each batch"):
        r8.update_with_loss(1.0)


def test_a_report_twice_is_said():
    r8 = R8Scheduler(20, batch_size=10, num_epochs=2)
    next(r8.batch_iterator())
    r8.update_with_loss(1.0)
    with pytest.raises(RuntimeError, match="reported already; report each batch once"):
        r8.update_with_loss(1.0)


def test_step_without_loss_is_told_the_two_lines():
    """`step(cross_entropy(...))` is told to pass the losses of the samples through `loss` first."""
    model, adapter = attached()
    for _ in adapter.epochs():
        for inputs, labels in adapter.loader():
            with pytest.raises(
                RuntimeError, match=re.escape('adapter.loss(cross_entropy(outputs, labels, reduction="none"))')
            ):
                adapter.step(cross_entropy(model(inputs), labels))
            adapter.step(adapter.loss(cross_entropy(model(inputs), labels, reduction="none")))


def test_a_detached_loss_is_said():
    """A loss without its graph is named before anything is changed; training goes on with a right one."""
    model, adapter = attached()
    for _ in adapter.epochs():
        for inputs, labels in adapter.loader():
            loss = adapter.loss(cross_entropy(model(inputs), labels, reduction="none"))
            with pytest.raises(ValueError, match=r"loss must come from the model with its graph.* without detach\(\)"):
                adapter.step(loss.detach())
            adapter.step(loss)

    assert adapter.scheduler.global_step == 2


def test_resume_takes_a_folder(tmp_path):
    """A folder of checkpoints means its newest valid one; "True" is told what it may mean."""
    r8 = make(checkpoint_dir=tmp_path / "saved")
    train(r8)
    r8.close()
    (tmp_path / "empty").mkdir()

    with pytest.warns(RuntimeWarning, match="nothing to do"):
        assert make(resume=tmp_path / "saved").global_step == r8.global_step
    with pytest.raises(NoValidCheckpoint, match=r"resume must hold a valid checkpoint, got none in .*empty"):
        make(resume=tmp_path / "empty")
    with pytest.raises(TypeError, match=r"resume must be 'auto', the file .*, got True. Did you mean 'auto'\?"):
        make(resume=True)
    with pytest.raises(FileNotFoundError, match=r"a folder of checkpoints, got 'saved', which does not exist"):
        make(resume="saved")


@pytest.mark.parametrize("value", ["high", [1.0, 2.0], None])
def test_a_metric_is_one_number(value):
    with pytest.raises((TypeError, ValueError), match=r"log\(\) takes one number for each metric: acc must be"):
        make().log(acc=value)


@pytest.mark.skipif(not hasattr(Exception, "add_note"), reason="exceptions have no notes before Python 3.11")
def test_an_exception_of_the_state_callback_says_who_called_it():
    """The user's own exception is raised, with a note on where the call came from."""
    r8 = make(state_callback=lambda: 1 // 0, load_callback=lambda state: None)
    with pytest.raises(ZeroDivisionError) as caught:
        r8.draw()

    assert "raised by state_callback" in caught.value.__notes__[0]


def test_two_threads_on_one_loop_are_told_apart():
    """A second thread that begins the loop of another is told which calls are for several threads."""
    r8 = R8Scheduler(20, batch_size=10, num_epochs=2)
    epochs = r8.epoch_iterator()
    next(epochs)
    said = []

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


def test_training_after_close_is_said():
    r8 = R8Scheduler(20, batch_size=10, num_epochs=2)
    r8.close()
    with pytest.warns(RuntimeWarning, match="was closed at step 0: what is trained from here on is not recorded"):
        train(r8)


def test_a_loop_without_epochs_is_said():
    """`batch_iterator` alone trains one epoch; when the run is closed with others left, it says what is missing."""
    r8 = R8Scheduler(20, batch_size=10, num_epochs=2)
    for _ in r8.batch_iterator():
        r8.update_with_loss(1.0)
    with pytest.warns(RuntimeWarning, match=r"closed at step 2 of 4: .* for epoch in r8.epoch_iterator\(\)"):
        r8.close()


def test_two_runs_in_one_folder_of_one_process_are_said(tmp_path):
    """The second one says so and goes on recording; the first one's record ends, and the file stays readable."""
    first = R8Scheduler(20, batch_size=10, num_epochs=2, run_dir=tmp_path)
    with pytest.warns(RuntimeWarning, match="was not closed, and another one starts there"):
        second = R8Scheduler(20, batch_size=10, num_epochs=2, run_dir=tmp_path)
    train(second)
    second.close()
    first.close()
    R8Scheduler(20, batch_size=10, num_epochs=2, run_dir=tmp_path).close()


def test_more_in_a_batch_than_there_are_samples_is_said():
    """The two numbers may have been confused."""
    with pytest.warns(RuntimeWarning, match="batch_size 64 is more than the 32 samples"):
        R8Scheduler(32, batch_size=64, num_epochs=1)
    assert np.array_equal(np.sort(R8Scheduler(32, batch_size=32, num_epochs=1).draw().indices), np.arange(32))


def test_positional_arguments_are_told_their_names():
    with pytest.raises(TypeError, match=r"takes one positional argument, .*: name .*R8Scheduler\(100, batch_size=32"):
        R8Scheduler(100, 32, 5)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("step", r"Report each batch with update_with_loss\(losses\)"),
        ("get_last_lr", r"The rate is r8\.lr\."),
        ("epochs", r"for epoch in r8\.epoch_iterator\(\)"),
        ("loader", r"for batch, lr in r8\.batch_iterator\(\)"),
        ("get_lr", r"The rate is r8\.lr\."),
        ("learning_rate", r"The rate is r8\.lr\."),
        ("epoch", r"It is r8\.current_epoch\."),
        ("update", r"update_with_loss\(losses\)"),
        ("suspects", r"r8\.table\.suspects\(\)"),
        ("save", r"r8\.save_checkpoint\(\)"),
        ("loadbest", "Did you mean 'load_best'"),
        ("fly", r"no attribute 'fly'\.$"),
    ],
)
def test_a_wrong_name_of_the_scheduler_says_the_right_one(name, said):
    """Names of torch's schedulers and of trainers are answered with ours; others with the nearest."""
    with pytest.raises(AttributeError, match=rf"'R8Scheduler' object has no attribute '{name}'\..*{said}|{said}"):
        getattr(make(), name)
    assert not hasattr(make(), "_" + name)


def test_a_wrong_name_of_the_adapter_says_the_right_one():
    _, adapter = attached()
    with pytest.raises(AttributeError, match=r"no attribute 'stop'\. It is adapter\.scheduler\.stop\."):
        _ = adapter.stop
    with pytest.raises(AttributeError, match=r"for epoch in adapter\.epochs\(\)"):
        _ = adapter.epoch_iterator
    with pytest.raises(AttributeError, match="Did you mean 'loader'"):
        _ = adapter.loaders
    for name, said in (
        ("suspects", r"table\.suspects\(\)"),
        ("save", "save_checkpoint"),
        ("backward", r"step\(loss\) does"),
    ):
        for each in (adapter, attached_loader()[2]):
            with pytest.raises(AttributeError, match=said):
                getattr(each, name)


def test_a_second_backward_is_told_whose_it_is():
    """A loop that calls backward() itself and then step() is not told to retain the graph."""
    model, adapter = attached()
    for inputs, labels in adapter.loader():
        loss = adapter.loss(cross_entropy(model(inputs), labels, reduction="none"))
        loss.backward()
        with pytest.raises(RuntimeError, match=r"step\(loss\) calls backward\(\) itself: take loss.backward\(\) out"):
            adapter.step(loss)
        break


def test_a_loss_of_a_batch_from_elsewhere_is_said():
    model, adapter = attached()
    for inputs, labels in torch.utils.data.DataLoader(adapter._source, batch_size=10):
        with pytest.raises(RuntimeError, match=r"got none out; .* for batch in adapter\.loader\(\)"):
            adapter.loss(cross_entropy(model(inputs), labels, reduction="none"))


def test_a_loader_without_epochs_is_said():
    """`loader` alone trains one epoch; when the run is closed with others left, it says what is missing."""
    model, adapter = attached(num_epochs=2)
    for inputs, labels in adapter.loader():
        adapter.step(adapter.loss(cross_entropy(model(inputs), labels, reduction="none")))
    with pytest.warns(RuntimeWarning, match=r"closed at step 2 of 4: .* for epoch in adapter\.epochs\(\)"):
        adapter.close()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"initial_lr": "1e-3"}, "initial_lr must be > 0 and finite, got '1e-3', which is a str"),
        ({"num_epochs": None, "train_duration_seconds": "2h"}, "got '2h', which is a str"),
        ({"warmup_proportion": 5}, r"warmup_proportion must be in \[0, 1\], got 5; for steps give warmup_steps"),
    ],
)
def test_settings_of_another_kind_are_said(settings, said):
    with pytest.raises(ValueError, match=said):
        R8Scheduler(20, **(grouped({"batch_size": 10, "num_epochs": 1} | settings)))


@pytest.mark.parametrize(("length", "meant"), [("20min", "seconds=1200"), ("2 epochs", "epochs=2"), ("5", "steps=5")])
def test_a_cool_down_of_a_text_is_told_the_argument(length, meant):
    with pytest.raises(ValueError, match=f"steps must be a whole number >= 1, got '{length}'.* Give {meant}"):
        R8Scheduler(20, batch_size=10, num_steps=100).cool_down(length)


def attached_loader(**more):
    model = torch.nn.Linear(4, 2)
    data = torch.utils.data.TensorDataset(torch.randn(20, 4), torch.zeros(20, dtype=torch.int64))
    loader = torch.utils.data.DataLoader(data, batch_size=10)
    return model, loader, attach(model, torch.optim.SGD(model.parameters(), 0.1), loader, num_epochs=2, **grouped(more))


def test_a_loop_over_the_loader_itself_is_said_and_ends():
    """Epochs of batches that did not come through `batches` would never end."""
    model, loader, adapter = attached_loader()

    def go_on():
        for _ in adapter.epochs():
            for inputs, labels in loader:
                adapter.step(cross_entropy(model(inputs), labels))

    with (
        pytest.warns(RuntimeWarning, match=r"step 0 is of no batch of adapter\.batches\(\)"),
        pytest.raises(RuntimeError, match="epoch 0 ended with no batch reported"),
    ):
        go_on()
    assert adapter.scheduler.global_step == 2


def test_epochs_left_by_a_break_go_on():
    """A break in each epoch is no loop without batches, and the validation's own loader is none of ours."""
    model, loader, adapter = attached_loader()
    for _ in adapter.epochs():
        for inputs, labels in adapter.batches():
            adapter.step(cross_entropy(model(inputs), labels))
            break
        assert len(list(loader)) == 2
    assert adapter.scheduler.is_over


def test_losses_in_place_of_a_loss_are_told_the_two_arguments():
    model, _, adapter = attached_loader()
    inputs, labels = next(iter(adapter.batches()))
    losses = cross_entropy(model(inputs), labels, reduction="none")
    with pytest.raises(ValueError, match=r"got the shape \(10,\); call step\(losses\.mean\(\), losses=losses\)"):
        adapter.step(losses)
    assert adapter.step(losses.mean(), losses=losses)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("batch_iterator", r"for batch in adapter\.batches\(\)"),
        ("stop", r"adapter\.scheduler\.stop"),
    ],
)
def test_a_wrong_name_of_the_adapter_of_a_loader_says_the_right_one(name, said):
    with pytest.raises(AttributeError, match=rf"no attribute '{name}'\..*{said}"):
        getattr(attached_loader()[2], name)


@pytest.mark.parametrize("of_loader", [False, True])
def test_a_monitor_for_which_nothing_is_logged_is_said(of_loader):
    """Once, when the second epoch begins."""
    model, adapter = attached(num_epochs=3, monitor="val_loss", early_stopping=1)
    batches = adapter.loader
    if of_loader:
        model, _, adapter = attached_loader(monitor="val_loss", early_stopping=1)
        batches = adapter.batches

    def go_on():
        for _ in adapter.epochs():
            for inputs, labels in batches():
                losses = cross_entropy(model(inputs), labels, reduction="none")
                adapter.step(losses.mean() if of_loader else adapter.loss(losses))

    with pytest.warns(RuntimeWarning, match="'val_loss'; logged were none so far") as said:
        go_on()
    assert sum("logged were" in str(each.message) for each in said) == 1


@pytest.mark.parametrize("given", [(0.5,), ("val_loss", 0.5), ({"val_loss": 0.5},)])
def test_a_metric_without_a_name_is_said(given):
    with pytest.raises(TypeError, match=r"log\(\) takes metrics by their names, as in log\(val_loss=0\.5\), got "):
        make().log(*given)


def test_an_optimizer_made_after_attach_is_said():
    model, adapter = attached(num_epochs=2)
    other = torch.optim.SGD(model.parameters(), 0.1)

    def go_on():
        for _ in adapter.epochs():
            for inputs, labels in adapter.loader():
                losses = cross_entropy(model(inputs), labels, reduction="none")
                if adapter.report(losses):
                    losses.mean().backward()
                    other.step()

    with pytest.warns(RuntimeWarning, match=r"attach\(\) got took no step with a gradient in an epoch"):
        go_on()


def test_batches_of_which_no_loss_came_are_counted():
    """The summary says how many batches of a loader were not reported."""
    _, adapter = attached(num_epochs=3)
    with pytest.warns(RuntimeWarning) as said:
        _ = [list(adapter.loader()) for _ in range(4)]
    assert "no loss reported" in str(said[0].message)
    assert "adapter.step(adapter.loss(losses))" in str(said[0].message)
    assert "batches not reported: 6;" in adapter.scheduler.summary()


WRONG = torch.nn.Linear(4, 2)
SGD = torch.optim.SGD(WRONG.parameters(), 0.1)
ROWS = torch.utils.data.TensorDataset(torch.randn(20, 4))


@pytest.mark.parametrize(
    ("given", "more", "said"),
    [
        (
            (WRONG, SGD, (torch.randn(20, 4), torch.zeros(20))),
            {},
            r"of the shapes \[\(20, 4\), .*TensorDataset\(x, y\)",
        ),
        ((WRONG, [SGD, SGD], ROWS), {}, r'give the first, and the others as also=\{"second"'),
        ((SGD, WRONG, ROWS), {}, r"got SGD \( Parameter Group 0 .*\.\.\.\.$"),
        ((WRONG, SGD, torch.utils.data.DataLoader(ROWS)), {}, "or leave batch_size out"),
        ((WRONG, SGD, ROWS), {"shuffle": True}, "The scheduler decides which samples come next"),
        ((WRONG, SGD, ROWS), {"num_workers": 2}, r"adapter\.loader\(\.\.\.\) takes it"),
    ],
)
def test_a_wrong_argument_of_attach_is_told_the_right_one(given, more, said):
    with pytest.raises((TypeError, ValueError), match=said) as error:
        attach(*given, batch_size=10, num_epochs=1, **grouped(more))
    assert len(str(error.value)) < 300


def test_rows_in_a_list_are_a_data_set():
    """Two samples of equal shapes are not two columns."""
    attach(WRONG, SGD, [torch.zeros(2, 4), torch.ones(2, 4)], batch_size=1, num_epochs=1)


def test_a_state_in_place_of_its_function_is_said_in_a_line():
    with pytest.raises(TypeError, match="must be a function or None, got OrderedDict") as error:
        make(state_callback=torch.nn.Linear(99, 99).state_dict())
    assert len(str(error.value)) < 200


def test_a_report_of_an_object_is_said(tmp_path):
    with pytest.raises(TypeError, match=r"run_dir must be a run folder, such as r8\.run_dir, got R8Scheduler"):
        write_report(make(), tmp_path / "page.html")


def test_a_folder_of_checkpoints_is_no_run(tmp_path):
    (tmp_path / "ck_000000000001.r8").touch()
    with pytest.raises(UnreadableRun, match=rf"got '{tmp_path}'\. It holds checkpoints; run_dir= keeps a run folder"):
        find_run(str(tmp_path))


@pytest.mark.parametrize(
    ("loop", "said"),
    [
        (lambda r8, adapter: r8, r"R8Scheduler must be looped over by epochs.*for batch, lr in r8\.batch_iterator\(\)"),
        (lambda r8, adapter: r8.epoch_iterator, r"write epoch_iterator\(\)"),
        (lambda r8, adapter: r8.batch_iterator, r"write batch_iterator\(\)"),
        (lambda r8, adapter: adapter.epochs, r"epochs must be called .*got the method itself; write epochs\(\)"),
        (lambda r8, adapter: adapter.loader, r"write loader\(\)"),
        (lambda r8, adapter: attached_loader()[2].batches, r"write batches\(\)"),
        (lambda r8, adapter: r8.table.suspects(), r"Suspects must be looped over by a field.* in suspects\.indices"),
        (lambda r8, adapter: r8.table.ranking(), r"for index in ranking\.indices"),
    ],
)
def test_a_loop_over_the_wrong_thing_is_told_the_right_one(loop, said):
    """Objects, and methods whose parentheses are missing."""
    over = loop(make(), attached()[1])
    with pytest.raises(TypeError, match=said):
        iter(over)


def test_a_rate_beside_the_losses_is_said():
    """Nothing is reported; the batch is still open."""
    r8 = R8Scheduler(20, batch_size=10, num_epochs=1)
    _, lr = next(r8.batch_iterator())
    with pytest.raises(TypeError, match=r"takes the losses alone, got 0\.0\d+ after them: .* as lr=\."):
        r8.update_with_loss(1.0, lr)
    assert r8.update_with_loss(1.0)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["ls", "a", "b"], "RUN must be one folder or name, got 'a' and 'b' (--find b lists the runs with that text)"),
        (["status", "a", "b"], "got 'a' and 'b' (compare takes several)"),
        (["ls", "a", "--finn"], "unrecognized arguments: --finn; did you mean --find"),
    ],
)
def test_a_second_run_is_told_the_command_for_several(command, said, capsys):
    with pytest.raises(SystemExit):
        main(command)
    assert said in capsys.readouterr().err


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
    model, adapter = attached(num_epochs=2)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        for _ in adapter.epochs():
            for inputs, labels in adapter.loader():
                adapter.step(adapter.cross_entropy(model(inputs).softmax(1), labels))
    assert [each.filename for each in said if "look like probabilities" in str(each.message)] == [__file__]


@pytest.mark.parametrize(("monitor", "more", "worst"), [
    ("val_acc", {}, False), ("val_loss", {}, True), ("val_acc", {"mode": "min"}, True),
])  # fmt: skip
def test_the_direction_of_a_monitor_is_that_of_its_name(monitor, more, worst):
    """An accuracy that rises is no reason to stop; a mode that is given is left alone, and said to be odd."""
    odd = pytest.warns(RuntimeWarning, match="'val_acc', of which higher is better by its name") if more else nothing()
    with odd:
        model, adapter = attached(num_epochs=4, monitor=monitor, early_stopping=2, **more)
    for epoch in adapter.epochs():
        for inputs, labels in adapter.loader():
            adapter.step(adapter.cross_entropy(model(inputs), labels))
        adapter.scheduler.log(**{monitor: epoch / 10})
    r8 = adapter.scheduler
    assert (r8.phase, r8.load_best()) == (("finished early", 0.0) if worst else ("finished", 0.3))


def test_losses_of_every_pair_are_asked_about():
    """Once; not where B tokens have a loss each, as no number of theirs was one of a sample."""
    _, adapter = attached()
    model, tokens = torch.nn.Linear(4, 1), torch.nn.Linear(4, 10)

    def go_on():
        for inputs, labels in adapter.loader():
            adapter.step(adapter.loss(((model(inputs) - labels) ** 2).clamp(max=9) * 2))

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        go_on()
    assert [each.filename for each in said if "outputs.squeeze(1)" in str(each.message)] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, adapter = attached()
        for inputs, _labels in adapter.loader():
            logits = tokens(inputs)[:, :, None] * torch.ones(3)
            losses = cross_entropy(logits.mT, torch.zeros(10, 10, dtype=torch.int64), reduction="none")
            adapter.step(adapter.loss(losses))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            lambda events: pipe(events, early_stop, take(5)),
            r"write pipe\(events, early_stop\(\.\.\.\)\), got early",
        ),
        (lambda events: pipe(events, best), r"write pipe\(events, best\(\.\.\.\)\), got best itself"),
        (lambda events: take(events, 5), r"write pipe\(events, take\(\.\.\.\)\), got the events"),
        (lambda events: early_stop(events, "loss", 3), r"pipe\(events, early_stop\(\.\.\.\)\), got the events"),
    ],
)
def test_a_stage_is_made_before_it_gets_the_events(made, said):
    with pytest.raises(TypeError, match=said):
        made(iter([{"loss": 1.0}]))


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
    with pytest.raises(ValueError, match=r"got \{'minutes': 10\}; .* time=\"10min\""):
        every(minutes=10)
    with pytest.raises(ValueError, match=r"got '10 minutes'; as a text write"):
        every(time="10 minutes")


@pytest.mark.parametrize("each_batch", [True, False])
def test_values_logged_for_each_batch_are_said_when_they_end_the_run(each_batch):
    model, adapter = attached(num_epochs=4, monitor="val_loss", early_stopping=2)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in adapter.epochs():
            for inputs, labels in adapter.loader():
                adapter.step(adapter.cross_entropy(model(inputs), labels))
                if each_batch:
                    adapter.scheduler.log(val_loss=1.0)
            if not each_batch:
                adapter.scheduler.log(val_loss=1.0)
    assert adapter.scheduler.phase == "finished early"
    assert sum("one step after the other" in str(each.message) for each in said) == each_batch


@pytest.mark.parametrize(("step", "times"), [(lambda epoch, r8: epoch, 1), (lambda epoch, r8: r8.global_step, 0)])
def test_an_epoch_given_as_a_step_is_said_once(step, times):
    r8 = R8Scheduler(40, batch_size=10, num_epochs=3)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        r8.log(val_loss=1.0, step=0)
        for epoch in r8.epoch_iterator():
            for _ in r8.batch_iterator():
                r8.update_with_loss(1.0)
            r8.log(val_loss=1.0, step=step(epoch, r8))
    assert sum("number of the epoch" in str(each.message) for each in said) == times


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_curses": "no"}, "use_curses must be True or False, got 'no'"),
        ({"sample_ids": ["a"] * 20}, "sample_ids must tell the samples apart, got 'a' for all 20"),
        ({"guard": False}, "guard must be one of .*'finite'.*got False"),
    ],
)
def test_settings_that_would_do_something_else_are_refused(settings, said):
    with pytest.raises((TypeError, ValueError), match=said):
        R8Scheduler(20, batch_size=10, num_epochs=1, **grouped(settings))


def test_what_is_asked_of_a_table_in_other_words():
    """`len` of suspects is how many there are, so that none are false; the hardest are asked for by a call."""
    table = make().table
    assert len(table.suspects()) == 0
    assert not table.suspects()
    with pytest.raises(TypeError, match=r"write hardest\(\)"):
        list(table.hardest)


def test_outputs_and_targets_given_to_loss_are_told_of_cross_entropy():
    model, adapter = attached()
    with pytest.raises(ValueError, match="num_workers must be a whole number >= 0, got '2', which is a str"):
        adapter.loader(num_workers="2")
    for inputs, labels in adapter.loader():
        with pytest.raises(TypeError, match=r"adapter\.cross_entropy\(logits, targets\)"):
            adapter.loss(model(inputs), labels)
        adapter.step(adapter.cross_entropy(model(inputs), labels))


def test_a_text_that_no_run_has_is_said(tmp_path, capsys):
    R8Scheduler(20, batch_size=10, num_epochs=2, run_dir=tmp_path / "a", config={"lr": 0.1}).close()
    assert main(["ls", str(tmp_path), "--find", "lr=0.1"]) == 0
    assert main(["ls", str(tmp_path), "--find", "lr=0.3"]) != 0
    assert "got 'lr=0.3', which none of the 1 in" in capsys.readouterr().err


def test_epochs_beyond_the_budget_are_said_once():
    """Of batches that the scheduler draws, and of a loader; the epochs of the budget are trained."""
    r8 = R8Scheduler(20, batch_size=10, num_epochs=2)
    model, _, adapter = attached_loader()

    def over():
        for _ in range(4):
            for _ in r8.batch_iterator():
                r8.update_with_loss(1.0)

    def over_loader():
        for _ in range(4):
            for inputs, labels in adapter.batches():
                adapter.step(cross_entropy(model(inputs), labels))

    for train, each in ((over, r8), (over_loader, adapter.scheduler)):
        with pytest.warns(RuntimeWarning, match=r"the budget was spent at step 4, so this loop trains nothing") as said:
            train()
        assert len(said) == 1
        assert each.global_step == 4


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
    model, loader, adapter = attached_loader()

    def validate():
        for inputs, labels in adapter.batches(list(loader)):
            with torch.no_grad():
                adapter.report(cross_entropy(model(inputs), labels))

    for inputs, labels in adapter.batches(list(loader)):
        adapter.report(cross_entropy(model(inputs), labels).detach())
    with pytest.warns(RuntimeWarning, match=r"step 2 has no gradient.*adapter\.log\(val_loss=") as said:
        validate()
    assert len(said) == 1


def test_checkpoints_without_a_model_are_said(tmp_path):
    """Of a run that is to be resumed; and as it is."""
    about = {"state_callback": dict, "load_callback": print, "checkpoint_dir": tmp_path, "backup_dir": False}
    r8 = make(num_epochs=9, resume="auto", **about)
    with pytest.warns(RuntimeWarning, match="hold the scheduler and no model.*give save_callback="):
        r8.draw()
    r8.save_checkpoint()
    with pytest.warns(RuntimeWarning, match="With save_callback= it would hold it"):
        make(num_epochs=9, resume="auto", **about)
    heard = record_events()
    make(num_epochs=9, resume="auto", checkpoint_dir=tmp_path, listeners=[heard]).draw()
    assert ["With save_callback=" in each.text for each in heard.of(events.Notice)] == [True]


def test_an_attach_within_the_loop_is_said():
    """One after another, with the first run closed, is none."""
    model, loader, first = attached_loader()
    inputs, labels = next(iter(first.batches()))
    first.step(cross_entropy(model(inputs), labels))
    with pytest.warns(RuntimeWarning, match=r"attach\(\) was called again .*call it once, before the loop"):
        second = attach(model, first.optimizer, loader, num_epochs=2)
    inputs, labels = next(iter(second.batches()))
    second.step(cross_entropy(model(inputs), labels))
    second.close()
    attach(model, first.optimizer, loader, num_epochs=2)


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


def test_a_number_of_suspects_is_told_the_ranking():
    with pytest.raises(ValueError, match=r"precision must be in \(0, 1\), got 10; .* call ranking\(10\)"):
        make().table.suspects(10)


def said_of(function, kind=RuntimeWarning):
    """What a function warns of, in one text."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        function()
    return " | ".join(str(each.message) for each in said if issubclass(each.category, kind))


ONE_HOT = np.eye(3)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            lambda: next_batch(num_samples=20).update_with_loss(np.ones((10, 10))),
            r"outputs\[:, 0\] gives both one shape",
        ),
        (lambda: EarlyStopping(patience=3, monitor="val_loss"), "arguments of R8Scheduler and attach"),
        (lambda: make(sample_ids="names.txt"), "a list of num_samples=.* names, got the text 'names.txt'"),
        (lambda: np.ones(5)[table_of_20().suspects()], r"x\[suspects.indices\]"),
        (lambda: learnit_r8.predictions_of(ONE_HOT, ONE_HOT), r"targets.argmax\(1\)"),
        (lambda: learnit_r8.predictions_of(np.arange(3), np.arange(3)), "give one for each class"),
    ],
)
def test_wrong_things_in_place_of_right_ones_are_told_them(wrong, said):
    with pytest.raises((TypeError, ValueError), match=said):
        wrong()


def next_batch(**settings):
    r8 = R8Scheduler(**grouped({"batch_size": 10, "num_epochs": 2, **settings}))
    next(r8.batch_iterator())
    return r8


def table_of_20():
    return R8Scheduler(20, batch_size=10, num_epochs=2).table


@pytest.mark.parametrize(("mean", "is_said"), [(0.0, True), (3.0, False), (-3.0, False)])
def test_errors_in_place_of_losses_are_asked_about_once(mean, is_said):
    """Losses of both signs look like errors; those of densities, of one sign, do not."""
    r8 = R8Scheduler(40, batch_size=20, num_epochs=2)
    errors = np.linspace(mean - 1, mean + 1, 20)
    said = said_of(lambda: [r8.update_with_loss(errors) for _ in r8.batch_iterator()])
    assert said.count("if they are errors") == is_said


@pytest.mark.parametrize(("reduction", "is_said"), [("sum", True), ("mean", False)])
def test_a_sum_in_place_of_the_mean_is_said_once(reduction, is_said):
    model, adapter = attached()

    def go():
        for inputs, labels in adapter.loader():
            adapter.step(adapter.loss(cross_entropy(model(inputs), labels, reduction=reduction)))

    assert said_of(go).count("the loss is a sum over the batch") == is_said


def test_a_model_made_after_attach_is_said():
    _, adapter = attached(num_epochs=2)
    other = torch.nn.Linear(4, 2)

    def go():
        for _ in adapter.epochs():
            for inputs, labels in adapter.loader():
                adapter.step(adapter.loss(cross_entropy(other(inputs), labels, reduction="none")))

    assert "another model than its own, is trained" in said_of(go)


def test_a_generator_in_place_of_a_loader_is_told_what_it_is():
    """Its losses were all reported, so nothing is said of that."""
    r8 = R8Scheduler(num_epochs=2, scheduler_mode="keep")
    batches = iter([1.0, 2.0])

    def go():
        for _ in r8.epoch_iterator():
            for each in r8.batches(batches):
                r8.update_with_loss(each)

    with pytest.raises(RuntimeError, match="a loader that gives batches in each epoch"):
        said_of(go)
    said = said_of(lambda: list(R8Scheduler(num_epochs=2, scheduler_mode="keep").batches(iter([]))))
    assert "a generator is used up after one epoch" in said


def test_python_adds_no_guess_of_its_own():
    """It would name a private attribute, behind the right hint."""
    r8 = make()
    with pytest.raises(AttributeError, match=r"It is r8.table.suspects\(\)") as raised:
        r8.suspects()
    assert (raised.value.name, raised.value.obj) == ("suspects", None)


def test_steps_that_never_end_an_epoch_are_said():
    r8 = R8Scheduler(num_epochs=2, scheduler_mode="keep")
    assert "this loop does not end by itself" in said_of(lambda: next(r8.steps()))
    r8 = R8Scheduler(num_steps=2, scheduler_mode="keep")
    assert not said_of(lambda: next(r8.steps()))


@pytest.mark.parametrize("of_torch", [False, True])
def test_one_epoch_of_several_is_said_at_exit(monkeypatch, of_torch):
    """Scripts seldom close a run."""
    at_exit = []
    monkeypatch.setattr(atexit, "register", at_exit.append)
    if of_torch:
        model, loop = attached(num_epochs=2)
        for inputs, labels in loop.loader():
            loop.step(loop.cross_entropy(model(inputs), labels))
    else:
        loop = R8Scheduler(20, batch_size=10, num_epochs=2)
        for _ in loop.batch_iterator():
            loop.update_with_loss(1.0)
    assert "To train all epochs" in said_of(lambda: [each() for each in at_exit])
    # After an exception the loop was cut short, wherever it came from.
    monkeypatch.setattr(sys, "last_value", KeyboardInterrupt(), raising=False)
    assert not said_of(lambda: [each() for each in at_exit])


@pytest.mark.parametrize(
    ("error", "settings", "loop", "said"),
    [
        (
            IndexError("only integers, slices (`:`), ..."),
            {"num_samples": 20, "batch_size": 10},
            None,
            "for batch, lr in",
        ),
        (
            ValueError("too many values to unpack (expected 2)"),
            {"scheduler_mode": "keep"},
            [[1, 2, 3]],
            "without a rate",
        ),
    ],
)
def test_what_the_first_batch_was_taken_for_is_said_at_exit(monkeypatch, error, settings, loop, said):
    """Where the error is numpy's or Python's own, and no batch was reported."""
    at_exit = []
    monkeypatch.setattr(atexit, "register", at_exit.append)
    r8 = R8Scheduler(num_epochs=2, **grouped(settings))
    next(iter(r8.batch_iterator() if loop is None else r8.batches(loop)))
    monkeypatch.setattr(sys, "last_value", error, raising=False)
    assert said in said_of(lambda: [each() for each in at_exit])


def test_a_module_in_place_of_its_state_is_said_before_the_first_step():
    model = torch.nn.Linear(4, 2)
    for state in (model, {"net": model}):
        r8 = R8Scheduler(
            20, batch_size=10, num_epochs=2, state_callback=lambda state=state: state, load_callback=lambda _: None
        )
        with pytest.raises(TypeError, match="got the Linear itself; return its state_dict"):
            next(r8.batch_iterator())


def test_options_of_other_commands_are_told_the_right_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("R8_RUNS", "runs")
    with pytest.raises(SystemExit):
        main(["report", "--out", "page.html"])
    assert main(["status"]) == 1
    with R8Scheduler(20, batch_size=10, num_epochs=1, run_dir="run") as r8:
        train(r8)
    assert main(["samples", "run", "--precision", "0.9"]) == 1
    said = capsys.readouterr().err
    for text in ("did you mean --html?", "run_dir=True or use_curses=True", "given with --suspects or --places"):
        assert text in said


def test_another_run_in_the_folder_is_told_how_to_begin_anew(tmp_path):
    def go(width, batch_size=10):
        model = torch.nn.Linear(4, width)
        data = torch.utils.data.TensorDataset(torch.randn(20, 4), torch.zeros(20, dtype=torch.int64))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with attach(
            model, optimizer, data, batch_size=batch_size, num_epochs=1, checkpoint_dir=tmp_path, resume="auto"
        ) as adapter:
            for inputs, labels in adapter.loader():
                adapter.step(adapter.cross_entropy(model(inputs), labels))

    go(2)
    with pytest.raises(RuntimeError, match="another checkpoint_dir, or resume=None, begins a new run"):
        go(3)
    with pytest.raises(ValueError, match="another checkpoint_dir begins a new run"):
        go(2, batch_size=5)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["report", "a", "page.html"], "--html FILE names the page"),
        (["samples", "a", "--csv", "out.csv"], "> FILE writes to a file"),
        (["export", "a", "--csv"], "did you mean --format"),
        (["suspects", "a"], "did you mean samples"),
    ],
)
def test_a_file_or_a_command_of_other_programs_is_told_the_option(command, said, capsys):
    with pytest.raises(SystemExit):
        main(command)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("text", ["a,b\n1,x,3\n", "x,y\nimport os, sys, re\n"])
def test_a_file_that_is_no_table_is_said(tmp_path, text, capsys):
    (tmp_path / "t.csv").write_text(text)
    assert main(["labels", str(tmp_path / "t.csv")]) == 1
    assert "more values than names in its row 1" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["attach", "R8Callback", "train_loop"])
def test_a_name_of_another_package_is_told_its_own(name):
    with pytest.raises(ImportError, match=rf"write: from learnit_r8\.\w+.* import {name}"):
        exec(f"from learnit_r8 import {name}")
    with pytest.raises(AttributeError, match="write: from"):
        getattr(learnit_r8, name)


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


@pytest.mark.parametrize("name", ["gradient_clip_val", "gradient_accumulation_steps", "amp", "device"])
def test_settings_of_trainers_are_told_ours(name):
    with pytest.raises(TypeError, match=rf"argument '{name}'. (attach\(|The model is on its device)"):
        attached(**{name: 1})


def test_what_is_missing_of_a_model_is_said(tmp_path):
    said = pytest.warns(RuntimeWarning, match="goes on at step 2 with the model as the script has made it")
    for num_epochs, expected in ((1, nothing()), (2, said)):
        r8 = R8Scheduler(20, batch_size=10, num_epochs=num_epochs, checkpoint_dir=tmp_path, resume="auto")
        with expected:
            train(r8)
        r8.close()
    with pytest.raises(RuntimeError, match=r"needs a state_callback.* and a load_callback; got neither"):
        r8.load_best()
    with pytest.raises(TypeError, match=r"give the losses to update_with_loss\(\)"):
        R8Scheduler(20, batch_size=10, num_epochs=1).report(np.ones(10))
