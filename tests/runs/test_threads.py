"""Several threads at one run: they train, look at it and ask for its state, and none waits for what the user does."""

import sys
import threading
import time

import numpy as np
import pytest

from learnit_r8 import R8Scheduler
from learnit_r8.events import StepDone
from learnit_r8.guard import FiniteGuard
from learnit_r8.recovery.policy import RestoreError
from tests.drive import NAN, Weights, make, sample_losses

SECONDS = 10
"""What a thread that is stuck is waited for."""


@pytest.fixture
def often(request):
    """Threads take turns every few bytecodes."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class Thread(threading.Thread):
    """A thread whose exception and result are the caller's."""

    def __init__(self, function, *arguments):
        super().__init__(daemon=True)
        self.function, self.arguments, self.result, self.error = function, arguments, None, None
        self.start()

    def run(self):
        try:
            self.result = self.function(*self.arguments)
        except BaseException as error:
            self.error = error

    def get(self):
        self.join(SECONDS)
        assert not self.is_alive(), "the thread is stuck"
        if self.error is not None:
            raise self.error
        return self.result


def train_by_tickets(r8, *, most=None):
    """Train on one batch after another; how many."""
    count = 0
    while count != most and (ticket := r8.draw_if_any()) is not None:
        r8.report(ticket, sample_losses(ticket.indices))
        count += 1
    return count


def check_whole(state):
    """Raise AssertionError if the parts of a state are of different steps."""
    step, uses = state["pace"]["step"], int(state["table"]["usage_count"].sum())
    drawn = state["plan"]["drawn_before"] + sum(chunk["drawn"] for chunk in state["plan"]["chunks"][-1:])
    refused = state["guard"]["num_refused"]
    assert uses == 4 * (step - refused), (uses, step, refused)
    assert state["guard"]["losses"]["num_judged"] == step
    assert 0 <= state["num_draws"] - step <= 1
    assert (drawn - step) % 16 in (0, 1), (drawn, step)
    assert state["tally"]["samples"] == 4 * state["tally"]["num_good"]


@pytest.mark.parametrize("reads", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_state_is_torn(reads, often):
    """A state that another thread asks for is of one step, in all its parts."""
    r8 = make(64, num_epochs=10**6, guard=FiniteGuard(), handle_signals=False)
    is_over = threading.Event()

    def train():
        while not is_over.is_set():
            train_by_tickets(r8, most=10)

    trainer, steps = Thread(train), set()
    for _ in range(reads):
        state = r8.state_dict()
        steps.add(state["pace"]["step"])
        check_whole(state)
        # Whoever asks without a pause leaves little time to train.
        time.sleep(2e-4)
    is_over.set()
    trainer.get()

    assert len(steps) > reads / 4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.filterwarnings("ignore:losses or weights were not finite:RuntimeWarning")
def test_no_state_is_torn_by_restores(often):
    """Nor where losses are refused meanwhile, and the model is restored by a slow callback."""
    weights = Weights()

    def load(source):
        weights.load(source, from_ram=True)
        time.sleep(0.002)

    given = {"state_callback": weights.get, "load_callback": load, "backup_every": 7, "guard": FiniteGuard()}
    r8 = make(64, num_epochs=40, handle_signals=False, **given)

    def train():
        while (ticket := r8.draw_if_any()) is not None:
            losses = sample_losses(ticket.indices)
            if ticket.step % 97 == 50:
                weights.values = np.full(2, NAN)
            r8.report(ticket, losses * (NAN if ticket.step % 97 == 50 else 1.0))

    trainer = Thread(train)
    while trainer.is_alive():
        state = r8.state_dict()
        uses, step = int(state["table"]["usage_count"].sum()), state["pace"]["step"]
        learned = step - state["guard"]["num_refused"]
        assert 4 * (learned - state["recovery"]["incidents"]["num_probes"]) <= uses <= 4 * learned
        time.sleep(2e-4)
    trainer.get()

    assert r8.controller.state_dict()["incidents"]["num_restored"] > 2


def test_threads_train_together(often):
    """Threads that draw and report at once train on every sample once an epoch, and each batch is a step."""
    r8 = make(240, num_epochs=8, handle_signals=False)
    counts = [thread.get() for thread in [Thread(train_by_tickets, r8) for _ in range(4)]]

    assert (sum(counts), r8.global_step, r8.pace.num_out) == (480, 480, 0)
    assert r8.table.usage_count.tolist() == [8] * 240


def test_a_ticket_is_reported_once_by_two_threads(often):
    """Of two threads that report the same ticket, one is told that it was reported."""
    r8 = make(64, num_epochs=20, handle_signals=False)
    while (ticket := r8.draw_if_any()) is not None:
        barrier = threading.Barrier(2)

        def report(ticket=ticket, barrier=barrier):
            barrier.wait(SECONDS)
            try:
                r8.report(ticket, 1.0)
            except RuntimeError as error:
                return "was already reported or dropped" in str(error)
            return False

        told = sorted(thread.get() for thread in [Thread(report), Thread(report)])
        assert told == [False, True]

    assert r8.global_step == 320


def test_a_view_of_a_large_table_holds_no_step_up():
    """While another thread ranks ten million samples, the training goes on."""
    r8 = R8Scheduler(10**7, batch_size=64, num_epochs=1, handle_signals=False)
    train_by_tickets(r8, most=2000)
    viewer, durations = Thread(r8.table.hardest), []
    while viewer.is_alive():
        began = time.perf_counter()
        train_by_tickets(r8, most=1)
        durations.append(time.perf_counter() - began)

    assert len(viewer.get()) == 10
    assert len(durations) > 100
    assert np.median(durations) < 0.01


def test_the_state_of_a_paused_run():
    """Another thread gets the state of a run that waits, and looks at it."""
    r8 = make(64, num_epochs=2, handle_signals=False)
    train_by_tickets(r8, most=3)
    r8.requests.pause()
    trainer = Thread(train_by_tickets, r8)
    while not r8.requests.is_paused:
        time.sleep(0.001)
    state, summary = Thread(r8.state_dict).get(), Thread(r8.summary).get()
    r8.requests.resume()
    trainer.get()

    assert (state["pace"]["step"], "step 3 of 32" in summary) == (3, True)
    assert r8.global_step == 32


@pytest.mark.parametrize("place", ["state", "save", "listener", "schedule", "guard", "loss"])
@pytest.mark.parametrize("wish", ["summary", "state_dict"])
def test_what_the_user_s_functions_ask_another_thread(place, wish, tmp_path):
    """No lock is held while a function of the user runs: another thread that it waits for may look at the run."""
    asked, weights = [], Weights()

    def ask(where):
        if where == place and len(asked) < 5 and is_built and threading.current_thread() is threading.main_thread():
            asked.append(Thread(getattr(r8, wish)).get())

    class Guard(FiniteGuard):
        def judge(self, *given):
            ask("guard")
            return super().judge(*given)

    class Loss:
        def __array__(self, *given, **more):
            ask("loss")
            return np.array(1.0)

    is_built = False
    r8 = make(
        num_epochs=4,
        handle_signals=False,
        guard=Guard(),
        scheduler_mode=lambda progress: ask("schedule") or 0.1,
        state_callback=lambda: ask("state") or weights.get(),
        save_callback=lambda state, path: ask("save") or weights.save(state, path),
        load_callback=weights.load,
        checkpoint_dir=tmp_path,
        listeners=[lambda event: ask("listener")],
        backup_every=2,
    )
    is_built = True
    while (ticket := r8.draw_if_any()) is not None:
        r8.report(ticket, Loss())

    assert len(asked) >= 4
    assert r8.global_step == 12


def test_a_restore_may_be_looked_at():
    """While the model is restored, another thread sees the run; its state is given when the restore is over."""
    weights, seen, later = Weights(), [], []

    def load(source):
        seen.append(Thread(r8.summary).get())
        later.append(Thread(r8.state_dict))
        with pytest.raises(
            RuntimeError, match=r"state_dict\(\) was called at step . by a function that report\(\) calls"
        ):
            r8.state_dict()

    r8 = make(state_callback=weights.get, load_callback=load, handle_signals=False)
    r8.report(r8.draw(), 1.0)
    ticket = r8.draw()
    weights.values = np.full(2, NAN)
    with pytest.raises(RestoreError, match="does load_callback restore it"):
        r8.report(ticket, NAN)

    assert "losses refused: 1" in seen[0]
    assert later[0].get()["pace"]["step"] == 2


def test_a_listener_may_call_the_scheduler():
    """A listener may ask for the state, draw and report; what it causes is told after what it hears now."""
    heard, states = [], []

    def listen(event):
        if isinstance(event, StepDone):
            heard.append(event.step)
            states.append(r8.state_dict()["pace"]["step"])
            if event.step == 3:
                r8.report(r8.draw(), 1.0)
                assert heard[-1] == 3

    r8 = make(listeners=[listen], handle_signals=False)
    while (ticket := r8.draw_if_any()) is not None:
        r8.report(ticket, 1.0)

    assert heard == [1, 2, 3, 4, 5, 6]
    assert states == [1, 2, 3, 4, 5, 6]
