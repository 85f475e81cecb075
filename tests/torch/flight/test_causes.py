"""What may be blamed: no sample for what other batches show, no weight for what an update did, nothing unseen."""

import copy
import functools
import math
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from learnit_r8 import Recovery, RunDir, TrainingDiverged, events
from learnit_r8.recovery.cause import Refusal
from learnit_r8.testing import record_events
from learnit_r8.torch import attach, load_incident
from learnit_r8.torch.flight.causes import Runs, join
from learnit_r8.torch.flight.state_faults import compare
from learnit_r8.torch.flight.watch import describe_place, run_watched
from tests.torch.flight.test_place import data, train
from tests.torch_common import learn

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
REFUSAL = Refusal(1, math.nan, 1.0, False, False, [], 0.1)


def test_a_hook_is_named_and_no_sample_blamed():
    """A hook of a parameter that makes Inf of any gradient."""

    def strike(step, task):
        if step == 13:
            task[0].first.weight.register_hook(lambda gradient: gradient / 0)

    told = train(data(), strike=strike)[0]
    assert (told.fault, told.where, told.samples, told.is_certain) == ("backward", "first.weight", (), True)
    assert "first in a hook of first.weight, in `div` at test_causes.py:" in told.text
    assert "it is so with the last good batch, too" in told.text


@pytest.mark.parametrize("has_good", [True, False])
def test_no_row_is_blamed_for_what_the_batch_as_a_whole_lacks(has_good):
    """The mean of the positives of a batch without any; each part of it, and each row, has none either."""
    model, batch, good = nn.Linear(1, 1), -torch.ones(8, 1), torch.ones(8, 1) if has_good else None

    def run(x):
        return model(x)[x > 0].mean()

    runs = Runs(REFUSAL, model, run, has_loss=True)
    whole = runs.watch(batch)
    assert whole.fault.op == "mean"
    assert runs.find_row(batch, whole, good) == ()
    # One that is to blame is found beside good ones.
    batch[5], batch[:5] = math.inf, 1.0
    assert runs.find_row(batch, runs.watch(batch), good) == (5,)
    assert runs.count - 3 <= 2 * (3 + 2)


def test_rows_are_joined_or_not_at_all():
    """Lists of names, too, but no array that has no rows; and none of another shape."""
    one, other = ({"x": torch.zeros(n, 2), "names": ["a"] * n, "scale": torch.ones(3)} for n in (1, 2))
    both = join(one, other)
    assert (both["x"].shape, both["names"], both["scale"].shape) == ((3, 2), ["a"] * 3, (3,))
    assert join(torch.zeros(1, 2), torch.zeros(3, 4)) is None
    assert join((torch.zeros(1), torch.zeros(1)), (torch.zeros(2),)) is None


class Carrying(nn.Module):
    """Reads a tensor that is neither a parameter nor a buffer."""

    def __init__(self, value):
        super().__init__()
        self.layer, self.carried = nn.Linear(1, 1), [torch.full((1, 1), value)]

    def forward(self, x):
        return torch.softmax(self.layer(x) + self.carried[0][:1], -1)


def test_what_comes_from_outside_is_no_operation_s_fault():
    """A NaN that a model carries from batch to batch is read; an infinity there is meant, as in a mask."""

    def fault(value):
        model = Carrying(value)
        return run_watched(model, lambda x: model(x).mean(), torch.ones(4, 1), backward=False)

    said = describe_place(fault(math.nan))
    assert said.startswith("NaN comes from outside of weights and batch: `Carrying` reads it at test_causes.py:")
    assert fault(-math.inf).fault.op == "_softmax"


@pytest.mark.parametrize(
    ("optimizer", "rate", "known"), [("Adam", 1.0, True), ("Adam", 0.001, False), ("SGD", 1.0, None)]
)
def test_a_weight_that_an_update_may_have_moved_is_not_called_damaged(optimizer, rate, known):
    """A temperature of its own: how far Adam can have moved it is known, and of other optimizers it is not."""
    model = nn.ParameterDict({"temperature": nn.Parameter(torch.tensor(1.0)), "rest": nn.Parameter(torch.ones(4))})
    trainer = getattr(torch.optim, optimizer)(model.parameters(), lr=rate)
    sum(each.sum() for each in model.values()).backward()
    trainer.step()
    backup = copy.deepcopy({"model": model.state_dict(), "optimizer": trainer.state_dict()})
    model["temperature"].data -= 0.9

    alone = compare(model, trainer, backup, 1).alone
    assert (alone.name, alone.is_within_reach) == ("temperature", known)


def test_a_row_of_weights_and_statistics_that_changed_alone_are_named():
    """With what was there in a backup the batch is good."""

    def strike(step, task):
        if step == 13:
            task[0].head.weight.data[2] *= 1e25

    told = train(data(), strike=strike)[0]
    assert (told.fault, told.where, told.is_certain) == ("weight", "head.weight", True)
    assert "8 of the 24 weights `head.weight` have moved by up to" in told.text

    model = nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8).eval(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
    )

    def spoil(step, task):
        # Before the next batch comes, or it would pass for a transient fault.
        if step == 12:
            task[1].register_step_post_hook(
                lambda *_: None if model[1].running_var[2] < 0 else model[1].running_var[2].fill_(-1.0)
            )

    told = train(data(), model=model, strike=spoil)[0]
    assert (told.fault, told.where, told.is_certain) == ("weight", "1.running_var", True)


@pytest.mark.parametrize(
    ("with_run", "tested"), [(True, "the batch is good"), (False, "what the model returns for the batch is finite")]
)
def test_no_batch_is_called_good_whose_loss_was_not_computed(with_run, tested):
    """Where only the model can run again, its outputs are what was tested."""

    def strike(step, task):
        if step == 13:
            task[0].head.weight.data[2] = 1e38 * task[0].head.weight.data[2].sign()
            task[0].first.weight.data *= 1e3

    told = train(data(), strike=strike, with_run=with_run)[0]

    assert re.search(rf"with (its value|the weights|those) of step \d+,? {tested}", told.text)


def test_a_batch_that_cannot_run_twice_is_said_and_named_in_the_record(tmp_path):
    """A stream of batches, each with an iterator that is used up: the run goes on, and the record leaves it out."""
    torch.manual_seed(0)
    model, heard = nn.Linear(2, 1), record_events()

    def stream():
        for number in range(24):
            yield {"x": torch.full((4, 2), math.nan if number == 13 else 1.0), "once": iter([1.0])}

    def run(batch):
        return (model(batch["x"]) * next(batch["once"])).square().mean()

    adapter = attach(
        model, torch.optim.Adam(model.parameters()), stream(), num_epochs=1, listeners=[heard], run_batch=run,
        run_dir=RunDir(tmp_path, record="batch"), backup_every=4,
    )  # fmt: skip
    with adapter:
        for batch in adapter.batches():
            adapter.step(run(batch))

    assert adapter.scheduler.global_step == 24
    [found] = heard.of(events.CauseFound)
    assert not found.is_certain
    incident = load_incident(tmp_path / "incidents" / "1")
    assert list(incident.record["left_out"]) == ["batch.batch.once"]
    assert incident.batch["x"].isnan().all()
    assert torch.isfinite(model.weight).all()


def train_in(kind, optimizer_of, *, num_steps, **settings):
    """Train a small network with weights of a type; the adapter, and what was told of causes."""
    torch.manual_seed(0)
    labels = torch.randint(0, 4, (256,))
    inputs = torch.randn(4, 8)[labels] + torch.randn(256, 8)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).to(kind)
    optimizer, told = optimizer_of(model.parameters()), record_events()
    loader = DataLoader(TensorDataset(inputs.to(kind), labels), batch_size=16)
    settings |= {"num_steps": num_steps, "listeners": [told], "handle_signals": False}
    try:
        with attach(model, optimizer, loader, **settings) as adapter:
            learn(adapter, lambda x, y: nn.functional.cross_entropy(model(x).float(), y))
    except TrainingDiverged as error:
        return model, str(error), told
    return model, "", told


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_an_eps_that_is_zero_in_the_type_of_the_weights_is_named(kind):
    """The run makes no progress, so it is given up, with the sentence and with finite weights."""
    model, error, told = train_in(torch.float16, kind, num_steps=400, recovery=Recovery(max_refused=60))

    assert "60 batches were refused or tested weights that never got 64 updates further" in error
    assert re.search(rf"eps 1e-08 is 0 in float16, the type that {kind.__name__} computes with for `\d.\w+`", error)
    assert {each.fault for each in told.of(events.CauseFound)} == {"optimizer"}
    assert all(bool(each.isfinite().all()) for each in model.parameters())


def test_the_eps_that_is_advised_trains():
    """With it, as with other types of weights, nothing is refused."""
    for kind, eps in ((torch.float16, 1.2e-4), (torch.bfloat16, 1e-8), (torch.float32, 1e-8)):
        _, error, told = train_in(kind, functools.partial(torch.optim.Adam, eps=eps), num_steps=60)

        assert not error
        assert not told.of(events.DamageFound, events.BatchRefused)


class Counting(Dataset):
    """Samples as arrays and numbers of numpy, one of which is not finite."""

    def __len__(self):
        return 32

    def __getitem__(self, index):
        return {"x": np.ones(2, np.float32), "scale": np.float32("nan" if index == 7 else 1.0)}


def test_a_sample_of_arrays_that_is_always_bad_is_not_called_random():
    """Whether a sample is bad each time it is drawn is seen in arrays and numbers of numpy, too."""
    torch.manual_seed(0)
    model, heard, data = nn.Linear(2, 1), record_events(), Counting()

    def run(batch):
        return (model(batch["x"]) * batch["scale"][:, None]).square().mean(1)

    adapter = attach(
        model, torch.optim.SGD(model.parameters(), lr=0.01), data, batch_size=4, num_epochs=2, listeners=[heard],
        run_batch=lambda batch: run(batch).mean(),
    )  # fmt: skip
    for _ in adapter.epochs():
        for batch in adapter.loader():
            adapter.step(adapter.loss(run(batch)))
    adapter.close()

    found = heard.of(events.CauseFound)
    assert {each.samples for each in found} == {(7,)}
    assert not any("random" in each.text for each in found)


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_a_graph_of_sparse_edges_is_no_obstacle(layout):
    """As in a network over a graph, whose edges are an input of the model in each step."""

    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x, edges):
            return edges @ self.layer(x)

    torch.manual_seed(0)
    model, heard, x = Graph(), record_events(), torch.randn(10, 4)
    edges, hurt = torch.eye(10).to_sparse(layout=layout), x.clone()
    hurt[2, 0] = math.nan
    with attach(model, torch.optim.SGD(model.parameters(), 0.1), None, num_steps=30, listeners=[heard]) as adapter:
        for step in adapter.steps():
            adapter.step(model(hurt if step == 20 else x, edges).square().mean())

    assert "NaN first in `layer` (forward), for row 2 of the batch" in heard.of(events.CauseFound)[0].text
