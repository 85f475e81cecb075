"""Streams: stages pull only what they use, survive any number, and train what a loop by hand would train."""

from __future__ import annotations

import builtins
import io
import json
import math
import subprocess
import sys
import time

import numpy as np
import pytest

from learnit_r8 import Policy, R8Scheduler
from learnit_r8.recovery import TrainingDiverged
from learnit_r8.streams import (
    Event,
    augment,
    best,
    collect,
    collect_jsonl,
    collect_pd,
    early_stop,
    ema,
    epoch_stream,
    iter_batches,
    pipe,
    print_keys,
    step_stream,
    take,
    tap,
    tick,
    validation_loss,
)
from learnit_r8.triggers import Elapsed, after, at, every, never

torch = pytest.importorskip("torch")
nn = torch.nn


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


class Source:
    """Events without end; counts how many were asked for."""

    def __init__(self, **entries):
        self.pulled = 0
        self.entries = entries

    def __iter__(self):
        return self

    def __next__(self):
        self.pulled += 1
        return {"step": self.pulled, "loss": 1.0 / self.pulled, **self.entries}


def losses(*values):
    return [{"loss": value} for value in values]


def line(rows=64, *, noise=0.0):
    """Data on a line, a model that fits it, and its optimizer."""
    x = torch.linspace(-1, 1, rows)[:, None]
    y = 3 * x + 1 + noise * torch.randn(rows, 1)
    model = nn.Linear(1, 1)
    return (x, y), model, torch.optim.SGD(model.parameters(), lr=0.1)


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


class Weights:
    """A model as best() sees one."""

    def __init__(self, value=0.0):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


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

    def test_a_pipe_of_all_pulls_what_it_uses(self):
        source = Source(model=Weights())

        list(pipe(source, *(make() for make in STAGES.values()), take(4)))

        assert source.pulled == 4

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

    def test_checks_at_the_call(self):
        with pytest.raises(TypeError, match=r"stages must be callable, got 5"):
            pipe([], take(1), 5)
        with pytest.raises(TypeError, match="not iterable"):
            pipe(5, take(1))


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

    @pytest.mark.parametrize("n", [-1, 2.5, None, True, math.nan])
    def test_checks_at_the_call(self, n):
        with pytest.raises(ValueError, match=r"n must be a whole number >= 0, got"):
            take(n)


class TestAugment:
    def test_none_adds_nothing(self):
        [event] = losses(1.0)

        assert next(augment(lambda _: None)([event])) is event

    def test_the_event_type_is_lost(self):
        """(A defect elsewhere.) An augmented event is still an Event."""
        assert type(next(augment(lambda _: {"a": 1})([Event(step=1)]))) is Event

    def test_refuses_what_is_no_dictionary(self):
        with pytest.raises(TypeError, match=r"fn of augment\(\) must return a dictionary or None, got 5 from"):
            list(augment(lambda _: 5)(losses(1.0)))

    def test_checks_at_the_call(self):
        with pytest.raises(TypeError, match=r"fn must be callable, got Ellipsis"):
            augment(...)


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

    def test_checks_at_the_call(self):
        with pytest.raises(TypeError, match=r"fn must be callable, got None"):
            tap(None)
        for bad in (0, -1, 2.5, True, "3"):
            with pytest.raises(ValueError, match=r"every must be a whole number >= 1, got"):
                tap(print, every=bad)
        with pytest.raises(ValueError, match=r"start must be a whole number >= 1, got 0"):
            tap(print, start=0)
        with pytest.raises(ValueError, match=r"start must come with a number for every, got 2"):
            tap(print, every=every(3), start=2)

    def test_tick(self):
        calls = []

        list(pipe(Source(), tick(lambda: calls.append(1)), tick(lambda: calls.append(2), every=2), take(4)))

        assert calls == [1, 1, 2, 1, 1, 2]
        with pytest.raises(TypeError, match=r"fn must be callable, got 3"):
            tick(3)


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

    def test_checks(self):
        for bad in (0, -1, 2.5, None):
            with pytest.raises(ValueError, match=r"patience must be a whole number >= 1, got"):
                early_stop("loss", patience=bad)
        with pytest.raises(ValueError, match=r'mode must be "min" or "max", got \'lowest\''):
            early_stop("loss", patience=1, mode="lowest")
        for bad in (-0.1, math.nan, math.inf, "0"):
            with pytest.raises(ValueError, match=r"min_delta must be finite and >= 0, got"):
                early_stop("loss", patience=1, min_delta=bad)
        with pytest.raises(KeyError, match=r"key must be one of the event's keys \['loss'\], got 'lose'"):
            list(early_stop("lose", patience=1)(losses(1.0)))
        for bad in ("1.0", None, [1.0], np.ones(3)):
            with pytest.raises(TypeError, match=r"event\['loss'\] must be a real number"):
                list(early_stop("loss", patience=1)(losses(bad)))


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

    def test_checks(self):
        for how in ({}, {"decay": 0.5, "half_life": 3}):
            with pytest.raises(ValueError, match=r"exactly one of decay and half_life must be given, got"):
                ema("loss", **how)
        for bad in (1.0, -0.1, math.nan, "0.5"):
            with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got"):
                ema("loss", decay=bad)
        for bad in (0, -1, math.nan, math.inf, "3"):
            with pytest.raises(ValueError, match=r"half_life must be finite and > 0 events, got"):
                ema("loss", half_life=bad)
        with pytest.raises(KeyError, match=r"got 'val'"):
            list(ema("val", decay=0.5)(losses(1.0)))


class TestSinks:
    def test_collect_leaves_out_the_model_and_reads_scalars(self):
        events = [{"step": np.int64(1), "loss": torch.tensor(0.5), "model": object(), "rows": [1, 2]}]

        assert collect(events) == [{"step": 1, "loss": 0.5, "rows": [1, 2]}]
        assert type(collect(events)[0]["loss"]) is float

    def test_include_and_exclude(self):
        events = [{"model": object(), "a": 1, "b": 2}]

        assert collect(events, include=["model", "a", "z"]) == [{"a": 1}]
        assert collect(events, exclude=["a"]) == [{"b": 2}]
        with pytest.raises(ValueError, match=r"only one of include and exclude may be given, got \['a'\] and \['b'\]"):
            collect(events, include=["a"], exclude=["b"])
        with pytest.raises(TypeError, match=r"include must be a collection of keys, got 'loss'"):
            collect(events, include="loss")

    def test_a_wrong_filter_pulls_nothing(self, tmp_path):
        source = Source()
        for sink in (collect, collect_pd, lambda events, **how: collect_jsonl(events, tmp_path / "x", **how)):
            with pytest.raises(ValueError, match="only one of"):
                sink(source, include=["a"], exclude=["b"])

        assert source.pulled == 0
        assert not (tmp_path / "x").exists()

    def test_jsonl_numpy_scalars_and_tensors_are_type_errors(self, tmp_path):
        """(A defect elsewhere.) They, arrays, paths and nests of them have a JSON form."""
        event = {
            "a": np.float32(0.5),
            "b": torch.tensor(2),
            "c": np.arange(2),
            "d": {"e": (np.bool_(True), None)},
            "f": torch.ones(1, 2, requires_grad=True),
            "g": tmp_path,
            1: "one",
        }
        collect_jsonl([event], tmp_path / "log.jsonl")

        expected = {
            "a": 0.5,
            "b": 2,
            "c": [0, 1],
            "d": {"e": [True, None]},
            "f": [[1.0, 1.0]],
            "g": str(tmp_path),
            "1": "one",
        }
        assert json.loads((tmp_path / "log.jsonl").read_text()) == expected

    def test_jsonl_nan_is_json(self, tmp_path):
        """Strict JSON: numbers that are not finite are the strings that the journal uses, and read back by float()."""
        path = tmp_path / "log.jsonl"
        values = [math.nan, math.inf, -math.inf, np.float32("nan"), torch.tensor(math.inf), np.array([math.nan])]
        collect_jsonl(losses(*values), path)

        def refuse(name):
            raise AssertionError(name)

        got = [json.loads(text, parse_constant=refuse)["loss"] for text in path.read_text().splitlines()]
        assert got == ["nan", "inf", "-inf", "nan", "inf", ["nan"]]

    def test_jsonl_no_parent_directory(self, tmp_path):
        collect_jsonl(losses(1.0), tmp_path / "runs" / "today" / "log.jsonl")

        assert (tmp_path / "runs/today/log.jsonl").read_text() == '{"loss": 1.0}\n'

    def test_jsonl_is_flushed_per_line(self, tmp_path):
        """A run that dies leaves every epoch it finished."""
        path, seen = tmp_path / "log.jsonl", []

        def events():
            for step in range(3):
                yield {"step": step}
                seen.append(len(path.read_text().splitlines()) if path.exists() else 0)
            raise OSError("died")

        with pytest.raises(OSError, match="died"):
            collect_jsonl(events(), path)
        assert seen == [1, 2, 3]

    def test_jsonl_overwrites(self, tmp_path):
        """Only when the first event is there; a run that fails before it does not cost the log of the one before."""
        path = tmp_path / "log.jsonl"
        collect_jsonl(losses(1.0, 2.0), path)

        def broken():
            raise OSError("no data")
            yield

        with pytest.raises(OSError, match="no data"):
            collect_jsonl(broken(), path)
        assert len(path.read_text().splitlines()) == 2
        collect_jsonl(losses(3.0), path, append=True)
        assert len(path.read_text().splitlines()) == 3
        collect_jsonl(losses(4.0), str(path))
        assert path.read_text() == '{"loss": 4.0}\n'
        collect_jsonl([], path)
        assert path.read_text() == ""

    def test_jsonl_into_an_open_file(self):
        file = io.StringIO()
        collect_jsonl(losses(1.0), file)

        assert file.getvalue() == '{"loss": 1.0}\n'

    def test_jsonl_names_what_it_cannot_write(self, tmp_path):
        with pytest.raises(
            TypeError, match=r"event\['state'\] must have a JSON form, got <object .*leave it out with exclude"
        ):
            collect_jsonl([{"state": object()}], tmp_path / "log.jsonl")

        collect_jsonl([{"a": 1, "state": object()}], tmp_path / "log.jsonl", exclude=["state"])
        assert (tmp_path / "log.jsonl").read_text() == '{"a": 1}\n'

    def test_pandas(self):
        pytest.importorskip("pandas")
        frame = collect_pd([{"step": 1, "loss": torch.tensor(0.5), "model": object()}])

        assert list(frame.columns) == ["step", "loss"]
        assert frame["loss"].dtype == float

    def test_pandas_is_named_where_it_is_missing(self, monkeypatch):
        original, source = builtins.__import__, Source()

        def without_pandas(name, *arguments, **keywords):
            if name == "pandas":
                raise ImportError("No module named pandas")
            return original(name, *arguments, **keywords)

        monkeypatch.setattr(builtins, "__import__", without_pandas)
        with pytest.raises(
            ImportError, match=r"pandas is required for collect_pd\(\): pip install learnit-r8\[pandas\]"
        ):
            collect_pd(take(2)(source))
        assert source.pulled == 0


class TestPrintKeys:
    def test_numpy_scalars_unformatted(self, capsys):
        """(A defect elsewhere.) numpy and tensor scalars print like floats."""
        print_keys("a", "b", "c")({"step": np.int64(7), "a": np.float32(1 / 3), "b": torch.tensor(1 / 3), "c": 5})

        assert capsys.readouterr().out == "step=0007 a=0.3333 b=0.3333 c=5\n"

    def test_what_is_missing_or_no_number(self, capsys):
        print_keys("a", "b", "c")({"a": "ok", "c": math.nan})

        assert capsys.readouterr().out == "a=ok b=NA c=nan\n"

    def test_options(self, capsys):
        print_keys("a", precision=2, include_step=False)({"step": 1, "a": 1.0})
        print_keys("a", step_key="epoch")({"epoch": 3, "a": 1.0})
        print_keys("a")({"step": "first", "a": 1.0})

        assert capsys.readouterr().out == "a=1.00\nepoch=0003 a=1.0000\nstep=first a=1.0000\n"

    def test_checks_at_the_call(self):
        with pytest.raises(ValueError, match=r"precision must be a whole number >= 0, got -1"):
            print_keys("a", precision=-1)
        with pytest.raises(
            ValueError, match=r"keys must name something to print where include_step is False, got \(\)"
        ):
            print_keys(include_step=False)


class TestBest:
    def test_one_live_model_in_all_events(self):
        """(A defect elsewhere.) list(events) holds one live model; best() keeps the weights of the best event."""
        data, model, optimizer = line()
        weights, keep = [], best("score")
        score = iter([3.0, 1.0, 2.0, 4.0])

        list(
            pipe(
                epoch_stream(data, model, optimizer, nn.MSELoss(), batch_size=16),
                augment(lambda event: {"score": next(score)}),
                tap(lambda event: weights.append(event["model"].weight.item())),
                keep,
                early_stop("score", patience=2),
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
        keep = best("loss")
        list(keep([{"loss": math.nan, "model": Weights()}]))

        with pytest.raises(RuntimeError, match=r"restore\(\) needs an event with a finite 'loss', got none so far"):
            keep.restore()

    def test_checks(self):
        with pytest.raises(ValueError, match="mode must be"):
            best("loss", mode="mini")
        with pytest.raises(
            TypeError, match=r"event\['model'\] must have a state_dict\(\) for best\(\) to keep, got None"
        ):
            list(best("loss")(losses(1.0)))


class TestIterBatches:
    def test_in_order_and_short_at_the_end(self):
        x, y = torch.arange(12).view(6, 2), torch.arange(6)
        batches = list(iter_batches(x, y, batch_size=4, shuffle=False))

        assert [[len(part) for part in batch] for batch in batches] == [[4, 4], [2, 2]]
        assert torch.equal(torch.cat([batch[0] for batch in batches]), x)

    @pytest.mark.parametrize("chunk_bytes", [1, 100, 10**6])
    def test_shuffled_rows_stay_together(self, monkeypatch, chunk_bytes):
        """Every row once, with its label, in the order the generator draws; however many are gathered at once."""
        monkeypatch.setattr("learnit_r8.streams.batches.CHUNK_BYTES", chunk_bytes)
        x, y = torch.arange(103)[:, None], torch.arange(103) * 10
        batches = list(iter_batches(x, y, batch_size=8, generator=torch.Generator().manual_seed(5)))

        order = torch.randperm(103, generator=torch.Generator().manual_seed(5))
        assert torch.equal(torch.cat([batch[0] for batch in batches])[:, 0], order)
        assert torch.equal(torch.cat([batch[1] for batch in batches]), order * 10)
        assert [len(batch[0]) for batch in batches] == [8] * 12 + [7]

    def test_checks_at_the_call(self):
        with pytest.raises(ValueError, match=r"tensors must have the same number of rows, at least 1, got \[\]"):
            iter_batches()
        with pytest.raises(ValueError, match=r"got \[3, 4\]"):
            iter_batches(torch.ones(3), torch.ones(4))
        with pytest.raises(ValueError, match=r"got \[0\]"):
            iter_batches(torch.ones(0, 2))
        with pytest.raises(TypeError, match=r"tensors must be torch tensors, got list"):
            iter_batches([1, 2])
        with pytest.raises(ValueError, match=r"batch_size must be a whole number >= 1, got 0"):
            iter_batches(torch.ones(3), batch_size=0)


class TestValidationLoss:
    def test_whole_set_in_one_batch(self):
        """(A defect elsewhere.) Batches of any size give the mean over all rows."""
        (x, y), model, _ = line(103, noise=1.0)
        whole = nn.MSELoss()(model(x), y).item()
        seen = []
        model.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))

        assert validation_loss((x, y), nn.MSELoss(), batch_size=10)({"model": model})["val_loss"] == pytest.approx(
            whole
        )
        assert max(seen) == 10

    def test_sum_is_divided_by_the_rows(self):
        (x, y), model, _ = line(10)
        loss = validation_loss((x, y), nn.MSELoss(reduction="sum"), batch_size=3)({"model": model})["val_loss"]

        assert loss == pytest.approx(nn.MSELoss()(model(x), y).item())

    def test_evaluates_and_puts_every_mode_back(self):
        """Without gradients, in eval mode; a layer that was frozen stays frozen, also after an error."""
        model = nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.5), nn.BatchNorm1d(1))
        model[2].eval()
        modes = []

        def loss_fn(prediction, label):
            modes.append((model.training, prediction.requires_grad))
            raise OSError("failed")

        with pytest.raises(OSError, match="failed"):
            validation_loss(line()[0], loss_fn)({"model": model})
        assert modes == [(False, False)]
        assert [module.training for module in model.modules()] == [True, True, True, False]

    def test_without_labels_and_with_a_key(self):
        model = nn.Identity()
        compute = validation_loss((torch.ones(4),), lambda prediction: prediction.mean(), key="mean", last_label=False)

        assert compute({"model": model}) == {"mean": 1.0}

    def test_checks_at_the_call(self):
        x, y = line()[0]
        with pytest.raises(ValueError, match=r"data must have the same number of rows, at least 1, got \[64, 3\]"):
            validation_loss((x, y[:3]), nn.MSELoss())
        with pytest.raises(ValueError, match=r"batch_size must be a whole number >= 1, got 0"):
            validation_loss((x, y), nn.MSELoss(), batch_size=0)
        with pytest.raises(TypeError, match=r"loss_fn must be callable, got 'mse'"):
            validation_loss((x, y), "mse")
        with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got None"):
            validation_loss((x, y), nn.MSELoss())({"step": 1})


class TestEpochStream:
    def test_trains_like_a_loop_by_hand(self):
        """Same order, same updates, same losses, bit for bit."""
        (x, y), model, optimizer = line(70, noise=0.1)
        twin = nn.Linear(1, 1)
        twin.load_state_dict(model.state_dict())
        by_hand, order = torch.optim.SGD(twin.parameters(), lr=0.1), torch.Generator().manual_seed(3)
        stream = epoch_stream(
            (x, y), model, optimizer, nn.MSELoss(), batch_size=16, generator=torch.Generator().manual_seed(3)
        )

        for event in take(3)(stream):
            total = 0.0
            for rows in torch.randperm(70, generator=order).split(16):
                by_hand.zero_grad()
                loss = nn.MSELoss()(twin(x[rows]), y[rows])
                loss.backward()
                by_hand.step()
                total += loss.item() * len(rows)
            assert event["train_loss"] == pytest.approx(total / 70, rel=1e-12)
        assert torch.equal(twin.weight, model.weight)

    def test_events(self, monkeypatch):
        now = [0.0]
        monkeypatch.setattr(time, "monotonic", lambda: now.__setitem__(0, now[0] + 1.5) or now[0])
        data, model, optimizer = line(10)
        stream = epoch_stream(data, model, optimizer, nn.MSELoss(), batch_size=4, extra={"run": "a"})
        first, second = take(2)(stream)

        assert list(first) == ["step", "train_loss", "train_time_sec", "model", "run"]
        assert (first["step"], second["step"], second["train_time_sec"], second["run"]) == (1, 2, 1.5, "a")
        assert first["model"] is model
        assert type(first) is Event
        assert second.elapsed[:5] == (2, 20, 6.0, 1, 10)

    def test_is_lazy_and_an_iterator(self):
        data, model, optimizer = line()
        before = model.weight.item()
        stream = epoch_stream(data, model, optimizer, nn.MSELoss(), batch_size=16)

        assert model.weight.item() == before
        assert next(stream)["step"] == 1

    def test_last_label_false(self):
        class Sum(nn.Module):
            def __init__(self):
                super().__init__()
                self.scale = nn.Parameter(torch.tensor(1.0))

            def forward(self, left, right):
                return self.scale * (left + right)

        model = Sum()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        data = (torch.ones(5, 1), torch.full((5, 1), 2.0))
        event = next(epoch_stream(data, model, optimizer, lambda p: p.mean(), batch_size=2, last_label=False))

        assert event["train_loss"] == pytest.approx(3.0)

    def test_unreduced_and_summed_losses(self):
        """One loss for each row is averaged; a sum is told per row."""
        for reduction in ("none", "mean", "sum"):
            (x, y), model, optimizer = line(10)
            optimizer.param_groups[0]["lr"] = 0.0
            expected = nn.MSELoss()(model(x), y).item()
            event = next(epoch_stream((x, y), model, optimizer, nn.MSELoss(reduction=reduction), batch_size=4))

            assert event["train_loss"] == pytest.approx(expected)

    def test_training_mode_before_each_epoch(self):
        data, model, optimizer = line()
        modes = []
        model.register_forward_hook(lambda module, inputs, output: modes.append(module.training))

        list(
            pipe(
                epoch_stream(data, model, optimizer, nn.MSELoss(), batch_size=64),
                tap(lambda event: event["model"].eval()),
                take(2),
            )
        )

        assert modes == [True, True]

    def test_extra_values_are_live_and_the_dictionary_is_not(self):
        data, model, optimizer = line()
        extra = {"scheduler": object()}
        stream = epoch_stream(data, model, optimizer, nn.MSELoss(), batch_size=64, extra=extra)
        extra["late"] = 1

        assert "late" not in next(stream)

    def test_triggers_count_epochs_samples_and_seconds(self):
        data, model, optimizer = line(10)
        seen = []

        list(
            pipe(
                epoch_stream(data, model, optimizer, nn.MSELoss(), batch_size=4),
                tap(lambda event: seen.append(event["step"]), every=every(samples=25) | at(1)),
                take(6),
            )
        )

        assert seen == [1, 3, 5]


class TestEpochStreamDefects:
    """peers.md, section 6: checks, reserved keys, and what training lacked."""

    def call(self, **changes):
        (x, y), model, optimizer = line(8)
        arguments = {"data": (x, y), "model": model, "optimizer": optimizer, "loss_fn": nn.MSELoss(), "batch_size": 4}
        return epoch_stream(**{**arguments, **changes})

    @pytest.mark.parametrize(
        ("changes", "error", "text"),
        [
            ({"data": (torch.ones(8, 1),)}, ValueError, r"data must be inputs and a label last, got 1 tensors"),
            (
                {"data": (torch.ones(8, 1), torch.ones(1, 1))},
                ValueError,
                r"same number of rows, at least 1, got \[8, 1\]",
            ),
            ({"data": (torch.ones(0, 1), torch.ones(0, 1))}, ValueError, r"at least 1, got \[0, 0\]"),
            ({"data": (torch.ones(8, 1), torch.tensor(1.0))}, ValueError, r"at least 1, got \[8, 0\]"),
            ({"data": (), "last_label": False}, ValueError, r"at least 1, got \[\]"),
            ({"data": torch.ones(8, 1)}, TypeError, r"data must be a tuple of tensors, got Tensor"),
            ({"data": (np.ones((8, 1)), np.ones(8))}, TypeError, r"data must be torch tensors, got ndarray"),
            ({"model": print}, TypeError, r"model must be a torch.nn.Module, got <built-in function print>"),
            ({"optimizer": None}, TypeError, r"optimizer must be a torch.optim.Optimizer, got None"),
            ({"loss_fn": None}, TypeError, r"loss_fn must be callable, got None"),
            ({"batch_size": 0}, ValueError, r"batch_size must be a whole number >= 1, got 0"),
            ({"batch_size": 2.5}, ValueError, r"batch_size must be a whole number >= 1, got 2.5"),
            ({"extra": 5}, TypeError, r"extra must be a dictionary or None, got 5"),
            ({"scheduler": print}, TypeError, r"scheduler must be an R8Scheduler, got <built-in function print>"),
        ],
    )
    def test_checks_come_at_the_first_next(self, changes, error, text):
        """(A defect elsewhere.) They come at the call."""
        with pytest.raises(error, match=text):
            self.call(**changes)

    @pytest.mark.parametrize("key", ["step", "train_loss", "train_time_sec", "model"])
    def test_extra_with_a_reserved_key(self, key):
        with pytest.raises(ValueError, match=rf"extra must not have the reserved keys .*, got \['{key}'\]"):
            self.call(extra={key: 1, "fine": 2})

    def test_nan_goes_on_for_ever(self):
        """The event with the NaN comes out; asking for another one says that the weights are lost, and what to do."""
        (x, y), model, optimizer = line(8)
        optimizer.param_groups[0]["lr"] = 1e30
        events = []

        with pytest.raises(FloatingPointError, match=r"weights must be finite.*after epoch .*scheduler=R8Scheduler"):
            events.extend(take(50)(epoch_stream((x, y), model, optimizer, nn.MSELoss(), batch_size=4)))
        data, model, optimizer = line(8)
        optimizer.param_groups[0]["lr"] = 1e30
        kept = []
        with pytest.raises(FloatingPointError):
            list(tap(kept.append)(epoch_stream(data, model, optimizer, nn.MSELoss(), batch_size=4)))
        assert not math.isfinite(kept[-1]["train_loss"])

    def test_a_loss_that_is_not_finite_with_sound_weights_goes_on(self):
        data, model, optimizer = line(8)
        stream = epoch_stream(data, model, optimizer, lambda p, y: p.mean() * 0 + math.inf, batch_size=8)

        assert len(list(take(3)(stream))) == 3

    def test_no_closure_optimisers(self):
        data, model, _ = line(64)
        optimizer = torch.optim.LBFGS(model.parameters(), lr=1.0)

        [*_, last] = take(3)(epoch_stream(data, model, optimizer, nn.MSELoss(), batch_size=64))

        assert last["train_loss"] < 1e-8

    def test_no_clipping_and_no_per_step_schedulers(self):
        """The optimizer's own hooks clip before, and step a schedule after, each of its steps."""
        data, model, optimizer = line(64)
        norms, rates = [], []
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

        def clip(*_):
            norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.1).item())

        def step(*_):
            rates.append(optimizer.param_groups[0]["lr"])
            schedule.step()

        optimizer.register_step_pre_hook(clip)
        optimizer.register_step_post_hook(step)
        before = model.weight.item()
        list(take(2)(epoch_stream(data, model, optimizer, nn.MSELoss(), batch_size=16)))

        assert len(norms) == 8
        assert rates == pytest.approx([0.1 * 0.9**k for k in range(8)])
        assert abs(model.weight.item() - before) <= 8 * 0.1 * 0.1

    def test_no_accumulation(self):
        """step_stream takes a step of one's own, and the losses of its parts."""
        (x, y), model, optimizer = line(64)
        r8 = R8Scheduler(64, batch_size=16, num_epochs=2)

        def train_step(indices, lr):
            optimizer.zero_grad()
            parts = []
            for rows in torch.from_numpy(indices).split(4):
                loss = nn.MSELoss()(model(x[rows]), y[rows])
                (loss / 4).backward()
                parts.append(loss.detach())
            optimizer.step()
            return torch.stack(parts)

        events = list(step_stream(r8, train_step, part_size=4))

        assert len(events) == 8
        assert r8.table.source == "parts of 4"

    def test_no_amp(self):
        """An autocast block around the reading of a stream holds for its training."""
        data, model, optimizer = line(64)
        dtypes = []
        model.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
        loss_fn = lambda prediction, label: nn.functional.mse_loss(prediction.float(), label)  # noqa: E731

        with torch.autocast("cpu", dtype=torch.bfloat16):
            history = collect(take(3)(epoch_stream(data, model, optimizer, loss_fn, batch_size=16)))

        assert set(dtypes) == {torch.bfloat16}
        assert history[-1]["train_loss"] < history[0]["train_loss"]

    def test_amp_with_a_scheduler_and_a_validation(self):
        (x, y), model, optimizer = line(64)
        r8 = R8Scheduler(64, batch_size=16, num_epochs=3, initial_lr=0.1)
        loss_fn = lambda prediction, label: nn.functional.mse_loss(prediction.float(), label)  # noqa: E731

        with torch.autocast("cpu", dtype=torch.bfloat16):
            history = collect(
                pipe(
                    epoch_stream((x, y), model, optimizer, loss_fn, scheduler=r8),
                    augment(validation_loss((x, y), loss_fn)),
                )
            )

        assert history[-1]["train_loss"] < history[0]["train_loss"]
        assert history[-1]["val_loss"] == pytest.approx(nn.functional.mse_loss(model(x), y).item(), rel=0.02)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    @pytest.mark.parametrize("scheduled", [False, True])
    def test_no_device_moves(self, scheduled):
        """Data in RAM, the model on the GPU; and all of it on the GPU with a generator of the CPU."""
        (x, y), model, _ = line(64)
        model.cuda()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for data in ((x, y), (x.cuda(), y.cuda())):
            how = (
                {"scheduler": R8Scheduler(64, batch_size=16, num_epochs=3)}
                if scheduled
                else {"batch_size": 16, "generator": torch.Generator().manual_seed(0)}
            )
            events = pipe(
                epoch_stream(data, model, optimizer, nn.MSELoss(), **how),
                augment(validation_loss((x, y), nn.MSELoss())),
                take(3),
            )

            assert all(math.isfinite(event["val_loss"]) for event in events)

    def test_no_resume(self):
        """With a scheduler a run goes on with the very same batches, in the same epoch, at the same rate."""
        (x, y), model, optimizer = line(64, noise=0.3)
        r8 = R8Scheduler(64, batch_size=16, num_epochs=6, seed=3)
        stream = epoch_stream((x, y), model, optimizer, nn.MSELoss(), scheduler=r8)
        list(take(3)(stream))
        saved = r8.state_dict(), {k: v.clone() for k, v in model.state_dict().items()}
        expected = [(event["step"], event["train_loss"]) for event in stream]

        again = R8Scheduler(64, batch_size=16, num_epochs=6, seed=3)
        again.load_state_dict(saved[0])
        model.load_state_dict(saved[1])
        seen = []
        events = pipe(
            epoch_stream((x, y), model, optimizer, nn.MSELoss(), scheduler=again),
            tap(lambda event: seen.append(event["step"]), every=every(5)),
        )

        assert [(event["step"], event["train_loss"]) for event in events] == expected
        assert [step for step, _ in expected] == [4, 5, 6]
        assert seen == [5]


class TestScheduled:
    def train(self, loss_fn, *, rows=64, x=None, y=None, model=None, lr=0.1, **how):
        data, linear, _ = line(rows, noise=0.5)
        data = data if x is None else (x, y)
        model = linear if model is None else model
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        heard = []
        r8 = R8Scheduler(
            rows, **{"batch_size": 16, "num_epochs": 4, "initial_lr": 0.1, "listeners": [heard.append], **how}
        )
        return r8, heard, optimizer, epoch_stream(data, model, optimizer, loss_fn, scheduler=r8)

    def test_one_event_an_epoch_to_the_end_of_the_budget(self):
        r8, _, _, stream = self.train(nn.MSELoss())

        events = list(stream)

        assert [event["step"] for event in events] == [1, 2, 3, 4]
        assert events[-1]["train_loss"] < events[0]["train_loss"]
        assert events[-1].elapsed[:2] == (4, 256)
        assert r8.phase == "finished"
        assert int(r8.table.usage_count.min()) == 4

    def test_events_reach_the_listeners(self):
        """What a journal and a dashboard hear: steps, epochs with the stream's own losses, and logged metrics."""
        r8, heard, _, stream = self.train(nn.MSELoss())
        events = collect(
            pipe(
                stream,
                augment(lambda event: {"val_loss": 1.0}),
                tap(lambda event: r8.log(val_loss=event["val_loss"])),
            )
        )

        epochs = [event for event in heard if type(event).__name__ == "EpochDone"]
        assert [type(event).__name__ for event in heard].count("StepDone") == 16
        assert [type(event).__name__ for event in heard].count("MetricsLogged") == 4
        assert [event.loss for event in epochs] == pytest.approx([event["train_loss"] for event in events], rel=1e-6)

    def test_stops_within_an_epoch_where_the_budget_does(self):
        _, _, _, stream = self.train(nn.MSELoss(), num_epochs=2.5)

        assert [(e["step"], e.elapsed.samples) for e in stream] == [(1, 64), (2, 128), (3, 160)]

    def test_asks_for_no_batch_it_does_not_train(self):
        r8, _, _, stream = self.train(nn.MSELoss())

        list(take(2)(stream))

        assert r8.global_step == 8

    @pytest.mark.parametrize(
        "loss_fn",
        [
            nn.MSELoss(),
            nn.MSELoss(reduction="sum"),
            nn.functional.mse_loss,
            lambda prediction, label: ((prediction - label) ** 2)[:, 0],
        ],
        ids=["module", "sum", "function", "vector"],
    )
    def test_reports_exact_losses_of_samples(self, loss_fn):
        """The table holds what each sample's own loss was, not what its batch's was."""
        r8, _, _, stream = self.train(loss_fn, lr=0.0)
        r8.schedule = lambda progress: 0.0
        list(stream)

        assert r8.table.source == "exact"
        assert len(np.unique(r8.table.loss)) > 32

    def test_exact_losses_are_those_of_the_right_samples(self):
        data, model, optimizer = line(64, noise=0.5)
        r8 = R8Scheduler(64, batch_size=16, num_epochs=1, scheduler_mode=lambda progress: 0.0)
        list(epoch_stream(data, model, optimizer, nn.MSELoss(), scheduler=r8))

        expected = ((model(data[0]) - data[1]) ** 2)[:, 0].detach().numpy()
        assert r8.table.loss == pytest.approx(expected, rel=1e-5)

    def test_class_weights_are_left_out_of_the_table_and_kept_in_training(self):
        """The table learns the raw losses; the model trains on the weighted ones."""
        x, y = torch.randn(64, 2), torch.randint(0, 2, (64,))
        model = nn.Linear(2, 2)
        weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 50.0]))
        r8, _, _, stream = self.train(
            weighted, x=x, y=y, model=model, num_epochs=1, scheduler_mode=lambda progress: 0.0
        )
        list(stream)

        raw = nn.CrossEntropyLoss(reduction="none")(model(x), y).detach().numpy()
        assert r8.table.loss == pytest.approx(raw, rel=1e-5)
        assert weighted.weight is not None
        assert weighted.reduction == "mean"

    def test_a_loss_function_that_only_knows_means(self):
        r8, _, _, stream = self.train(lambda prediction, label: ((prediction - label) ** 2).mean())
        list(stream)

        assert r8.table.source == "batch means of 16"

    def test_the_rate_is_the_tickets_and_groups_keep_their_ratio(self):
        (x, y), model, _ = line(64)
        optimizer = torch.optim.SGD([{"params": [model.weight], "lr": 0.5}, {"params": [model.bias], "lr": 0.05}])
        drawn, used = [], []
        optimizer.register_step_pre_hook(lambda *_: used.append([group["lr"] for group in optimizer.param_groups]))
        r8 = R8Scheduler(64, batch_size=16, num_epochs=2, listeners=[lambda e: drawn.append(getattr(e, "lr", None))])
        list(epoch_stream((x, y), model, optimizer, nn.MSELoss(), scheduler=r8))

        rates = [rate for rate in drawn if rate is not None]
        assert used[0] == pytest.approx([rates[0], rates[0] / 10])
        assert len(used) == 8
        assert used[-1][0] == pytest.approx(rates[-1])

    def test_a_refused_batch_is_skipped(self):
        """The update of a batch whose loss is not finite is not made, and its loss is not in the mean."""
        x, y = torch.ones(64, 1), torch.ones(64, 1)
        x[7] = math.nan
        model = nn.Linear(1, 1)
        _, heard, optimizer, stream = self.train(nn.MSELoss(), x=x, y=y, model=model, num_epochs=2)
        steps = []
        optimizer.register_step_post_hook(lambda *_: steps.append(1))
        with pytest.warns(RuntimeWarning, match="nothing to restore"):
            events = list(stream)

        refused = [event for event in heard if type(event).__name__ == "BatchRefused"]
        assert [event.samples for event in refused] == [(7,)] * len(refused)
        assert len(steps) == 8 - len(refused)
        assert len(refused) >= 1
        assert all(bool(p.isfinite().all()) for p in model.parameters())
        assert all(math.isfinite(event["train_loss"]) for event in events)

    def test_a_run_that_only_gets_nan_diverges_as_the_scheduler_says(self):
        _, _, _, stream = self.train(lambda p, y: p.mean() * math.nan, num_epochs=200)

        with pytest.warns(RuntimeWarning), pytest.raises(TrainingDiverged):
            list(stream)

    def test_a_restored_model_is_not_stepped_on(self):
        """Where a search for the rate ends, the model is put back and the last gradient is not applied to it."""
        data, model, _ = line(64)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        first = {name: value.clone() for name, value in model.state_dict().items()}
        r8 = R8Scheduler(
            64,
            batch_size=16,
            num_epochs=3,
            auto_find_lr=True,
            state_callback=model.state_dict,
            load_callback=model.load_state_dict,
            listeners=[lambda e: at_the_end.append(model.weight.clone()) if type(e).__name__ == "LrFound" else None],
        )
        at_the_end = []
        events = list(epoch_stream(data, model, optimizer, nn.MSELoss(), scheduler=r8))

        assert [event["step"] for event in events] == [1, 2, 3]
        assert torch.equal(at_the_end[0], first["weight"])
        assert r8.global_step == 12

    def test_closure_optimisers(self):
        data, model, _ = line(64)
        optimizer = torch.optim.LBFGS(model.parameters())
        r8 = R8Scheduler(64, batch_size=64, num_epochs=3, initial_lr=1.0, scheduler_mode="constant")

        [*_, last] = epoch_stream(data, model, optimizer, nn.MSELoss(), scheduler=r8)

        assert last["train_loss"] < 1e-6

    def test_policies_that_weight(self):
        """Weights multiply the losses that are trained on, and not those that are reported."""

        class Zero(Policy):
            name = "zero"
            selects = True

            def select(self, chunk, context, rng):
                return np.ones(len(chunk.indices), bool), np.zeros(len(chunk.indices), np.float32)

        data, model, optimizer = line(64, noise=1.0)
        r8 = R8Scheduler(64, batch_size=16, num_epochs=3, policy=Zero())
        weights = [
            event["model"].weight.item() for event in epoch_stream(data, model, optimizer, nn.MSELoss(), scheduler=r8)
        ]

        assert weights[1] == weights[2]
        assert r8.table.source == "exact"
        assert float(r8.table.loss.min()) > 0

    def test_the_time_budget_may_run_out_anywhere(self):
        """Also between the question and the draw: the stream ends, without an error."""
        for limit in range(20, 60):
            now = [0.0]

            def clock(now=now):
                now[0] += 1.0
                return now[0]

            data, model, optimizer = line(64)
            r8 = R8Scheduler(64, batch_size=16, train_duration_seconds=limit, clock=clock)
            events = list(epoch_stream(data, model, optimizer, nn.MSELoss(), scheduler=r8))

            assert r8.progress == 1
            assert events

    def test_an_error_of_a_callback_is_not_taken_for_the_end(self, tmp_path):
        def save(path):
            raise RuntimeError("no space for the model")

        data, model, optimizer = line(64)
        r8 = R8Scheduler(64, batch_size=16, num_epochs=1, save_callback=save, checkpoint_dir=tmp_path)

        with pytest.raises(RuntimeError, match="no space for the model"):
            list(epoch_stream(data, model, optimizer, nn.MSELoss(), scheduler=r8))

    def test_the_last_checkpoint_is_saved(self, tmp_path):
        data, model, optimizer = line(64)
        r8 = R8Scheduler(64, batch_size=16, num_epochs=2, checkpoint_dir=tmp_path)
        list(epoch_stream(data, model, optimizer, nn.MSELoss(), scheduler=r8))

        resumed = R8Scheduler(64, batch_size=16, num_epochs=2, checkpoint_dir=tmp_path)
        resumed.load_checkpoint()
        assert resumed.global_step == 8

    def test_checks_at_the_call(self):
        data, model, optimizer = line(64)
        call = lambda r8, **how: epoch_stream(data, model, optimizer, nn.MSELoss(), scheduler=r8, **how)  # noqa: E731
        r8 = R8Scheduler(64, batch_size=16, num_epochs=1)
        with pytest.raises(ValueError, match=r"data must have the scheduler's 60 samples, got 64"):
            call(R8Scheduler(60, batch_size=16, num_epochs=1))
        with pytest.raises(ValueError, match=r"batch_size must be the scheduler's 16 or left out, got 32"):
            call(r8, batch_size=32)
        with pytest.raises(
            ValueError, match=r"shuffle and generator must be left out where a scheduler draws, got False"
        ):
            call(r8, shuffle=False)
        with pytest.raises(ValueError, match=r"shuffle and generator must be left out"):
            call(r8, generator=torch.Generator())
        with pytest.raises(
            ValueError, match=r"loss_fn must give one loss for each of the 16 samples, got shape \(3,\)"
        ):
            list(epoch_stream(data, model, optimizer, lambda p, y: p[:3, 0], scheduler=r8))

        assert call(r8, batch_size=16)


class TestStepStream:
    def test_one_event_a_step(self):
        r8 = R8Scheduler(40, batch_size=16, num_epochs=2, initial_lr=0.5)
        seen = []
        events = list(step_stream(r8, lambda indices, lr: seen.append((len(indices), lr)) or 2.0))

        assert [event["step"] for event in events] == [1, 2, 3, 4, 5, 6]
        assert [event["epoch"] for event in events] == [0, 0, 0, 1, 1, 1]
        assert [event["samples"] for event in events] == [16, 32, 40, 56, 72, 80]
        assert [(event["batch_size"], event["lr"]) for event in events] == seen
        assert {event["loss"] for event in events} == {2.0}
        assert not any(event["refused"] for event in events)

    def test_stages_work_on_it(self, tmp_path):
        """ema, early_stop, tap and collect_jsonl, with a framework or without."""
        r8 = R8Scheduler(40, batch_size=10, num_epochs=20)
        values = iter([3.0, 2.0, 1.0] + [1.5] * 100)

        collect_jsonl(
            pipe(step_stream(r8, lambda i, lr: next(values)), ema("loss", decay=0.5), early_stop("loss", patience=4)),
            tmp_path / "steps.jsonl",
        )

        assert len((tmp_path / "steps.jsonl").read_text().splitlines()) == r8.global_step == 7

    def test_losses_of_samples(self):
        r8 = R8Scheduler(40, batch_size=10, num_epochs=2)
        events = list(step_stream(r8, lambda indices, lr: torch.from_numpy(indices / 1.0)))

        assert r8.table.loss == pytest.approx(np.arange(40))
        assert sum(event["loss"] for event in events) == pytest.approx(2 * 4 * 19.5)

    def test_refused_steps(self):
        r8 = R8Scheduler(40, batch_size=10, num_epochs=2)
        with pytest.warns(RuntimeWarning):
            events = list(step_stream(r8, lambda indices, lr: math.nan if 7 in indices else 1.0))

        assert sum(event["refused"] for event in events) >= 1
        assert all(math.isnan(event["loss"]) == event["refused"] for event in events)

    def test_a_failed_step_leaves_its_batch_to_be_drawn_again(self):
        r8 = R8Scheduler(40, batch_size=10, num_epochs=1, seed=1)

        def fail(indices, lr):
            raise OSError("device lost")

        with pytest.raises(OSError, match="device lost"):
            next(step_stream(r8, fail))
        again = R8Scheduler(40, batch_size=10, num_epochs=1, seed=1)
        again.load_state_dict(r8.state_dict())
        drawn = []
        list(step_stream(again, lambda indices, lr: drawn.extend(indices) or 1.0))

        assert sorted(drawn) == list(range(40))

    def test_triggers_know_the_steps_of_a_resumed_run(self):
        """The grid is that of the whole run, and no line is taken again."""
        r8, seen = R8Scheduler(100, batch_size=10, num_epochs=3), []
        list(take(12)(step_stream(r8, lambda i, lr: 1.0)))

        list(
            pipe(
                step_stream(r8, lambda i, lr: 1.0),
                tap(lambda event: seen.append(event["step"]), every=every(10)),
            )
        )

        assert seen == [20, 30]

    def test_a_search_makes_no_events(self):
        state = {"w": 0.0}
        r8 = R8Scheduler(
            40,
            batch_size=10,
            num_epochs=2,
            auto_find_lr=True,
            state_callback=lambda: state,
            load_callback=lambda s: None,
        )
        calls = []
        events = list(step_stream(r8, lambda indices, lr: calls.append(lr) or 1.0))

        assert len(events) == 8 < len(calls)

    def test_checks_at_the_call(self):
        r8 = R8Scheduler(40, batch_size=10, num_epochs=1)
        with pytest.raises(TypeError, match=r"train_step must be callable, got None"):
            step_stream(r8, None)
        with pytest.raises(TypeError, match=r"r8 must be an R8Scheduler, got 5"):
            step_stream(5, print)


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
