import signal

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from wild_scripts import SCRIPTS, Autoencoder, Closures, Epochs, InPlace, Rewards, clouds, seed_all

from learnit_r8.torch import attach
from tests.torch_common import Killed

from .test_no_harm import differences

KINDS = [kind for kind in SCRIPTS if kind not in (Autoencoder, Closures, Rewards)]


def trained(kind, folder, *, kill_at=None, seed=0, **settings):
    """Train with checkpoints every six steps; ``kill_at`` ends the process in that step."""

    def hook(step, script):
        if script.r8.scheduler.global_step == kill_at:
            raise Killed

    seed_all(seed)
    script = kind(hook=hook, checkpoint_dir=folder, checkpoint_every=6, resume="auto", backup_dir=False, **settings)
    script.begun = script.r8.scheduler.global_step
    return script.run()


@pytest.mark.program
@pytest.mark.parametrize("at", [8, 23])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_killed_script_goes_on_with_the_same_next_batch(kind, at, tmp_path):
    """Weights, optimizer, generators and the order of the data are those of the run that was not killed."""
    whole = trained(kind, tmp_path / "whole")
    with pytest.raises(Killed):
        trained(kind, tmp_path / "killed", kill_at=at)
    resumed = trained(kind, tmp_path / "killed", seed=5)

    assert resumed.begun == at // 6 * 6
    one, two = whole.state(), resumed.state()
    for state in (one, two):
        state["order"] = state["order"][-20:] if len(two["order"]) >= 20 else state["order"][-len(two["order"]) :]
        state["losses"] = state["losses"][-len(two["losses"]) :]
    assert not differences(one, two)
    if resumed.also and "schedule" in resumed.also:
        assert resumed.schedule.state_dict() == whole.schedule.state_dict()


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("at", [14, 23])
def test_a_sampler_that_shuffles_in_place_goes_on_as_it_was(at, tmp_path):
    """Killed between two epochs or within one: its lists are what they were, so the same samples come in that order."""
    whole = trained(InPlace, tmp_path / "whole")
    with pytest.raises(Killed):
        trained(InPlace, tmp_path / "killed", kill_at=at)
    resumed = trained(InPlace, tmp_path / "killed", seed=5)

    assert resumed.begun == at // 6 * 6
    assert resumed.order == whole.order[resumed.begun :]
    assert resumed.bins.bins == whole.bins.bins


@pytest.mark.program
@pytest.mark.filterwarnings("ignore:.set_vital. is deprecated")
@pytest.mark.parametrize("workers", [None, 0, 1])
def test_a_stream_of_hugging_face_begins_later_epochs_at_their_start(workers, tmp_path):
    """Though it was brought to its place by its own state, within a `StatefulDataLoader` or without."""
    datasets = pytest.importorskip("datasets")
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    class Rows(Epochs):
        def build(self):
            super().build()
            x, y = clouds()
            rows = datasets.Dataset.from_dict({"x": x.tolist(), "y": y.tolist()}).to_iterable_dataset(num_shards=4)
            rows = rows.with_format("torch").batch(12)
            self.loader = rows
            if workers is not None:
                self.loader = stateful.StatefulDataLoader(rows, batch_size=None, num_workers=workers)

        @property
        def batches(self):
            for batch in super().batches:
                yield batch["x"], batch["y"]

    whole = trained(Rows, tmp_path / "whole")
    with pytest.raises(Killed):
        trained(Rows, tmp_path / "killed", kill_at=14)
    resumed = trained(Rows, tmp_path / "killed", seed=5)

    assert resumed.begun == 12
    assert len(resumed.losses) == 4 * 8 - 12
    assert not differences(whole.state()["parts"], resumed.state()["parts"])


class Climbing(torch.optim.Optimizer):
    """Takes its steps by an optimizer that it holds, whose groups it shares and whose state its own lacks, as SAM."""

    def __init__(self, parameters, **settings):
        super().__init__(parameters, settings)
        self.base = torch.optim.SGD(self.param_groups, **settings)
        self.param_groups = self.base.param_groups

    def step(self):
        raise NotImplementedError

    @torch.no_grad()
    def step_at_the_top(self, closure):
        """Step with the gradient at the highest point nearby."""
        for group in self.param_groups:
            for each in group["params"]:
                self.state[each]["climbed"] = 0.05 * each.grad.sign()
                each.add_(self.state[each]["climbed"])
        with torch.enable_grad():
            closure()
        for group in self.param_groups:
            for each in group["params"]:
                each.sub_(self.state[each]["climbed"])
        self.base.step()


def climb(folder, *, kill_at=None, damage_at=None):
    """Train with momentum and a rate that falls at each step; ``kill_at`` ends the process in that step."""
    torch.manual_seed(0)
    x = torch.randn(80, 4)
    loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8, shuffle=True)
    model = torch.nn.Linear(4, 1)
    optimizer = Climbing(model.parameters(), lr=0.05, momentum=0.9)
    adapter = attach(
        model, optimizer, loader, num_epochs=3, handle_signals=False, checkpoint_dir=folder, resume="auto",
        checkpoint_every=4, backup_every=2,
    )  # fmt: skip
    r8, rates = adapter.scheduler, []
    optimizer.base.register_step_pre_hook(lambda held, *_: rates.append(held.param_groups[0]["lr"]))

    def loss_of(inputs, targets):
        optimizer.zero_grad()
        loss = (model(inputs) - targets).square().mean()
        loss.backward()
        return loss

    try:
        for _ in adapter.epochs():
            for batch in adapter.batches():
                if r8.global_step == kill_at:
                    raise Killed
                if r8.global_step == damage_at:
                    damage_at = None
                    model.weight.data.fill_(float("nan"))
                for group in optimizer.param_groups:
                    group["lr"] = 0.05 * 0.9**r8.global_step
                if adapter.report(loss_of(*batch)):
                    optimizer.step_at_the_top(lambda batch=batch: loss_of(*batch))
    except Killed:
        return None
    r8.close()
    return model.weight.detach().clone(), optimizer, rates


@pytest.mark.parametrize("at", [10, 17])
def test_an_optimizer_within_another_is_resumed(at, tmp_path):
    """Its momentum is in the checkpoints, and the parameter groups stay those that both share, with their rates."""
    never, _, rates = climb(tmp_path / "never")
    climb(tmp_path / "killed", kill_at=at)
    again, optimizer, rest = climb(tmp_path / "killed")

    assert optimizer.base.param_groups is optimizer.param_groups
    assert rest == rates[-len(rest) :]
    assert torch.equal(again, never)


def test_an_optimizer_within_another_is_healed(tmp_path):
    """It goes back with the weights: with the momentum of that time, and with the rates of now in both."""
    _, optimizer, rates = climb(tmp_path, damage_at=15)

    assert optimizer.base.param_groups is optimizer.param_groups
    assert rates[-1] == 0.05 * 0.9 ** len(rates)
    assert all(bool(each["momentum_buffer"].isfinite().all()) for each in optimizer.base.state.values())


@pytest.mark.usefixtures("python_handles_ctrl_c")
@pytest.mark.parametrize("workers", [{}, {"num_workers": 1, "persistent_workers": True}])
def test_a_loop_that_ctrl_c_has_ended_goes_on_within_its_epoch(workers):
    """Run again with the same adapter, it takes the rest of a shuffled loader; the table has learned all of it."""
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    loader = DataLoader(TensorDataset(torch.arange(24.0)[:, None]), batch_size=4, shuffle=True, **workers)
    adapter, seen = attach(model, optimizer, loader, num_epochs=3), {0: [], 1: [], 2: []}

    def loop(stop_at=None):
        for epoch in adapter.epochs():
            for (x,) in adapter.batches():
                seen[epoch] += x.flatten().tolist()
                adapter.step(model(x).square().mean())
                if adapter.scheduler.global_step == stop_at:
                    signal.raise_signal(signal.SIGINT)

    for stop_at in (2, 9):
        with pytest.raises(KeyboardInterrupt):
            loop(stop_at)
    loop()
    adapter.close()

    assert [sorted(each) for each in seen.values()] == 3 * [list(range(24))]
    assert set(adapter.table.usage_count.tolist()) == {3}


def test_what_is_drawn_before_the_batches_of_an_epoch_is_drawn_again(tmp_path):
    """Negatives, of numpy's generator: that code runs anew in the epoch that a kill has cut, as it ran there before."""

    def recommend(folder, *, kill_at=None, seed=0):
        seed_all(seed)
        users, items = torch.arange(48) % 6, torch.arange(48) % 9
        negatives = torch.zeros(48, dtype=torch.long)
        model = torch.nn.ModuleList([torch.nn.Embedding(6, 4), torch.nn.Embedding(9, 4)])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        loader = DataLoader(TensorDataset(users, items, negatives), batch_size=8, shuffle=True)
        adapter = attach(
            model, optimizer, loader, num_epochs=4, checkpoint_dir=folder, checkpoint_every=4, resume="auto",
            handle_signals=False,
        )  # fmt: skip
        drawn = []
        for _ in adapter.epochs():
            negatives[:] = torch.from_numpy(np.random.randint(9, size=48))
            drawn.append(negatives.tolist())
            for user, item, negative in adapter.batches():
                if adapter.scheduler.global_step == kill_at:
                    raise Killed
                rows = model[0](user)
                loss = torch.nn.functional.softplus((rows * (model[1](negative) - model[1](item))).sum(1)).mean()
                optimizer.zero_grad()
                if adapter.report(loss):
                    loss.backward()
                    optimizer.step()
        adapter.close()
        return drawn, model[0].weight.detach().clone()

    whole_drawn, whole = recommend(tmp_path / "whole")
    for at in (8, 17):
        with pytest.raises(Killed):
            recommend(tmp_path / str(at), kill_at=at)
        drawn, weights = recommend(tmp_path / str(at), seed=5)

        assert drawn == whole_drawn[-len(drawn) :]
        assert torch.equal(weights, whole)
