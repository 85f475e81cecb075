"""Where an incident began: the refused batch runs once more, and everything is put back to the bit."""

import copy
import gc
import math
import typing
import weakref

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, softplus
from torch.utils.data import DataLoader, TensorDataset

from learnit_r8 import events
from learnit_r8.recovery.cause import Refusal
from learnit_r8.sources.random_generators import hold_random_state
from learnit_r8.state.batch_rows import far_off, halve, not_finite, num_rows, some_rows
from learnit_r8.testing import record_events
from learnit_r8.torch import attach
from learnit_r8.torch.flight.causes import Runs
from learnit_r8.torch.flight.examiner import Examiner
from learnit_r8.torch.flight.hand import Hand, Held
from learnit_r8.torch.flight.watch import describe_place, run_watched
from learnit_r8.torch.readback import ALONE

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
BAD = 21


class Net(nn.Module):
    """BatchNorm, dropout, and a count that is no buffer."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2)
        self.head = nn.Linear(8, 3)
        self.num_calls = 0
        self.last = None

    def forward(self, x):
        self.num_calls += 1
        hidden = self.drop(self.norm(self.first(x)))
        self.last = hidden.detach()
        return self.head(hidden)


def data(count=64):
    torch.manual_seed(0)
    return TensorDataset(torch.randn(count, 4), torch.randint(3, (count,)))


def loss_of(model):
    return lambda batch: cross_entropy(model(batch[0]), batch[1])


def train(
    dataset, *, steps=24, model=None, with_run=True, own_loader=False, strike=lambda step, task: None, **settings
):
    """Train on batches of 8; returns what was told of causes from the moment on at which it is known that there is one.

    Before it some of the first losses are refused as they are high, of which nothing can be told.
    """
    torch.manual_seed(1)
    model = Net() if model is None else model
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    heard = record_events()
    if with_run:
        settings["run_batch"] = loss_of(model)
    if own_loader:
        dataset = DataLoader(dataset, batch_size=8)
        dataset = list(dataset) if own_loader == "list" else dataset
    else:
        settings["batch_size"] = 8
    adapter = attach(model, optimizer, dataset, num_steps=steps, backup_every=4, listeners=[heard], **settings)
    with adapter:
        for _ in adapter.epochs():
            for x, y in adapter.batches():
                strike(adapter.scheduler.global_step, (model, optimizer))
                loss = cross_entropy(model(x), y, reduction="mean" if own_loader else "none")
                adapter.step(loss if own_loader else adapter.loss(loss))
    return [each for each in heard.of(events.CauseFound) if each.fault != "unknown"] or heard.of(events.CauseFound)


def test_the_sample_and_the_module_are_named():
    """NaN in an input: which sample, where in it, and the first module that shows it; a second time, too."""
    dataset = data()
    dataset.tensors[0][BAD, 2] = float("nan")
    told = train(dataset)

    assert len(told) >= 2
    for each in told[:2]:
        assert (each.fault, each.samples, each.is_certain) == ("input", (BAD,), True)
        assert "NaN first in `first` (forward), for sample 21, whose input holds NaN at [2]" in each.text


class Bank(Net):
    """What it has made of a batch goes into that of the next ones, as negatives of a memory bank do."""

    def __init__(self):
        super().__init__()
        self.register_buffer("bank", torch.zeros(8), persistent=False)

    def forward(self, x):
        made = super().forward(x) + self.bank.mean()
        self.bank.copy_(self.first(x).detach().mean(0))
        return made


def test_what_a_batch_has_left_in_a_memory_bank_is_not_met_by_the_next_run():
    """Else every further run would be bad as well, also that of the batch without the row to blame."""
    dataset = data()
    dataset.tensors[0][BAD, 2] = float("nan")
    told = train(dataset, model=Bank(), own_loader="list", steps=8)[0]

    assert (told.fault, told.is_certain) == ("input", True)
    assert "for row 5 of the batch, whose input holds NaN at [2]; the weights are healthy" in told.text


def test_without_run_batch_the_forward_pass_is_looked_at():
    """The model's last inputs are held by reference; what lies behind the model stays unknown."""
    dataset = data()
    dataset.tensors[0][BAD, 2] = float("inf")
    told = train(dataset, with_run=False)[0]
    assert (told.fault, told.samples) == ("input", (BAD,))

    told = train(data(), with_run=False, strike=lambda step, task: _spoil(step, task[0].head, float("nan")))[0]
    assert told.fault in ("unknown", "weight")


def test_in_batches_of_ones_own_the_sample_is_named_or_the_row():
    """A `DataLoader` is observed; of other batches the samples have no numbers."""
    dataset = data()
    dataset.tensors[0][BAD, 2] = float("nan")
    observed, other = train(dataset, own_loader=True)[0], train(dataset, own_loader="list")[0]

    assert "for sample 21, whose input holds NaN at [2]" in observed.text
    assert "for row 5 of the batch, whose input holds NaN at [2]" in other.text
    assert (observed.samples, other.samples) == ((BAD,), ())


def test_a_damaged_weight_is_named_with_its_place():
    """One element changes alone, as when a memory flips a bit."""
    told = train(data(), strike=lambda step, task: _spoil(step, task[0].head, 1e30))[0]

    assert (told.fault, told.where, told.is_certain) == ("weight", "head.weight", True)
    assert "`head.weight` at [1, 3] is 1e+30, and was" in told.text


@pytest.mark.parametrize(("name", "value"), [("exp_avg", 1e25), ("exp_avg_sq", math.nan)])
def test_a_damaged_optimizer_is_not_taken_for_a_rate_or_a_weight(name, value):
    """No gradients give Adam such averages; and the update of one that is not finite damages its weight."""

    def strike(step, task):
        if step == 13:
            task[1].state[task[0].head.weight][name].view(-1)[11] = value

    told = train(data(), strike=strike)[0]
    assert (told.fault, told.where, told.is_certain or value > 0) == ("optimizer", "head.weight", True)


@pytest.mark.parametrize("is_undone", [True, False])
def test_a_gain_that_is_infinite_is_the_weight_and_not_the_statistics_behind_it(is_undone, monkeypatch):
    """One element of the weights; the running averages of a norm behind it are damaged by it, where they do not come
    back with the refused batch."""
    if not is_undone:
        monkeypatch.setattr(Hand, "watch_buffers", lambda *given, **more: None)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))

    def strike(step, task):
        if step == 13:
            task[0][0].weight.data[2, 1] = math.inf

    told = train(data(), model=model, strike=strike)[0]
    assert (told.fault, told.where, told.is_certain) == ("weight", "0.weight", True)
    assert ("statistics" in told.text) == (not is_undone)


def test_a_loss_whose_scale_changes_is_told_from_data_and_weights():
    """The last good batch has a far larger loss than then, with the weights of then, too."""
    torch.manual_seed(1)
    model, scale, heard = Net(), 1.0, record_events()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    adapter = attach(
        model, optimizer, data(), batch_size=8, num_steps=24, backup_every=4, listeners=[heard],
        run_batch=lambda batch: scale * loss_of(model)(batch),
    )  # fmt: skip
    for _ in adapter.epochs():
        for x, y in adapter.loader():
            scale = 65536.0 if adapter.scheduler.global_step >= 13 else 1.0
            adapter.step(adapter.loss(scale * cross_entropy(model(x), y, reduction="none")))
    adapter.close()

    told = next(each for each in heard.of(events.CauseFound) if each.text.startswith("step 14"))
    assert (told.fault, told.is_certain) == ("scale", True)
    assert "times the usual, with the weights of backups, too" in told.text


@pytest.mark.parametrize(("scale", "kind"), [(2.0**127, "scale"), (1024.0, "nothing")])
def test_a_loss_scale_that_is_too_high_is_named(scale, kind):
    """Gradients are finite without it, and not with it; both are tried on the same batch."""
    model, dataset, hand = Net(), data(), Hand(keeps_generators=False)
    batch = tuple(each[:8] for each in dataset.tensors)
    # The generators are kept, as the net has dropout: other numbers would say nothing of those of then.
    hand.reported = Held(type("Ticket", (), {"indices": list(range(8))})(), batch, None, hold_random_state())
    examiner = Examiner(
        model, torch.optim.Adam(model.parameters()), scaler=torch.amp.GradScaler("cpu", init_scale=scale),
        run_batch=lambda batch: 100 * loss_of(model)(batch), hand=hand, sharing=ALONE, others={},
    )  # fmt: skip
    found = examiner.examine(Refusal(3, math.nan, math.nan, False, True, [], 1e-3))

    assert (found.kind, found.is_certain) == (kind, True), found.evidence
    assert all(each.grad is None for each in model.parameters())
    if kind == "nothing":
        hand.reported = hand.reported._replace(generators=None)
        assert examiner.examine(Refusal(3, math.nan, math.nan, False, True, [], 1e-3)).kind == "unknown"


class Rows(TensorDataset):
    """Rows by name."""

    def __getitem__(self, index):
        return dict(zip(("x", "y", "weight"), super().__getitem__(index), strict=True))


@pytest.mark.parametrize(("make", "said"), [(tuple, " in part 1.0"), (lambda parts: {"mask": parts[1]}, " of mask.0")])
def test_a_part_without_a_name_is_not_read_as_a_number(make, said):
    """It would be after "of", as in NaN of 1.0."""
    [odd] = not_finite(make([torch.zeros(3, 2), (torch.tensor([1.0, math.nan, 1.0]),)]))

    assert (odd.rows, odd.about) == ((1,), f"whose input holds NaN{said}")


@pytest.mark.parametrize("good", [None, torch.zeros(8, 2)], ids=["no good batch", "good batch"])
def test_a_label_that_most_rows_do_not_have_is_not_far_off(good):
    """Its 1 is beyond any multiple of 0; a value that is far beyond 1 is found."""
    labels = torch.zeros(8, 2)
    labels[:3, 1] = 1.0
    calm = far_off(labels, good)
    labels[5, 0] = 500.0

    assert calm == []
    assert [each.rows for each in far_off(labels, good)] == [(5,)]


@pytest.mark.parametrize(
    ("column", "value", "fault", "said"),
    [
        ("y", 255, "label", "in `div`"),
        ("weight", 500.0, "loss", "Inf first in the loss, in `exp`"),
        ("x", -math.inf, "input", "whose input holds Inf at [2]"),
    ],
)
def test_a_value_that_is_far_off_is_a_label_or_what_the_loss_cannot_bear(column, value, fault, said):
    """With one loss for the batch, under BatchNorm, which cannot run a row alone; read by the model or after it."""
    torch.manual_seed(1)
    rows = {"x": torch.randn(64, 4), "y": torch.randint(3, (64,)), "weight": torch.ones(64)}
    (rows[column][BAD, 2:3] if column == "x" else rows[column][BAD : BAD + 1]).fill_(value)
    model, heard = Net(), record_events()

    def losses_of(batch):
        hits = (batch["y"][:, None] == torch.arange(3)).float()
        return -(hits * model(batch["x"]).log_softmax(1)).sum(1) / hits.sum(1) * torch.exp(batch["weight"] - 1)

    adapter = attach(
        model, torch.optim.Adam(model.parameters()), Rows(*rows.values()), batch_size=8, num_steps=16, guard="finite",
        backup_every=4, listeners=[heard], run_batch=lambda batch: losses_of(batch).mean(),
    )  # fmt: skip
    for _ in adapter.epochs():
        for batch in adapter.loader():
            adapter.step(adapter.loss(losses_of(batch)))
    adapter.close()

    told = heard.of(events.CauseFound)[0]
    assert (told.fault, told.samples, told.is_certain) == (fault, (BAD,), True)
    assert said in told.text


def test_the_row_is_found_under_batch_norm_and_outside_of_the_model():
    """A row alone, which BatchNorm cannot run, gets one of a good batch beside it; at most log2(B) + 2 runs."""
    good, batch = torch.zeros(8, 1), torch.arange(8.0)[:, None]
    norm = nn.BatchNorm1d(1)
    refusal = Refusal(1, math.nan, 1.0, False, False, [], 0.1)
    for row in range(8):
        runs = Runs(refusal, norm, lambda x, row=row: (norm(x) * 0 + torch.log((x - row).abs())).mean(), has_loss=True)
        whole = runs.watch(batch)

        assert (whole.fault.op, whole.fault.is_early) == ("log", False)
        assert runs.find_row(batch, whole, good - 1) == (row,)
        assert runs.count - 1 <= 3 + 2

    early = run_watched(norm, lambda x: norm(torch.log(x)).mean(), batch, backward=False)
    assert "before the model, in `log`" in describe_place(early)


def test_updates_that_are_too_large_are_told_by_the_weights():
    """The batches are good with the weights of a backup, and every array has moved far."""

    def strike(step, task):
        if step == 13:
            with torch.no_grad():
                for each in task[0].parameters():
                    each.add_(300 * torch.randn_like(each))

    told = train(data(), strike=strike)[0]
    assert told.fault == "update"
    assert "have moved the weights by" in told.text


def _spoil(step, layer, value):
    if step == 13:
        with torch.no_grad():
            layer.weight[1, 3] = value


def test_what_is_touched_is_put_back_to_the_bit():
    """Weights, buffers, gradients that wait, random generators, modes and attributes of modules."""
    model, dataset = Net(), data()
    optimizer = torch.optim.Adam(model.parameters())
    cross_entropy(model(dataset.tensors[0][:8]), dataset.tensors[1][:8]).backward()
    optimizer.step()
    backup = copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    with torch.no_grad():
        model.head.weight[0, 0] = 1e30
    hand = Hand(keeps_generators=False)
    ticket = type("Ticket", (), {"indices": list(range(8))})()
    batch = tuple(each[:8] for each in dataset.tensors)
    hand.reported = hand.good = Held(ticket, batch, None, None)
    examiner = Examiner(model, optimizer, scaler=None, run_batch=loss_of(model), hand=hand, sharing=ALONE, others={})
    gradients = [each.grad for each in model.parameters()]
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict(), [each.clone() for each in gradients]))
    waiting = model(batch[0]).sum()
    generator, calls, last = torch.get_rng_state(), model.num_calls, model.last
    statistics = copy.deepcopy(model.norm.state_dict())

    found = examiner.examine(Refusal(3, 1e30, 1.0, True, False, [(1, backup)], 1e-3))

    assert found.num_runs >= 5
    assert found.kind == "weight"
    assert torch.equal(torch.get_rng_state(), generator)
    assert (model.num_calls, model.last) == (calls, last)
    assert all(now.grad is then for now, then in zip(model.parameters(), gradients, strict=True))
    after = (model.state_dict(), optimizer.state_dict(), gradients)
    assert all(torch.equal(after[0][name], statistics[name[5:]]) for name in after[0] if name.startswith("norm."))
    assert all(torch.equal(after[0][name], before[0][name]) for name in after[0] if not name.startswith("norm."))
    assert all(torch.equal(a, b) for a, b in zip(after[2], before[2], strict=True))
    assert str(after[1]) == str(before[1])
    # A graph that was made before is still good.
    waiting.backward()


class Once(Net):
    """A model that cannot be run a second time on the same batch."""

    seen: typing.ClassVar = []

    def forward(self, x):
        if any(x is each for each in self.seen):
            raise RuntimeError("each batch only once")
        self.seen.append(x)
        return super().forward(x)


def test_a_model_that_cannot_be_run_twice_ends_no_training():
    """That is said, and the run goes on."""
    told = train(data(), model=Once(), strike=lambda step, task: _spoil(step, task[0].head, float("inf")))

    assert told
    assert not any(each.is_certain for each in told)


@pytest.mark.program
def test_a_compiled_model_is_run_as_it_was_written():
    """Modules have names again; nothing is compiled anew."""
    model = Net()
    dataset = data()
    dataset.tensors[0][BAD, 2] = float("nan")
    compiled = torch.compile(model, backend="eager")
    told = train(dataset, model=compiled, steps=12)[0]

    assert (told.fault, told.samples) == ("input", (BAD,))
    assert "`first`" in told.text


def test_a_watched_model_is_copied_saved_and_freed_as_any_other(tmp_path):
    """Averaged weights copy it; a copy holds no batch, and nothing keeps it but its owners."""
    model = Net()
    hand = Hand(keeps_generators=False)
    hand.watch(model)
    model(x := torch.randn(8, 4))
    held = hand.take("ticket").inputs
    assert held[0][0] is x
    # A step that does not call the model has no inputs.
    assert hand.take("ticket").inputs is None
    assert torch.equal(model.eval()(x), copy.deepcopy(model)(x))
    assert hand.inputs is None

    torch.save(model, tmp_path / "model.pt")
    twin = copy.deepcopy(model.train())
    twin(x)
    assert hand.inputs is None
    alive = weakref.ref(model)
    gc.disable()
    del model
    gc.enable()
    assert alive() is None


@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_model_is_watched_too(in_place):
    """Wrapped or by `Module.compile`; it runs compiled as before."""
    torch._dynamo.reset()
    model, traced = Net(), []

    def backend(graph, inputs):
        traced.append(graph)
        return graph

    if in_place:
        model.compile(backend=backend)
    compiled = model if in_place else torch.compile(model, backend=backend)
    hand = Hand(keeps_generators=False)
    hand.watch(compiled)
    for _ in range(2):
        compiled(x := torch.randn(8, 4))
        assert hand.take("ticket").inputs[0][0] is x
    assert traced


def test_the_operation_outside_of_modules_is_named():
    """In the loss: the operation, and the line of the code."""
    batch = torch.tensor([[0.0], [2.0]])
    model = nn.Linear(1, 1)
    trace = run_watched(model, lambda x: (model(x) * 0 + torch.log(x)).mean(), batch, backward=False)

    assert (trace.fault.op, trace.fault.where, trace.fault.what) == ("log", "", "Inf")
    assert trace.fault.site.startswith("test_place.py:")


def test_masks_are_no_faults():
    """Attention is masked with infinities; a row that is masked as a whole is what goes wrong."""
    scores = torch.zeros(2, 2)
    model = nn.Linear(1, 1)

    def run(mask):
        return torch.softmax(scores.masked_fill(mask, float("-inf")), -1).sum()

    fine = run_watched(model, run, torch.tensor([[True, False], [False, False]]), backward=False)
    bad = run_watched(model, run, torch.tensor([[True, True], [False, False]]), backward=False)
    assert fine.fault is None
    assert (bad.fault.op, bad.fault.what) == ("_softmax", "NaN")


@pytest.mark.parametrize("row", [0, 5, 12])
def test_halving_asks_no_more_than_it_may(row):
    """log2(B) + 2 runs for any row; no row where only the whole batch goes wrong."""
    asked = []
    found = halve(lambda part: asked.append(part) or row in part, 13)
    assert found == ((row,), len(asked))
    assert len(asked) <= 6
    assert halve(lambda part: len(part) == 13, 13)[0] == ()


def test_some_rows_of_any_batch():
    """Tensors and lists of the batch's length are cut, and nothing else."""
    batch = {"x": torch.arange(6).reshape(3, 2), "names": ["a", "b", "c"], "scale": torch.ones(2), "flag": True}
    part = some_rows(batch, [2, 0], num_rows(batch))

    assert part["x"].tolist() == [[4, 5], [0, 1]]
    assert (part["names"], part["scale"].tolist(), part["flag"]) == (["c", "a"], [1, 1], True)


@pytest.mark.parametrize("fault", ["weights", "weights with run_batch", "output"])
def test_a_network_beside_the_model_is_not_taken_for_the_data(fault):
    """What a damaged generator gives a healthy discriminator is no fault of the samples of the batch."""
    torch.manual_seed(0)
    maker, judge, noise = nn.Linear(2, 3), nn.Linear(3, 1), torch.randn(8, 2)
    heard = record_events()
    adapter = attach(
        judge, torch.optim.SGD(judge.parameters(), 0.01), DataLoader(TensorDataset(torch.randn(64, 3)), 8),
        num_steps=16, guard="finite", also={"maker": maker}, listeners=[heard],
        run_batch=(lambda _: softplus(judge(maker(noise))).mean()) if "run_batch" in fault else None,
    )  # fmt: skip
    for _ in adapter.epochs():
        for (real,) in adapter.batches():
            is_time = adapter.scheduler.global_step == 6
            if is_time and fault != "output":
                maker.weight.data[0, 0] = math.nan
            made = maker(noise) * (math.nan if is_time and fault == "output" else 1.0)
            adapter.step(softplus(-judge(real)).mean() + softplus(judge(made)).mean())
    adapter.close()

    [found] = heard.of(events.CauseFound)
    assert not found.is_certain
    assert "healthy" not in found.text
    said = "what comes before the model" if fault == "output" else "`maker`, trained beside the model, holds values"
    assert said in found.text


class Steps(nn.Module):
    """A cell that is called once for each step of a sequence, with the state that its call before has returned."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRUCell(3, 6), nn.Linear(6, 1)

    def forward(self, x, state):
        state = self.cell(x, state)
        return self.head(state), state


def train_steps(fault):
    """Train `Steps` over sequences of four, with a fault at step 13."""
    torch.manual_seed(0)
    model, heard = Steps(), record_events()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    loader = DataLoader(TensorDataset(torch.randn(64, 4, 3)), 8)
    adapter = attach(model, optimizer, loader, num_steps=20, backup_every=4, listeners=[heard])
    for _ in adapter.epochs():
        for (x,) in adapter.batches():
            is_time = adapter.scheduler.global_step == 13
            if is_time and fault == "weight":
                model.cell.weight_hh.data[2, 2] = math.nan
            x = x * (math.nan if is_time and fault == "batch" else 1.0)
            loss, state = 0.0, torch.zeros(len(x), 6)
            for step in range(4):
                out, state = model(x[:, step], state)
                loss = loss + ((out[:, 0] - x[:, step].sum(1)) ** 2).mean()
            adapter.step(loss)
    adapter.close()
    return heard.of(events.CauseFound)[0]


def test_what_a_model_has_made_itself_is_not_taken_for_the_batch():
    """A state that is carried on within a step is NaN as the weights are; no row of the batch is to blame for that."""
    found = train_steps("weight")
    assert (found.fault, found.where, found.samples) == ("weight", "cell.weight_hh", ())
    assert "for row" not in found.text

    found = train_steps("batch")
    assert found.fault == "input"
    assert "whose input holds NaN" in found.text


@pytest.mark.parametrize("fault", ["batch", "maker"])
def test_after_its_step_the_batch_that_damaged_two_networks_is_still_named(fault):
    """A step of a GAN is reported once both networks have taken theirs, and the last call was of what one has made."""
    torch.manual_seed(0)
    maker, judge, heard = nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)), record_events()
    first, second = torch.optim.SGD(judge.parameters(), 0.01), torch.optim.SGD(maker.parameters(), 0.01)
    adapter = attach(
        judge, first, DataLoader(TensorDataset(torch.randn(64, 3)), 8), num_steps=16, guard="finite", backup_every=4,
        also={"maker": maker, "second": second}, listeners=[heard],
    )  # fmt: skip
    for _ in adapter.epochs():
        for (real,) in adapter.batches():
            is_time = adapter.scheduler.global_step == 10
            if is_time and fault == "maker":
                maker.weight.data[0, 0] = math.nan
            real = real * (math.nan if is_time and fault == "batch" else 1.0)
            made = maker(torch.randn(8, 2))
            judged = softplus(-judge(real)).mean() + softplus(judge(made.detach())).mean()
            first.zero_grad()
            judged.backward()
            first.step()
            fooled = softplus(-judge(made)).mean()
            second.zero_grad()
            fooled.backward()
            second.step()
            adapter.report(judged, fooled)
    adapter.close()

    [found] = heard.of(events.CauseFound)
    assert "not to blame" not in found.text
    said = "whose input holds NaN" if fault == "batch" else "`maker`, trained beside the model, holds values"
    assert said in found.text
