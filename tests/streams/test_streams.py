"""Stages: they pull only what they use, survive any number, and remember nothing between streams."""

from __future__ import annotations

import math
import subprocess
import sys
import time

import numpy as np
import pytest

from learnit_r8 import R8Scheduler
from learnit_r8.streams import (
    Event,
    augment,
    best,
    early_stop,
    ema,
    epoch_stream,
    pipe,
    step_stream,
    take,
    tap,
    tick,
)
from learnit_r8.triggers import Elapsed, after, at, every, never
from tests.stream_common import Source, Weights, line, losses

torch = pytest.importorskip("torch")
nn = torch.nn
pytestmark = pytest.mark.usefixtures("one_thread")


STAGES = {
    "augment": lambda: augment(lambda event: {"more": 1}),
    "take": lambda: take(10**9),
    "tap": lambda: tap(lambda event: None),
    "tap every": lambda: tap(lambda event: None, every=3),
    "tap trigger": lambda: tap(lambda event: None, every=every(3)),
    "tick": lambda: tick(lambda: None),
    "early_stop": lambda: early_stop("loss", patience=10),
    "ema": lambda: ema("loss", decay=0.9),
    "best": lambda: best("loss"),
    "plain generator": lambda: lambda events: (event for event in events),
}


@pytest.fixture(params=STAGES, ids=str)
def stage(request):
    return STAGES[request.param]()


class TestEveryStage:
    """The suite that every stage passes."""

    def test_is_lazy(self, stage):
        source = Source(model=Weights())

        pipe(source, stage)

        assert source.pulled == 0

    def test_pulls_what_it_uses(self, stage):
        """Three events asked for are three events pulled, whether by next() or through take()."""
        one, other = Source(model=Weights()), Source(model=Weights())
        events = pipe(one, stage)
        for _ in range(3):
            next(events)
        got = list(pipe(other, stage, take(3)))

        assert (one.pulled, other.pulled, len(got)) == (3, 3, 3)

    def test_keeps_the_order_and_the_entries(self, stage):
        got = list(pipe(Source(model=None) if stage is None else Source(model=Weights()), stage, take(5)))

        assert [event["step"] for event in got] == [1, 2, 3, 4, 5]

    def test_an_event_stays_an_event(self, stage):
        """The type and what it knows of the run survive every stage."""
        event = Event(step=1, loss=0.5, model=Weights())
        event.elapsed = Elapsed(1, 32, 0.5)

        [got] = pipe([event], stage)

        assert type(got) is Event
        assert got.elapsed == event.elapsed

    def test_leaves_the_source_as_it_was(self, stage):
        event = {"step": 1, "loss": 0.5, "model": Weights()}
        before = dict(event)

        list(pipe([event], stage))

        assert event == before

    def test_starts_afresh_for_each_stream(self, stage):
        """What a stage remembers belongs to one stream, not to the stage."""
        events = [{"step": n, "loss": 1.0, "model": Weights()} for n in range(1, 6)]

        assert list(stage(events)) == list(stage(events))

    def test_passes_an_error_on(self, stage):
        def broken():
            yield {"step": 1, "loss": 1.0, "model": Weights()}
            raise OSError("the disk is gone")

        with pytest.raises(OSError, match="the disk is gone"):
            list(pipe(broken(), stage))


class TestPipe:
    def test_without_stages_is_the_stream(self):
        assert list(pipe([1, 2])) == [1, 2]


class TestTakeDefects:
    def test_take_pulls_n_plus_1(self):
        """take(n) trains exactly n epochs, and taps before it hear exactly n events."""
        heard = []
        for n in (0, 1, 3):
            source = Source()

            assert len(list(pipe(source, tap(heard.append), take(n)))) == source.pulled == n
        assert len(heard) == 4

    def test_the_live_model_is_not_past_the_last_event(self):
        """The weights after take(3) are those of the third event."""
        data, model, optimizer = line()

        [*_, last] = pipe(
            epoch_stream(data, model, optimizer, nn.MSELoss(), batch_size=16),
            augment(lambda event: {"weight": event["model"].weight.item()}),
            take(3),
        )

        assert last["weight"] == model.weight.item()

    def test_two_takes_of_one_stream_go_on(self):
        source = Source()

        assert [e["step"] for e in [*take(2)(source), *take(2)(source)]] == [1, 2, 3, 4]


class TestAugment:
    def test_none_adds_nothing(self):
        [event] = losses(1.0)

        assert next(augment(lambda _: None)([event])) is event

    def test_the_event_type_is_lost(self):
        """(A defect elsewhere.) An augmented event is still an Event."""
        assert type(next(augment(lambda _: {"a": 1})([Event(step=1)]))) is Event


class TestTap:
    def steps(self, **how):
        seen = []
        list(pipe(Source(), tap(lambda event: seen.append(event["step"]), **how), take(9)))
        return seen

    def test_every_3_fires_at_3_6_9(self):
        """Not at 1, 4, 7."""
        assert self.steps(every=3) == [3, 6, 9]

    def test_start_moves_the_grid(self):
        assert (self.steps(every=3, start=1), self.steps(every=2, start=5)) == ([1, 4, 7], [5, 7, 9])

    def test_takes_triggers_and_functions(self):
        assert self.steps(every=every(3) | at(4)) == [3, 4, 6, 9]
        assert self.steps(every=after(3).every(2)) == [3, 5, 7, 9]
        assert self.steps(every=lambda elapsed: elapsed.steps == 2) == [2]
        assert self.steps(every=never) == []

    def test_seconds_by_a_clock_that_tests_can_move(self, monkeypatch):
        now = [0.0]
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        seen = []
        for event in pipe(Source(), tap(lambda event: seen.append(event["step"]), every=every(time=10)), take(9)):
            now[0] += 4
            assert event

        assert seen == [4, 6, 9]

    def test_samples_that_plain_events_count(self):
        events = [{"step": n, "samples": 32 * n} for n in range(1, 8)]
        seen = []

        list(pipe(events, tap(lambda event: seen.append(event["samples"]), every=every(samples=100))))

        assert seen == [128, 224]

    def test_one_trigger_in_two_taps(self):
        trigger, seen = every(2), []

        list(
            pipe(Source(), tap(lambda _: seen.append("a"), trigger), tap(lambda _: seen.append("b"), trigger), take(4))
        )

        assert seen == ["a", "b", "a", "b"]

    def test_after_a_stage_that_drops_events(self):
        """A trigger crosses the line at the next event that arrives."""
        seen = []
        only_odd = lambda events: (event for event in events if event.elapsed.steps % 2)  # noqa: E731
        r8 = R8Scheduler(80, batch_size=10, num_epochs=1)

        list(pipe(step_stream(r8, lambda i, lr: 1.0), only_odd, tap(lambda e: seen.append(e["step"]), every=every(4))))

        assert seen == [5]

    def test_tick(self):
        calls = []

        list(pipe(Source(), tick(lambda: calls.append(1)), tick(lambda: calls.append(2), every=2), take(4)))

        assert calls == [1, 1, 2, 1, 1, 2]


class TestEarlyStop:
    def kept(self, *values, **how):
        return len(list(early_stop("loss", **how)(losses(*values))))

    def test_ends_with_the_event_that_uses_up_patience(self):
        assert self.kept(5.0, 4.0, 4.0, 4.0, 3.0, patience=2) == 4

    def test_a_first_nan_is_best_for_ever(self):
        """(A defect elsewhere.) A NaN is never the best value: what follows it is an improvement."""
        assert self.kept(math.nan, 3.0, 2.0, 1.0, 0.5, 0.4, patience=2) == 6

    def test_nan_uses_up_patience(self):
        assert self.kept(3.0, math.nan, math.nan, 2.0, patience=2) == 3
        assert self.kept(math.nan, math.nan, math.nan, patience=2) == 2

    def test_infinities_are_never_best(self):
        assert self.kept(-math.inf, 3.0, 2.0, 1.0, patience=1) == 1
        assert self.kept(2.0, -math.inf, 1.0, 1.0, 1.0, patience=2) == 5

    def test_mode_and_min_delta(self):
        assert self.kept(0.1, 0.2, 0.3, 0.3, 0.3, patience=1, mode="max") == 4
        assert self.kept(1.0, 0.95, 0.93, 0.8, patience=2, min_delta=0.1) == 3
        assert self.kept(1.0, 0.95, 0.85, 0.8, patience=2, min_delta=0.1) == 4

    def test_pulls_nothing_after_the_end(self):
        source = Source(flat=1.0)

        list(early_stop("flat", patience=3)(source))

        assert source.pulled == 4

    @pytest.mark.parametrize("make", [np.float32, np.float64, lambda v: np.array(v), torch.tensor, int])
    def test_numpy_and_tensor_scalars(self, make):
        values = [make(5), make(4), make(4), make(4), make(1)]

        assert self.kept(*values, patience=2) == 4

    def test_a_tensor_with_a_graph(self):
        weight = torch.ones((), requires_grad=True)

        assert self.kept(weight * 2, weight * 3, patience=1) == 2


class TestEma:
    def averages(self, *values, **how):
        return [event["loss_ema"] for event in ema("loss", **how)(losses(*values))]

    def test_is_the_corrected_average_of_adam(self):
        values, decay, m, expected = [3.0, 1.0, 2.0, 5.0], 0.9, 0.0, []
        for t, x in enumerate(values, start=1):
            m = decay * m + (1 - decay) * x
            expected.append(m / (1 - decay**t))

        assert self.averages(*values, decay=decay) == pytest.approx(expected)
        assert self.averages(7.0, decay=0.999) == pytest.approx([7.0])

    def test_without_correction(self):
        assert self.averages(1.0, 4.0, decay=0.5, bias_correction=False) == [0.5, 2.25]

    def test_half_life(self):
        """After a half-life, a value that is followed by zeros has half its weight."""
        averages = self.averages(1.0, 0.0, 0.0, 0.0, half_life=3, bias_correction=False)

        assert averages[3] == pytest.approx(averages[0] / 2)

    def test_one_nan_and_it_is_nan_for_ever(self):
        """(A defect elsewhere.) Values that are not finite change nothing."""
        assert self.averages(1.0, math.nan, math.inf, 3.0, decay=0.5) == pytest.approx([1.0, 1.0, 1.0, 7 / 3])

    def test_nan_before_there_is_a_value(self):
        first, second = self.averages(math.nan, 2.0, decay=0.5)

        assert math.isnan(first)
        assert second == 2.0

    def test_numpy_and_tensor_scalars(self):
        assert self.averages(np.float32(1), torch.tensor(1.0), decay=0.5) == [1.0, 1.0]

    def test_out_key(self):
        assert list(ema("loss", decay=0.5, out_key="smooth")(losses(1.0))) == [{"loss": 1.0, "smooth": 1.0}]


class TestBest:
    def test_one_live_model_in_all_events(self):
        """(A defect elsewhere.) list(events) holds one live model; best() keeps the weights of the best event."""
        data, model, optimizer = line()
        weights, keep = [], best("height")
        score = iter([3.0, 1.0, 2.0, 4.0])

        list(
            pipe(
                epoch_stream(data, model, optimizer, nn.MSELoss(), batch_size=16),
                augment(lambda event: {"height": next(score)}),
                tap(lambda event: weights.append(event["model"].weight.item())),
                keep,
                early_stop("height", patience=2),
            )
        )

        assert (keep.value, keep.event["step"]) == (1.0, 2)
        assert "model" not in keep.event
        assert model.weight.item() == weights[3] != weights[1]
        keep.restore()
        assert model.weight.item() == keep.weights["weight"].item() == weights[1]

    def test_into_another_model(self):
        keep, other = best("loss", mode="max", min_delta=0.5), Weights()
        list(keep([{"loss": x, "model": Weights(x)} for x in (1.0, 1.4, 2.0, math.inf, math.nan)]))

        keep.restore(other)

        assert (other.value, keep.value) == (2.0, 2.0)

    def test_nothing_to_restore(self):
        """What an earlier stream had does not count."""
        keep = best("loss")
        list(keep([{"loss": 1.0, "model": Weights()}]))
        list(keep([{"loss": math.nan, "model": Weights()}]))

        with pytest.raises(RuntimeError, match=r"restore\(\) needs an event with a finite 'loss', got none so far"):
            keep.restore()


def test_importing_streams_loads_no_framework():
    """numpy comes with the package; torch, pandas and the rest when they are used."""
    code = (
        "import sys, learnit_r8.streams, learnit_r8.triggers\n"
        "print(sorted({'torch', 'pandas', 'numpy', 'matplotlib', 'curses'} & set(sys.modules)))"
    )

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_plain_stages_need_no_torch():
    """On a machine without torch everything but the torch parts works."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from learnit_r8 import R8Scheduler\n"
        "from learnit_r8.streams import *\n"
        "events = step_stream(R8Scheduler(40, batch_size=10, num_epochs=1), lambda i, lr: 1.0)\n"
        "events = pipe(events, ema('loss', decay=.5), early_stop('loss', patience=9), take(3))\n"
        "print(len(collect(events)))"
    )

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "3\n"
