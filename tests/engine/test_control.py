"""Requests that other threads make of a run, and how each way to drive a run answers them."""

import gc
import threading
import weakref

import pytest

from learnit_r8 import R8Scheduler, events
from learnit_r8.engine.control import Requests
from learnit_r8.engine.pace import Pace
from learnit_r8.events.bus import Announcer
from learnit_r8.loops import logs as new_logs
from learnit_r8.loops import loop, report_to, scheduled
from learnit_r8.schedules.budget import Budget
from learnit_r8.schedules.span import Span
from learnit_r8.streams import epoch_stream, step_stream
from tests.drive import FakeClock, Weights, advance_to, known, make, steps, train


def kinds(heard):
    return [type(event).__name__ for event in heard]


def stop_at(r8, step, reason=""):
    """A listener's view of another thread: asks to stop while a batch is out."""
    if r8.global_step == step - 1:
        r8.requests.stop(reason)


def test_nothing_is_pending_by_itself():
    """A run without requests has nothing to answer."""
    r8 = make()
    advance_to(r8, 3)
    r8.draw()

    assert (r8.requests.is_pending, r8.requests.is_paused, r8.pace.is_stopped) == (False, False, False)


def test_stop_ends_the_iterators_after_the_step(tmp_path):
    """After stop() the current step is finished and saved, and both iterators end."""
    heard, done = [], []
    r8 = make(num_epochs=9, checkpoint_dir=tmp_path, checkpoint_every=99, listeners=[heard.append])
    for _ in steps(r8):
        stop_at(r8, 4, "lunch")
        r8.update_with_loss(1.0)
        done.append(r8.global_step)

    assert (done, r8.pace.is_stopped, r8.phase) == ([1, 2, 3, 4], True, "stopped")
    assert [(event.step, getattr(event, "reason", None)) for event in heard[-2:]] == [(4, None), (4, "lunch")]
    assert kinds(heard)[-2:] == ["CheckpointSaved", "RunStopped"]


def test_stopped_run_draws_no_more():
    """A stopped run gives None from draw_if_any() and a clear error from draw()."""
    r8 = make()
    r8.requests.stop()

    assert r8.draw_if_any() is None
    assert r8.host.draw_ahead() is None
    with pytest.raises(RuntimeError, match=r"draw\(\) was called at step 0 after the run was stopped; check"):
        r8.draw()


def test_stop_of_a_finished_run_changes_nothing():
    """Once the budget is used up, requests have no effect."""
    r8 = make()
    train(r8)
    r8.requests.stop()
    r8.host.between_steps()

    assert (r8.pace.is_stopped, r8.phase) == (False, "finished")


def test_save_writes_a_checkpoint_after_the_step(tmp_path):
    """save() writes one checkpoint when the current step is complete, with the model after it."""
    model, heard = Weights(), []
    r8 = make(
        num_epochs=9,
        checkpoint_dir=tmp_path,
        checkpoint_every=99,
        save_callback=model.save,
        state_callback=model.get,
        load_callback=model.load,
        listeners=[heard.append],
    )
    for _ in steps(r8):
        if r8.global_step == 1:
            r8.requests.save()
        r8.update_with_loss(1.0)
        model.values = model.values + 1
        if r8.global_step == 4:
            break
    saved = [event.step for event in heard if isinstance(event, events.CheckpointSaved)]
    r8.load_checkpoint()

    assert (saved, model.values.tolist()) == ([2], [2, 2])


def test_save_before_the_first_step(tmp_path):
    """A checkpoint can be asked for before anything was trained."""
    r8 = make(checkpoint_dir=tmp_path)
    r8.requests.save()
    r8.draw()

    assert len(list(tmp_path.glob("ck_*.r8"))) == 1


def test_save_without_a_folder_is_noted_once():
    """If no checkpoint can be saved, listeners are told once, and the run continues."""
    heard = []
    r8 = make(listeners=[heard.append])
    for _ in steps(r8):
        r8.requests.save()
        r8.update_with_loss(1.0)
    told = [event.text for event in heard if isinstance(event, events.Notice)]

    assert told == ["no checkpoint was saved: neither checkpoint_dir nor save_callback."]
    assert r8.global_step == 6


def test_save_twice_at_one_step_is_one_file(tmp_path):
    """If there is a checkpoint of this step already, a request writes no second one."""
    r8 = make(checkpoint_dir=tmp_path, checkpoint_every=1)
    advance_to(r8, 1)
    r8.host.between_steps()
    r8.requests.save()
    r8.host.between_steps()

    assert len(list(tmp_path.glob("ck_*.r8"))) == 1


def test_failing_save_lets_the_run_go_on(tmp_path):
    """A requested checkpoint that cannot be written causes a warning and does not end the run."""
    r8 = make(checkpoint_dir=tmp_path / "file" / "saved", checkpoint_every=99, num_epochs=9)
    (tmp_path / "file").write_text("")
    r8.requests.save()
    with pytest.warns(RuntimeWarning, match="could not be written"):
        r8.draw()

    assert r8.host.persistence.saver.num_failed == 1


class Saves(list):
    """Notes at which look at the requests a checkpoint was written."""

    def __init__(self, looks):
        self._looks = looks

    def __call__(self):
        self.append(len(self._looks))


def paused_requests(act, clock=None):
    """Requests that call `act(requests, looks)` each time the waiting thread checks them."""
    clock, heard, looks = clock or FakeClock(), [], []
    pace = Pace(Budget(seconds=100.0), 3, clock)
    pace.start()

    def sleep(seconds):
        clock.advance(seconds)
        looks.append(seconds)
        act(requests, len(looks))

    requests = Requests(pace, Announcer([heard.append], lambda: (0, 0.0)), sleep=sleep)
    return requests, pace, heard, Saves(looks)


def test_pause_waits_and_does_not_count():
    """A paused run waits until it is resumed; that time is not training time."""
    requests, pace, heard, saved = paused_requests(lambda requests, looks: looks == 500 and requests.resume())
    requests.pause("a look at it")
    requests.answer(saved)

    assert pace.seconds == 0
    assert kinds(heard) == ["RunPaused", "RunResumed"]
    assert (heard[0].reason, requests.is_paused, pace.is_over) == ("a look at it", False, False)


def test_pause_is_no_time_of_the_scheduler():
    """The time of a pause counts as nobody's: the overhead after it is what it was before it, each time."""
    heard, clock = [], FakeClock()
    r8 = R8Scheduler(100, batch_size=10, num_epochs=1, listeners=[heard.append], clock=clock)
    r8.host.clock = clock

    def wait(seconds):
        clock.advance(60.0)
        r8.requests.resume()

    r8.requests._sleep = wait
    for _, _ in r8.batch_iterator():
        clock.advance(1.0)
        if r8.global_step in (3, 6):
            r8.requests.pause()
        r8.update_with_loss(1.0)

    assert kinds(heard).count("RunPaused") == 2
    assert sum(event.own_seconds for event in heard if isinstance(event, events.StepDone)) == 0


def resume_early(requests):
    requests.pause()
    requests.resume()


PAUSES = {
    "one that is stopped is saved and over": (
        Requests.pause,
        lambda requests, looks: looks == 3 and requests.stop("enough"),
        (["RunPaused", "RunResumed", "RunStopped"], True, [3]),
    ),
    "a checkpoint that is asked for meanwhile is written": (
        Requests.pause,
        lambda requests, looks: requests.save() if looks == 2 else looks == 9 and requests.resume(),
        (["RunPaused", "RunResumed"], False, [2]),
    ),
    "one that is cancelled before the step ends never begins": (resume_early, lambda *_: None, ([], False, [])),
}


@pytest.mark.parametrize(("ask", "act", "found"), PAUSES.values(), ids=PAUSES)
def test_what_is_asked_of_a_pause(ask, act, found):
    """What is heard, whether the run is over, and at which looks a checkpoint was written."""
    requests, pace, heard, saved = paused_requests(act)
    ask(requests)
    requests.answer(saved)

    assert (kinds(heard), pace.is_stopped, saved) == found


def test_interrupted_pause_is_over():
    """Ctrl-C ends a pause; the clock continues and nothing waits any more."""

    def interrupt(requests, looks):
        raise KeyboardInterrupt

    clock = FakeClock()
    requests, pace, heard, saved = paused_requests(interrupt, clock)
    requests.pause()
    with pytest.raises(KeyboardInterrupt):
        requests.answer(saved)
    clock.advance(2)

    assert (requests.is_paused, pace.seconds, kinds(heard)) == (False, 2, ["RunPaused", "RunResumed"])


def test_request_made_while_another_is_answered_is_not_lost():
    """A request made while the training thread answers is answered too, at the latest after the next step."""
    requests, _, _, saved = paused_requests(lambda *_: None)
    requests.save()

    requests.answer(lambda: (saved(), len(saved) == 1 and requests.save()))

    assert (requests.is_pending, len(saved)) == (True, 1)


def test_requests_change_no_batch(tmp_path):
    """A run that is paused and saved by another thread at any time gives the same batches and the same table."""
    plain, asked = make(40, num_epochs=10), make(40, num_epochs=10, checkpoint_dir=tmp_path, checkpoint_every=10**6)
    ends = threading.Event()

    def ask():
        while not ends.wait(0.001):
            asked.requests.pause()
            asked.requests.save()
            asked.requests.resume()

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        seen = train(asked)
    finally:
        ends.set()
        thread.join()

    assert seen == train(plain)
    assert known(asked)["loss"].tolist() == known(plain)["loss"].tolist()


def test_stop_ends_step_stream():
    """step_stream ends after the step in which the run was stopped."""
    r8 = make(num_epochs=9)
    seen = [event["step"] for event in step_stream(r8, lambda indices, lr: stop_at(r8, 3) or 1.0)]

    assert seen == [1, 2, 3]


def test_stop_ends_the_loop():
    """loop over scheduled batches ends after the step in which the run was stopped."""
    r8 = make(num_epochs=9)

    def step(state, batch):
        stop_at(r8, 3)
        return new_logs().add_metric("loss", 1.0), state + 1

    state, _, elapsed = loop(0, scheduled(r8, lambda indices: indices), callbacks=[step, report_to(r8)])

    assert (state, elapsed.steps, r8.global_step) == (3, 3, 3)


def test_stop_ends_epoch_stream():
    """epoch_stream with a scheduler ends with the epoch in which the run was stopped."""
    torch = pytest.importorskip("torch")
    r8 = make(12, num_epochs=9)
    x, y = torch.zeros(12, 2), torch.zeros(12, 1)
    model = torch.nn.Linear(2, 1)
    stream = epoch_stream(
        (x, y), model, torch.optim.SGD(model.parameters(), lr=0.1), torch.nn.functional.mse_loss, scheduler=r8
    )
    epochs = []
    for event in stream:
        epochs.append(event["step"])
        if len(epochs) == 2:
            r8.requests.stop()

    assert (epochs, r8.global_step) == ([1, 2], 6)


def test_who_may_ask_does_not_keep_the_run():
    """A screen's thread holds the requests of a run that its program has dropped."""
    r8 = make()
    advance_to(r8, 3)
    requests, engine = r8.requests, weakref.ref(r8.host)

    del r8
    gc.collect()
    requests.stop("too late")

    assert engine() is None


@pytest.mark.parametrize(("length", "ends"), [("7 steps", 12), (7, 12), ("2 epochs", 11), (Span("steps", 7.0), 12)])
def test_a_cool_down_may_be_asked_for_in_words(length, ends):
    """What the screen and the command line read as a length, `requests.cool_down` reads too."""
    r8 = make(num_epochs=None, scheduler_mode="wsd")
    advance_to(r8, 5)
    r8.requests.cool_down(length)
    advance_to(r8, 6)

    assert r8.total_steps == ends


@pytest.mark.parametrize("length", ["soon", 2.5, 0, True, [3], Span("weeks", 2.0), Span("steps", -1.0), ("steps", 5)])
def test_a_cool_down_of_no_length_is_refused_when_it_is_asked_for(length):
    """A wrong length is the error of the call that gave it, and the run goes on."""
    r8 = make(num_epochs=None, scheduler_mode="wsd")
    advance_to(r8, 5)
    with pytest.raises(ValueError, match=r"the length must be|a length must be|steps must be"):
        r8.requests.cool_down(length)
    advance_to(r8, 9)

    assert (r8.global_step, r8.total_steps) == (9, None)
