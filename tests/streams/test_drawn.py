"""Streams whose batches R8Scheduler draws: an epoch an event, or a step an event."""

from __future__ import annotations

import math

import numpy as np
import pytest

from learnit_r8 import Policy, R8Scheduler
from learnit_r8.recovery.policy import TrainingDiverged
from learnit_r8.streams import (
    augment,
    collect,
    collect_jsonl,
    early_stop,
    ema,
    epoch_stream,
    pipe,
    step_stream,
    take,
    tap,
)
from learnit_r8.triggers import every
from tests.stream_common import line

torch = pytest.importorskip("torch")
nn = torch.nn
pytestmark = pytest.mark.usefixtures("one_thread")


class TestScheduled:
    def train(self, loss_fn, *, rows=64, x=None, y=None, model=None, lr=0.1, **how):
        data, linear, _ = line(rows, noise=0.5)
        data = data if x is None else (x, y)
        model = linear if model is None else model
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        heard = []
        r8 = R8Scheduler(
            rows,
            **{
                "batch_size": 16, "num_epochs": 4, "initial_lr": 0.1, "guard": "finite", "listeners": [heard.append],
                **how,
            },
        )  # fmt: skip
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
        data, model, optimizer = line(64, noise=0.5)
        r8 = R8Scheduler(64, batch_size=16, num_epochs=1, guard="finite", scheduler_mode=lambda progress: 0.0)
        list(epoch_stream(data, model, optimizer, loss_fn, scheduler=r8))

        expected = ((model(data[0]) - data[1]) ** 2)[:, 0].detach().numpy()
        assert r8.table.source == "exact"
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

    @pytest.mark.parametrize("is_module", [False, True])
    def test_a_loss_function_that_only_knows_means(self, is_module):
        """A module's ``reduction`` may mean nothing."""

        class Mine(nn.Module):
            reduction = "mean"

            def forward(self, prediction, label):
                return ((prediction - label) ** 2).mean()

        r8, _, _, stream = self.train(Mine() if is_module else lambda p, y: ((p - y) ** 2).mean())
        list(stream)

        assert r8.table.source == "batch means of 16"

    def test_the_rate_is_the_tickets_and_groups_keep_their_ratio(self):
        (x, y), model, _ = line(64)
        optimizer = torch.optim.SGD([{"params": [model.weight], "lr": 0.5}, {"params": [model.bias], "lr": 0.05}])
        drawn, used = [], []
        optimizer.register_step_pre_hook(lambda *_: used.append([group["lr"] for group in optimizer.param_groups]))
        hear = lambda e: drawn.append(getattr(e, "lr", None))  # noqa: E731
        r8 = R8Scheduler(64, batch_size=16, num_epochs=2, guard="finite", listeners=[hear])
        list(epoch_stream((x, y), model, optimizer, nn.MSELoss(), scheduler=r8))

        rates = [rate for rate in drawn if rate is not None]
        assert used[0] == pytest.approx([rates[0], rates[0] / 10])
        assert len(used) == 8
        assert used[-1][0] == pytest.approx(rates[-1])

    def test_a_second_stream_keeps_the_ratio_of_the_first(self):
        """Also where the first one ended at a rate of zero."""
        data, model, _ = line(64)
        optimizer = torch.optim.SGD([{"params": [model.weight], "lr": 0.5}, {"params": [model.bias], "lr": 0.05}])
        for _ in range(2):
            r8 = R8Scheduler(64, batch_size=16, num_epochs=1, scheduler_mode=lambda progress: 0.4 * (progress < 0.7))
            list(epoch_stream(data, model, optimizer, nn.MSELoss(), scheduler=r8))
            assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.0]
        r8 = R8Scheduler(64, batch_size=16, num_epochs=1, scheduler_mode=lambda progress: 0.4)
        list(epoch_stream(data, model, optimizer, nn.MSELoss(), scheduler=r8))

        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.4, 0.04])

    @pytest.mark.filterwarnings("ignore::RuntimeWarning")
    def test_a_run_that_only_gets_nan_diverges_as_the_scheduler_says(self):
        _, _, _, stream = self.train(lambda p, y: p.mean() * math.nan, num_epochs=200)

        with pytest.raises(TrainingDiverged):
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
            listeners=[lambda event: found.append(event) if type(event).__name__ == "LrFound" else None],
        )
        found, after = [], []
        model.register_forward_pre_hook(lambda *_: after.append(model.weight.clone()) if found else None)
        events = list(epoch_stream(data, model, optimizer, nn.MSELoss(), scheduler=r8))

        assert [event["step"] for event in events] == [1, 2, 3]
        assert torch.equal(after[0], first["weight"])
        assert r8.global_step == 12

    def test_a_step_that_raises_is_said(self):
        """A step whose loss was reported counts although the optimizer raised, and a warning says so."""
        r8, _, optimizer, stream = self.train(nn.MSELoss())
        step, calls = optimizer.step, []

        def fail(*arguments):
            calls.append(1)
            if len(calls) == 3:
                raise MemoryError("full")
            return step(*arguments)

        optimizer.step = fail
        with pytest.warns(RuntimeWarning, match="step 2 counts as done"), pytest.raises(MemoryError):
            next(stream)

        assert r8.global_step == 3

    def test_an_interrupted_epoch_goes_on_in_a_new_stream(self):
        data, model, optimizer = line(64)
        r8 = R8Scheduler(64, batch_size=16, num_epochs=2, guard="finite")
        calls = iter(range(100))

        def loss_fn(prediction, label):
            if next(calls) == 5:
                raise KeyboardInterrupt
            return ((prediction - label) ** 2)[:, 0]

        steps = []
        with pytest.raises(KeyboardInterrupt):
            steps.extend(event["step"] for event in epoch_stream(data, model, optimizer, loss_fn, scheduler=r8))
        rest = list(epoch_stream(data, model, optimizer, loss_fn, scheduler=r8))

        assert [(event["step"], event.elapsed.samples) for event in rest] == [(2, 48)]
        assert r8.table.usage_count.tolist() == [2] * 64

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

    def test_weights_leave_the_loss_function_its_own_reduction(self):
        """Weights of 1 change nothing: class weights, labels that do not count, and sums stay as they are."""

        class Ones(Policy):
            name = "ones"
            selects = True

            def __init__(self, factor):
                self.factor = factor

            def select(self, chunk, context, rng):
                count = len(chunk.indices)
                return np.ones(count, bool), self.factor and np.full(count, self.factor, np.float32)

        x, y = torch.randn(64, 2), torch.randint(0, 2, (64,))
        y[::5] = -100
        for settings in ({"weight": torch.tensor([1.0, 9.0])}, {}, {"reduction": "sum"}, {"reduction": "none"}):
            trained = []
            for factor in (None, 1.0):
                torch.manual_seed(0)
                model = nn.Linear(2, 2)
                optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
                r8 = R8Scheduler(64, batch_size=16, num_epochs=3, policy=Ones(factor), initial_lr=0.01)
                list(epoch_stream((x, y), model, optimizer, nn.CrossEntropyLoss(**settings), scheduler=r8))
                trained.append(model.weight.detach().numpy())

            assert trained[1] == pytest.approx(trained[0], rel=1e-4), settings

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

    def test_an_error_of_a_callback_while_the_time_runs_out_is_not_taken_for_the_end(self):
        """The same kind of error as the scheduler's own, at the same moment."""
        now = [0.0]

        def state():
            if now[0] > 0:
                now[0] = 100.0
                raise RuntimeError("device lost")
            return {}

        def loss_fn(prediction, label):
            now[0] += 1.0
            return ((prediction - label) ** 2).mean()

        data, model, optimizer = line(64)
        r8 = R8Scheduler(
            64,
            batch_size=16,
            train_duration_seconds=50,
            clock=lambda: now[0],
            state_callback=state,
            load_callback=print,
            backup_every=3,
            guard="finite",
        )

        with pytest.raises(RuntimeError, match="device lost"):
            list(epoch_stream(data, model, optimizer, loss_fn, scheduler=r8))


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

    @pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
    def test_an_interrupted_run_goes_on_in_a_new_stream(self, error):
        """Of the same scheduler, too: the batch that was not reported comes first, and no step is missing."""
        r8 = R8Scheduler(40, batch_size=10, num_epochs=2, seed=1)
        drawn = []

        def train_step(indices, lr):
            drawn.append(indices.copy())
            if len(drawn) == 3:
                raise error
            return indices / 1.0

        with pytest.raises(error):
            list(step_stream(r8, train_step))
        events = list(step_stream(r8, train_step))

        assert [event["step"] for event in events] == [3, 4, 5, 6, 7, 8]
        assert np.array_equal(drawn[2], drawn[3])
        assert r8.table.usage_count.tolist() == [2] * 40

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

    @pytest.mark.filterwarnings("ignore:auto_find_lr")
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
