"""epoch_stream, its batches and its validation: what a loop by hand would train."""

from __future__ import annotations

import math
import time

import pytest

from learnit_r8 import R8Scheduler
from learnit_r8.streams import (
    Event,
    augment,
    collect,
    epoch_stream,
    iter_batches,
    pipe,
    step_stream,
    take,
    tap,
    validation_loss,
)
from learnit_r8.triggers import at, every
from tests.stream_common import line

torch = pytest.importorskip("torch")
nn = torch.nn
pytestmark = pytest.mark.usefixtures("one_thread")


class TestIterBatches:
    def test_in_order_and_short_at_the_end(self):
        x, y = torch.arange(12).view(6, 2), torch.arange(6)
        batches = list(iter_batches(x, y, batch_size=4, shuffle=False))

        assert [[len(part) for part in batch] for batch in batches] == [[4, 4], [2, 2]]
        assert torch.equal(torch.cat([batch[0] for batch in batches]), x)

    @pytest.mark.parametrize("chunk_bytes", [1, 100, 10**6])
    def test_shuffled_rows_stay_together(self, monkeypatch, chunk_bytes):
        """Every row once, with its label, in the order the generator draws; however many are gathered at once."""
        monkeypatch.setattr("learnit_r8.streams.sources.CHUNK_BYTES", chunk_bytes)
        x, y = torch.arange(103)[:, None], torch.arange(103) * 10
        batches = list(iter_batches(x, y, batch_size=8, generator=torch.Generator().manual_seed(5)))

        order = torch.randperm(103, generator=torch.Generator().manual_seed(5))
        assert torch.equal(torch.cat([batch[0] for batch in batches])[:, 0], order)
        assert torch.equal(torch.cat([batch[1] for batch in batches]), order * 10)
        assert [len(batch[0]) for batch in batches] == [8] * 12 + [7]


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
        assert second.elapsed[:5] == (2, 20, 4.5, 1, 10)

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

    def test_losses_are_read_in_blocks(self, monkeypatch):
        """However many batches there are between two readings, the mean is over all of them."""
        means = []
        for read_every in (1, 3, 1000):
            monkeypatch.setattr("learnit_r8.streams.sources.READ_EVERY", read_every)
            torch.manual_seed(0)
            data, model, optimizer = line(50, noise=1.0)
            means.append(next(epoch_stream(data, model, optimizer, nn.MSELoss(), batch_size=4))["train_loss"])

        assert means == pytest.approx([means[0]] * 3, rel=1e-12)

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

    def test_amp_validation_sees_the_weights_of_now(self):
        model, compute = nn.Linear(1, 1), validation_loss((torch.ones(4, 1), torch.ones(4, 1)), nn.L1Loss())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(torch.ones(4, 1))
            nn.init.constant_(model.weight, 8.0)
            nn.init.constant_(model.bias, 0.0)

            assert compute({"model": model})["val_loss"] == 7.0

    def test_device_moves_where_there_is_only_one_device(self):
        """Batches go where the parameters are; where everything is there already, they are passed on as they are."""
        from learnit_r8.streams.sources import device_of, moved

        model, batches = nn.Linear(1, 1, device="meta"), [[torch.ones(2, 1), torch.ones(2)]]

        assert [[t.device.type for t in batch] for batch in moved(batches, device_of(model), batches[0])] == [
            ["meta"] * 2
        ]
        assert moved(batches, torch.device("cpu"), batches[0]) is batches
        assert moved(batches, device_of(nn.Identity()), batches[0]) is batches

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
