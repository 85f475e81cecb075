"""What R8 does about updates that are too large: dead parameters, whoever steps the optimizer, and clipping."""

import contextlib
import functools
import json
import math
import warnings
from types import MappingProxyType

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from learnit_r8 import OwnBatches, events
from learnit_r8.engine.settings import grouped
from learnit_r8.testing import record_events
from learnit_r8.torch import attach
from tests.torch_common import Attention, X, Y

NUM_STEPS, LONG, BACKUP = 320, 640, 20


class Left(Exception):
    """The loop is left."""


def rectifiers(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)
    )


def batches(size=16, pools=None, num_steps=NUM_STEPS):
    """Of all samples, or for each step of some; see `Run`."""
    dice = np.random.default_rng(0)
    everything = np.arange(len(X))
    pools = [everything] * num_steps if pools is None else [everything[np.array(each)] for each in pools]
    rows = [torch.as_tensor(dice.choice(pool, size)) for pool in pools]
    return [(X[each], Y[each]) for each in rows]


def kill(model):
    """What one update that is far too large leaves behind: rectifiers that no input activates."""
    with torch.no_grad():
        model[4].bias.fill_(-1e3)


def loss_of(model):
    with torch.no_grad():
        return float(cross_entropy(model(X), Y))


def normed():
    torch.manual_seed(0)
    parts = [nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(64, 10))


class Run:
    """A training on one's own batches.

    Args:
        kills: Steps before which the rectifiers die.
        steps: Whether R8 steps the optimizer.
        rival: An optimizer that steps before each loss is reported, on one of its own.
        pools: bool[N] for each step, the samples that it draws from.
        saves_at, until: Steps before which a checkpoint is written, and the loop is left.
    """

    def __init__(
        self, *, kills=(), model=rectifiers, make=torch.optim.Adam, lr=3e-3, size=16, steps=True, rival=None,
        pools=None, saves_at=None, until=None, num_steps=NUM_STEPS, **settings,
    ):  # fmt: skip
        self.model, self.heard, self.weights = model(), record_events(), {}
        optimizer, left = make(self.model.parameters(), lr), set(kills)
        settings |= {"also": {"rival": rival}} if rival is not None else {}
        with warnings.catch_warnings(record=True) as said, contextlib.suppress(Left):
            warnings.simplefilter("always")
            with attach(
                self.model, optimizer, batches(size, pools, num_steps), num_steps=num_steps, listeners=[self.heard],
                **grouped(dict(backup_every=BACKUP, **settings)),
            ) as self.adapter:  # fmt: skip
                r8 = self.adapter.scheduler
                for x, y in self.adapter.batches():
                    step = r8.global_step
                    self.weights[step] = torch.cat([each.detach().flatten() for each in self.model.parameters()])
                    if step == saves_at:
                        r8.save_checkpoint()
                    if step == until:
                        raise Left
                    if step in left:
                        left.discard(step)
                        kill(self.model)
                    loss = cross_entropy(self.model(x), y)
                    if rival is not None:
                        rival.step()
                    if steps:
                        self.adapter.step(loss)
                    elif self.adapter.report(loss):
                        optimizer.zero_grad()
                        loss.backward()
                        optimizer.step()
        self.said = " ".join(str(each.message) for each in said)
        self.kinds = [type(each).__name__ for each in self.heard]


@functools.cache
def bare(*, kills=(), lr=3e-3, model=rectifiers, make=torch.optim.Adam, size=16, num_steps=NUM_STEPS):
    model = model()
    optimizer = make(model.parameters(), lr)
    for step, (x, y) in enumerate(batches(size, num_steps=num_steps)):
        if step in kills:
            kill(model)
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


FADING = {"model": normed, "lr": 1.5, "make": torch.optim.SGD, "size": 4, "num_steps": LONG}
EXPLODES = {"model": Attention, "lr": 0.035, "size": 8}
STARTS = 64


def started(number):
    """A model with weights that differ a little for each number."""
    model, dice = Attention(), torch.Generator().manual_seed(number)
    with torch.no_grad():
        for each in model.parameters():
            each.mul_(1 + 1e-6 * number * torch.randn(each.shape, generator=dice))
    return model


run_of = functools.cache(Run)


@functools.cache
def explodes_again():
    """Settings with which losses explode again and again: from which start they do is chance on each processor."""
    for number in range(STARTS):
        settings = {**EXPLODES, "model": functools.partial(started, number)}
        if loss_of(bare(**settings)) > 3.0 and set(capped(run_of(**settings))) == {"explosions"}:
            return settings
    raise AssertionError(f"none of {STARTS} starts lost its progress to explosions")


TROUBLES = {
    "dead": lambda: {"kills": (24,)},
    "dead early": lambda: {"kills": (3,)},
    "fading": lambda: FADING,
    "explodes": explodes_again,
}


def trained(trouble):
    """The run with R8, which several tests look at."""
    return run_of(**TROUBLES[trouble]())


def capped(run):
    """Why the rate was lowered, each time."""
    return [event.reason for event in run.heard if type(event).__name__ == "LrCapped"]


@pytest.mark.parametrize("trouble", ["dead", "dead early"])
def test_dead_parameters_are_revived(trouble):
    """Where most parameters get no gradient any more, a state from before that goes on at a tenth of the rate."""
    run, settings = trained(trouble), TROUBLES[trouble]()

    assert loss_of(bare(**settings)) > 2.2
    assert loss_of(run.model) < 2.0
    assert "have had no gradient at all" in run.said
    assert capped(run)[0] == "no gradient"
    assert run.kinds.count("RolledBack") >= len(settings["kills"])
    assert "the norm of the gradient is clipped" in run.adapter.scheduler.summary()


def test_a_rate_at_which_units_die_is_lowered():
    """Without any fault: at a rate far beyond the edge the network dies within the first steps, and is revived."""
    assert loss_of(bare(lr=8.0, make=torch.optim.SGD)) > 2.2
    assert loss_of(Run(lr=8.0, make=torch.optim.SGD).model) < 2.0


@pytest.mark.parametrize("kills", [(100,), (100, 220), (150,)])
@pytest.mark.parametrize("steps", [True, False])
def test_parameters_that_die_once_something_is_learned_go_back(kills, steps):
    """Then the weights tell of it, before it is known that no gradient comes any more."""
    run = Run(kills=kills, steps=steps)

    assert loss_of(run.model) < 0.2
    assert "no gradient" not in capped(run)
    assert "weights changed at once: the weights were damaged" in run.said


def test_a_loop_that_steps_by_itself_is_watched_too():
    """The gradients that its optimizer is about to use tell the same; what is clipped there is the loop's affair."""
    run = Run(kills=[24], steps=False)

    assert loss_of(run.model) < 2.0
    assert capped(run)[0] == "no gradient"
    assert "clipped" not in run.adapter.scheduler.summary()


def test_a_run_that_is_over_is_told_nothing():
    """The optimizer goes on to be used, and may be attached again."""
    model = rectifiers()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    runs = []
    for _ in range(2):
        with attach(model, optimizer, batches()[:40], num_epochs=1) as adapter:
            for x, y in adapter.batches():
                adapter.step(cross_entropy(model(x), y))
        runs.append(adapter.scheduler.controller.state.early.dead.shares)

    assert [len(each) for each in runs] == [8, 8]


def test_a_rate_at_which_ever_more_units_die_is_lowered():
    """Where ever fewer weights have a gradient and next to nothing is learned, a tenth of the rate is tried."""
    run = trained("fading")

    assert loss_of(bare(**FADING)) > 1.6
    assert loss_of(run.model) < 0.5
    assert [each.reason for each in run.heard.of(events.Probed)].count("wild") == run.kinds.count("RolledBack") == 1
    assert "as many weights have a gradient as in the first steps" in str(run.heard)


def test_explosions_that_are_due_to_the_weights_end():
    """Where losses explode and pass again and again, the gradient is clipped and the rate halved."""
    run = trained("explodes")

    assert loss_of(bare(**explodes_again())) > 3.0
    assert loss_of(run.model) < 1.5
    assert "the norm of the gradient is clipped" in run.adapter.scheduler.summary()
    assert "gone where its batch is drawn again with weights from before" in run.said


class Exploding:
    """A training whose losses explode at some steps: with all weights from there, or as the batch is a hard one.

    Args:
        wild: Steps with weights of 1 in place of 0.
        hard: Steps with a hard batch.
        partly: How hard the batch of some of the first is, too.
        steps: Whether R8 takes the steps.
        size: Numbers in a batch.
        rows: Samples in it.

    Attributes:
        found: The step, whether the gradient is clipped, and the highest rate, wherever one of the latter changes.
        probes: Batches that came again.
    """

    def __init__(self, wild=(), hard=(), partly=MappingProxyType({}), *, steps=True, size=4, rows=4, **settings):
        weight, dice, seen = nn.Parameter(torch.zeros(4)), np.random.default_rng(0), set()
        noise = dice.normal(0.0, 0.1, 300)
        loader = [(torch.full((rows,), number), torch.zeros(1).expand(size)) for number in range(300)]
        self.found, self.probes = [], []
        adapter = attach(nn.ParameterList([weight]), torch.optim.SGD([weight], 1e-9), loader, num_steps=300, **settings)
        controller = adapter.scheduler.controller
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for numbers, _ in adapter.batches():
                number = int(numbers[0])
                if number in seen:
                    self.probes.append(number)
                else:
                    seen.add(number)
                    with torch.no_grad():
                        weight.fill_(number in wild)
                usual = 2.0 if number < 10 else 1.0
                loss = usual + noise[number] + 1.6 * (weight.mean() + (number in hard) + partly.get(number, 0.0))
                if steps:
                    adapter.step(loss)
                else:
                    adapter.report(loss)
                now = (controller.norms.is_on, controller.limit.ceiling)
                if not self.found or self.found[-1][1:] != now:
                    self.found.append((number, *now))
        self.said, self.adapter = " ".join(str(each.message) for each in said), adapter


START = [(0, False, math.inf)]


def test_each_explosion_of_the_weights_asks_for_more():
    """The first one begins the clip and halves the rate, and two more halve it again, down to a quarter."""
    run = Exploding(wild=(100, 120, 160, 200, 240, 260))

    assert run.found == [*START, (100, True, 0.5), (160, True, 0.25)]
    # The first batch is drawn twice, as its loss might not be the same again.
    assert run.probes == [100, 100, 120, 160, 200, 240, 260]


def test_an_explosion_that_is_less_clear_keeps_the_rate():
    """Of the first one a third of the rise stays: the gradient is clipped, and only the next one halves the rate."""
    run = Exploding(wild=(100, 120, 160, 200), partly={100: 0.5})

    assert run.found == [*START, (100, True, math.inf), (120, True, 0.5), (200, True, 0.25)]


def test_hard_batches_are_no_explosions():
    """With weights from before their losses are as high: nothing is done, and they are tested ever later."""
    run = Exploding(hard=range(60, 290, 10))

    assert run.found == START
    assert run.probes == [60, 80, 120, 190]
    assert not run.said


def test_losses_of_few_samples_are_no_explosions():
    """One or two samples have a high loss now and then, whatever the weights are."""
    assert Exploding(wild=(107, 127, 147), rows=4).found != START
    assert Exploding(wild=(107, 127, 147), rows=3).found == START


def test_what_was_done_about_explosions_is_undone():
    """As soon as most of them prove to be due to their batches; not where the rate was halved again, too."""
    run = Exploding(wild=(100,), hard=(140, 160))

    assert run.found == [*START, (100, True, 0.5), (160, False, math.inf)]
    assert run.probes == [100, 100, 140, 160]
    run = Exploding(wild=(60, 80, 100), hard=(120, 140, 180), partly={80: 0.8})
    assert run.found == [*START, (60, True, 0.5), (100, True, 0.25)]
    assert run.probes == [60, 60, 80, 100, 120, 140, 180]


def test_a_large_batch_is_kept_once_losses_have_exploded():
    """To copy each one is dear: the first explosion of such batches is not tested."""
    assert Exploding(wild=(107, 127), size=2**19).probes == [127, 127]


def test_explosions_are_left_alone_where_no_batch_is_kept_or_a_loop_steps_by_itself():
    """There nothing can be tested; and R8 could only lower the rate."""
    assert Exploding(wild=(100, 120, 160), steps=False).probes == []
    assert Exploding(wild=(100, 120, 160), batch_size=OwnBatches(keep_witness=False)).probes == []


def test_a_loop_that_steps_by_itself_keeps_its_rate_while_losses_come_back():
    """There no remedy is tried for explosions that pass."""
    assert not {"regress", "explosions"} & set(capped(Run(**EXPLODES, steps=False)))


def test_progress_is_not_lost_as_data_change():
    """Classes that come later make losses rise above the untrained model's, twice, and nothing is put back for that."""
    classes = [3] * 100 + [6] * 100 + [10] * (NUM_STEPS - 200)
    run = Run(pools=[each > Y for each in classes], lr=1e-3)

    assert "regress" not in {event.reason for event in run.heard if type(event).__name__ == "Probed"}
    assert not {"RolledBack", "LrCapped"} & set(run.kinds)


class Narrowed(nn.Module):
    """Of whose weights ever fewer have a gradient, while labels are noise: no rate learns anything."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.step = nn.Linear(64, 10), 0
        nn.init.zeros_(self.linear.weight)

    def forward(self, x):
        self.step += 1
        dice = torch.Generator().manual_seed(self.step)
        noise = torch.randn(x.shape, generator=dice)
        noise[:, 64 - min(48, self.step // 4) :] = 0.0
        return self.linear(noise)


def test_a_trial_that_is_no_better_ends():
    """Where a tenth of the rate is no better, the weights and the rate from before come back, once and for all."""
    run = Run(model=Narrowed, make=torch.optim.SGD, lr=0.1, num_steps=LONG)

    assert [each for each in run.kinds if each in ("LrCapped", "LrRestored")] == ["LrCapped", "LrRestored"]
    assert run.kinds.count("RolledBack") == 2
    begun, ended = (run.heard.of(kind)[0].step for kind in (events.LrCapped, events.LrRestored))
    assert 48 <= ended - begun < 64


def test_no_rate_is_tried_in_a_short_run():
    """A trial that is of no use would cost more than an eighth of what is left of it."""
    run = Run(model=Narrowed, make=torch.optim.SGD, lr=0.1)
    plain = bare(model=Narrowed, make=torch.optim.SGD, lr=0.1)

    assert not {"RolledBack", "LrCapped"} & {*run.kinds}
    assert "as many weights" not in str(run.heard)
    assert all(torch.equal(*each) for each in zip(run.model.parameters(), plain.parameters(), strict=True))


class Gated(nn.Module):
    """With parameters that have no gradient: from the start on, in turns, and from some step on with the others."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.experts = nn.ModuleList(nn.Linear(64, 10) for _ in range(8))
        self.unused, self.turn = nn.ModuleList(nn.Linear(64, 10) for _ in range(6)), 0

    def forward(self, x):
        self.turn += 1
        return sum(
            expert(x) * float(number == self.turn % 8) for number, expert in enumerate([*self.experts, *self.unused])
        )


@pytest.mark.parametrize("make", [rectifiers, pytest.param(Gated, marks=pytest.mark.program)])
@pytest.mark.parametrize("steps", [True, False])
def test_a_healthy_run_is_the_same_to_the_bit(make, steps):
    """Parameters that never had a gradient, or have one in turns, are not dead: nothing is probed or changed."""
    run, other = Run(model=make, steps=steps), bare(model=make)

    assert "Probed" not in run.kinds
    assert all(map(torch.equal, run.model.parameters(), other.parameters()))
    assert "clipped" not in run.adapter.scheduler.summary()


def part_trained(how, attached):
    """The weights after a training in which most gradients are 0 from its fourth pass on."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
    head, spare = nn.Linear(32, 10), nn.Linear(64, 1_500 if how == "not in the loss" else 1)
    model = nn.ModuleList([body, head, spare])
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), 32, shuffle=True)
    adapter = attach(model, optimizer, loader, num_epochs=12, handle_signals=False) if attached else None
    for epoch in range(12):
        if epoch == 3 and how == "frozen":
            for each in (*body.parameters(), *spare.parameters()):
                each.requires_grad_(False)
        for x, y in loader if adapter is None else adapter.batches():
            loss = cross_entropy(head(body(x)), y)
            if epoch < 3:
                loss = loss + 0.01 * spare(x).square().mean()
            if adapter is not None and not adapter.report(loss):
                continue
            optimizer.zero_grad(set_to_none=False)
            loss.backward()
            if epoch >= 3 and how == "written over":
                for each in body.parameters():
                    each.grad.zero_()
            optimizer.step()
    if adapter is not None:
        adapter.close()
    return [each.detach().clone() for each in model.parameters()]


@pytest.mark.parametrize("how", ["frozen", "not in the loss", "written over"])
def test_gradients_of_zero_that_no_backward_has_left_are_no_finding(how):
    """Layers that are frozen, left out of the loss, or masked by hand, keep gradients of 0 in a healthy run."""
    weights, plain = part_trained(how, True), part_trained(how, False)

    assert all(map(torch.equal, weights, plain))


@pytest.mark.parametrize(
    "settings", [{"guard": "finite"}, {"steps": False, "rival": torch.optim.SGD([nn.Parameter(X[0])], 0.1)}],
    ids=["finite", "several optimizers"],
)  # fmt: skip
def test_nothing_is_tried_where_losses_are_no_measure_of_progress(settings):
    """So it is with guard="finite", and where the loop steps several optimizers, as of networks against each other."""
    run = Run(kills=[100], **settings)

    assert "no gradient" not in run.said
    assert "RolledBack" not in run.kinds


@pytest.mark.parametrize(
    ("at", "trouble"),
    [(6, "dead"), pytest.param(40, "dead", marks=pytest.mark.program), (6, "fading"), (20, "explodes")],
)
def test_a_resumed_run_goes_on_to_the_bit(at, trouble, tmp_path):
    """A checkpoint holds a trial with the dead state, the rate that is held, the norms and what else was learned."""
    whole = trained(trouble)
    begun = next(event.step for event in whole.heard.of(events.LrCapped))
    # A run that was resumed has no weights from before yet, with which the batch of an explosion is drawn again.
    tested = {event.step for event in whole.heard.of(events.Probed) if event.reason == "exploded"}
    saved = next(step for step in range(begun + at, NUM_STEPS) if tested.isdisjoint(range(step, step + 2 * BACKUP)))
    given = {**TROUBLES[trouble](), "checkpoint_dir": tmp_path, "checkpoint_every": 10**6, "backup_dir": False}
    Run(saves_at=saved, until=saved + 9, **given)
    resumed = Run(resume="auto", **given | {"kills": ()})

    assert min(resumed.weights) == saved
    assert all(torch.equal(weights, whole.weights[step]) for step, weights in resumed.weights.items())
    assert loss_of(resumed.model) == loss_of(whole.model) < 2.0


def test_a_resumed_run_notices_that_units_die(tmp_path):
    """It says so at the same step, though it has no initial weights to go back to."""
    begun = next(event.step for event in trained("fading").heard.of(events.LrCapped))
    given = {**FADING, "checkpoint_dir": tmp_path, "checkpoint_every": 10**6}
    Run(saves_at=begun - 20, until=begun - 9, **given)
    resumed = Run(resume="auto", **given)

    assert next(event.step for event in resumed.heard if "as many weights" in str(event)) == begun - 1


def test_gradients_are_clipped_after_updates_that_were_too_large():
    """From some norms on, longer gradients are cut to twice the usual; of two limits the lower one counts."""
    torch.manual_seed(0)
    for own, most in ((None, 2.0), (1.0, 1.0), (9.0, 2.0)):
        weight = nn.Parameter(torch.zeros(4))
        adapter = attach(
            nn.ParameterList([weight]), torch.optim.SGD([weight], 1.0), None, num_steps=99, max_grad_norm=own
        )
        norms = adapter.scheduler.controller.norms
        norms.begin(0)
        for number, _ in zip(range(20), adapter.steps(), strict=False):
            length = 100.0 if number == 19 else 1.0
            before = weight.detach().clone()
            outcome = adapter.step((weight[0] * length + 2.0) - float(weight[0].detach()) * length)
        moved = float((weight.detach() - before).norm())

        assert math.isclose(moved, most, rel_tol=1e-5)
        assert math.isclose(outcome.clip_factor, 0.02, rel_tol=1e-5)
        assert json.loads(json.dumps(norms.state_dict())) == norms.state_dict()


def clipped(*, sparse):
    """Weights after each step of a table of embeddings, of which a batch may draw a row twice, and a linear layer."""
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Embedding(6, 3, sparse=sparse), nn.Linear(3, 1)])
    adapter, found = attach(model, torch.optim.SGD(model.parameters(), 0.5), None, num_steps=9, max_grad_norm=0.1), []
    for _ in adapter.steps():
        adapter.step((model[1](model[0](torch.randint(6, (4,)))) - 3).square().mean())
        found.append(torch.cat([each.detach().flatten() for each in model.parameters()]))
    return torch.stack(found)


def test_sparse_gradients_are_clipped_as_dense_ones():
    """By the norm of all, in which what a batch adds to a row twice counts as one number."""
    found, expected = clipped(sparse=True), clipped(sparse=False)

    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(expected.diff(dim=0).norm(dim=1), torch.full((8,), 0.05))


@pytest.mark.parametrize("steps", [True, False])
def test_a_clip_that_nothing_does_is_warned_of(steps):
    """Where the loop steps the optimizer, it is the loop's to clip: the warning gives the line, once."""
    run = Run(steps=steps, max_grad_norm=1.5, num_steps=80)

    assert run.said.count("max_grad_norm=1.5 has no effect") == (not steps)
    assert run.said.count("clip_grad_norm_(model.parameters(), 1.5) before optimizer.step()") == (not steps)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("scale", [None, 1024.0])
def test_scaled_gradients_are_clipped_at_their_own_norm(scale, fused):
    """A GradScaler's gradient is divided by its scale before it is clipped, for a fused optimizer, too."""
    weight = nn.Parameter(torch.zeros(4))
    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
    optimizer = torch.optim.SGD([weight], 1.0, fused=fused)
    adapter = attach(nn.ParameterList([weight]), optimizer, None, num_steps=99, scaler=scaler)
    adapter.scheduler.controller.norms.begin(0)
    for number, _ in zip(range(20), adapter.steps(), strict=False):
        before, length = weight.detach().clone(), 100.0 if number == 19 else 1.0
        adapter.step((weight[0] * length + 2.0) - float(weight[0].detach()) * length)

    assert math.isclose(float((weight.detach() - before).norm()), 2.0, rel_tol=1e-5)


def test_a_second_optimizer_is_its_owners():
    """Of several optimizers, R8 steps the first and looks at its parameters; the other one keeps its gradients."""
    model, second = rectifiers(), nn.Linear(10, 10)
    other = torch.optim.SGD(second.parameters(), 0.0)
    run = Run(kills=[100], model=lambda: model, also={"second": second, "second optimizer": other})

    assert loss_of(run.model) < 1.5


def test_parameters_of_any_kind_are_looked_at():
    """Empty ones, without a gradient, of several types, complex: the look at gradients ends no training."""
    kinds = [torch.float32, torch.bfloat16, torch.float64, torch.complex64]
    weights = nn.ParameterList([torch.ones(3, dtype=each) for each in kinds] + [torch.ones(0), torch.ones(2)])
    adapter = attach(weights, torch.optim.SGD(weights, 0.01), None, num_steps=40, handle_signals=False)
    for _ in adapter.steps():
        adapter.step(sum((each.abs() ** 2).sum().float() for each in weights[:5]))
    adapter.close()

    assert adapter.scheduler.global_step == 40
    assert adapter.scheduler.sentry.num_refused == 0
