"""What backups and checkpoints of a torch training hold, and that a run goes on from them bit for bit."""

import copy
import random

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel

from learnit_r8.sources.random_generators import random_state, set_random_state
from learnit_r8.state.tree import clone, copy_into, copy_to_host
from learnit_r8.torch import ModelState
from learnit_r8.torch import state as state_files
from learnit_r8.torch.prepared import plain_model
from tests.state_common import first_difference
from tests.torch_common import Rows, adapted, classifier, sgd, weights


def adam(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def make(folder=None, *, policy="balanced", every=5, num_epochs=3, **settings):
    """A training with dropout, averaged weights and a loss scaler: everything that has a state."""
    model = classifier(dropout=0.3)
    ema = AveragedModel(model)
    checkpoints = (
        {} if folder is None else {"checkpoint_dir": folder, "checkpoint_every": every, "keep_checkpoints": 99}
    )
    adapter = adapted(
        model=model,
        optimizer=adam(model),
        ema=ema,
        scaler=torch.amp.GradScaler("cpu", growth_interval=7),
        policy=policy,
        num_epochs=num_epochs,
        **checkpoints,
        **settings,
    )
    adapter.ema = ema
    return adapter


def loader_of(adapter, workers):
    return torch.utils.data.DataLoader(Rows(), batch_sampler=adapter.sampler, num_workers=workers)


def go_on(adapter, workers, seen, stop_after=None):
    """Train to the end of the budget, or break off in mid-epoch."""
    for _ in adapter.epochs():
        for x, y, rows in loader_of(adapter, workers):
            seen.append(rows.tolist())
            losses = cross_entropy(adapter.model(x), y, reduction="none")
            adapter.step(adapter.loss(losses))
            adapter.ema.update_parameters(adapter.model)
            if len(seen) == stop_after:
                return


@pytest.mark.parametrize(
    ("workers", "stop_after"),
    [(0, 7), (0, 17), *(pytest.param(*case, marks=pytest.mark.program) for case in [(1, 17), (2, 17), (2, 28)])],
)
def test_resumes_bit_for_bit(workers, stop_after, tmp_path):
    """The same program goes on where it was ended, anywhere, with the same batches, rates, weights and dropout."""
    whole, seen = make(), []
    go_on(whole, workers, seen)
    broken, first = make(tmp_path, resume="auto"), []
    go_on(broken, workers, first, stop_after=stop_after)
    random.seed(99), np.random.seed(99), torch.manual_seed(99)
    resumed, rest = make(tmp_path, resume="auto"), []
    step = resumed.scheduler.global_step
    go_on(resumed, workers, rest)

    assert stop_after - 5 <= step <= stop_after
    assert first[:step] + rest == seen
    assert np.array_equal(weights(resumed.model), weights(whole.model))
    assert resumed.scheduler.table.loss.tobytes() == whole.scheduler.table.loss.tobytes()
    assert resumed.lr_scheduler.get_last_lr() == whole.lr_scheduler.get_last_lr()


class Noisy(Rows):
    """Random augmentation with the generators of torch, numpy and Python."""

    def __getitem__(self, index):
        x, y, index = super().__getitem__(index)
        return x + 0.1 * torch.randn(64) + 0.1 * np.random.rand() + 0.1 * random.random(), y, index


def run_noisy(adapter, workers, stop_after=None):
    """Train with augmentation; the sum of the pixels of every batch."""
    sums = []
    for _ in adapter.epochs():
        for x, y, _rows in adapter.loader(num_workers=workers):
            sums.append(x.sum().item())
            adapter.step(adapter.loss(cross_entropy(adapter.model(x), y, reduction="none")))
            if len(sums) == stop_after:
                return sums
    return sums


@pytest.mark.parametrize(
    ("workers", "again"),
    [pytest.param(0, 0, marks=pytest.mark.program), pytest.param(2, 2, marks=pytest.mark.program), (1, 2)],
)
def test_augmentation_goes_on_bit_for_bit(workers, again, tmp_path):
    """Random augmentation is the same after a resume in mid-epoch, in any number of workers."""
    random.seed(1), np.random.seed(1)
    whole = make(dataset=Noisy(), num_epochs=2)
    sums = run_noisy(whole, workers)
    random.seed(1), np.random.seed(1)
    first = run_noisy(make(tmp_path, dataset=Noisy(), num_epochs=2), workers, stop_after=18)
    random.seed(99), np.random.seed(99), torch.manual_seed(99)
    resumed = make(tmp_path, dataset=Noisy(), num_epochs=2)
    resumed.scheduler.load_checkpoint()
    step = resumed.scheduler.global_step
    rest = run_noisy(resumed, again)

    assert 13 < step <= 18
    assert first[:step] + rest == sums
    assert len(set(sums)) == len(sums)
    assert np.array_equal(weights(resumed.model), weights(whole.model))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.program)])
def test_validation_with_a_generator_of_its_own_leaves_no_trace(workers, tmp_path):
    """A resumed run needs not repeat a validation whose loader has its own generator."""

    def validate():
        validation = torch.utils.data.DataLoader(Rows(), batch_size=50, shuffle=True, generator=torch.Generator())
        assert sum(len(y) for _, y, _ in validation) == 200

    def go(adapter, epochs):
        for _ in range(epochs):
            for x, y in adapter.loader(num_workers=workers):
                adapter.step(adapter.loss(cross_entropy(adapter.model(x), y, reduction="none")))
            validate()

    whole = make(policy="shuffle")
    go(whole, 3)
    killed = make(tmp_path, policy="shuffle", every=None)
    go(killed, 1)
    # The checkpoint of an epoch is written when the next one is asked for.
    next(iter(killed.loader(num_workers=workers)))
    resumed = make(tmp_path, policy="shuffle", every=None)
    resumed.scheduler.load_checkpoint()

    assert resumed.scheduler.global_step == 13
    go(resumed, 2)
    assert np.array_equal(weights(resumed.model), weights(whole.model))


def test_files_run_no_code(tmp_path):
    """Model files of checkpoints are of the layout of safetensors."""
    adapter = make(tmp_path)
    go_on(adapter, 0, [], stop_after=6)
    [path] = [path for path in tmp_path.iterdir() if path.name.startswith("model_")][-1:]
    state = state_files.load(path)

    assert set(state) == {"model", "optimizer", "scaler", "ema", "random"}
    assert path.suffix == ".safetensors"


def test_everything_is_put_back():
    """Model, optimizer, scaler, averaged weights and generators are what they were when the backup was taken."""
    adapter = make(policy="shuffle")
    go_on(adapter, 0, [], stop_after=6)
    before = copy.deepcopy(adapter.state.read())
    go_on(adapter, 0, [], stop_after=4)
    adapter.state.load(copy.deepcopy(before), from_ram=True)

    assert first_difference(before, adapter.state.read()) == ""


def test_generators(tmp_path):
    """All three global generators go on as they would have, also from a file."""
    state = random_state()
    drawn = random.random(), np.random.rand(), torch.rand(()).item()
    state_files.save(state, tmp_path / "state")
    [path] = tmp_path.iterdir()
    set_random_state(state_files.load(path))

    assert (random.random(), np.random.rand(), torch.rand(()).item()) == drawn


def test_backup_lives_in_the_same_memory():
    """A second backup is written over the first one's memory."""
    model = classifier()
    state = ModelState(model, sgd(model)).read()
    first = copy_to_host(state)
    with torch.no_grad():
        model[0].weight += 1
    second = copy_into(first, state, to_host=True)

    assert second["model"]["0.weight"].data_ptr() == first["model"]["0.weight"].data_ptr()
    assert torch.equal(second["model"]["0.weight"], model[0].weight)
    assert second["model"]["0.weight"].data_ptr() != model[0].weight.data_ptr()


def test_tied_weights(tmp_path):
    """Shared parameters stay shared through a backup and a file."""
    model = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 5, bias=False))
    model[1].weight = model[0].weight
    state = ModelState(model, sgd(model))
    state.save({"model": state.read()}, tmp_path / "model")
    before = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.zero_()
    [path] = tmp_path.iterdir()
    state.load(str(path))

    assert torch.equal(model[1].weight, before)
    assert model[1].weight is model[0].weight


def test_other_model():
    """The state of another model is refused, and changes nothing."""
    model, other = classifier(), torch.nn.Linear(3, 3)
    saved = copy.deepcopy(ModelState(other, sgd(other)).read())
    before = weights(model)

    with pytest.raises(
        ValueError, match=r"the saved model must have the tensors of this one, got others for \['0\.bias'"
    ):
        ModelState(model, sgd(model)).load(saved, from_ram=True)
    assert np.array_equal(weights(model), before)


def test_other_parts():
    """A state with a part that is not there is refused."""
    model = classifier()
    saved = copy.deepcopy(ModelState(model, sgd(model)).read())

    with pytest.raises(ValueError, match=r"the saved state must have the parts \['model', 'random'\], got"):
        ModelState(model).load(saved, from_ram=True)


def test_wrapped_models():
    """What is compiled or wrapped is saved under the names of the plain model."""
    model = classifier()

    assert plain_model(torch.compile(model, backend="eager")) is model
    assert plain_model(torch.nn.DataParallel(model)) is model


def test_other_files(tmp_path):
    """A file that something else wrote is refused, one of an older version with the command that converts it."""
    pytest.importorskip("safetensors")
    from safetensors.torch import save_file

    torch.save({"weights": torch.ones(2)}, tmp_path / "other")
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors", {"tree": "{}"})
    for name in ("other", "a.safetensors"):
        with pytest.raises(ValueError, match=r"the file must begin with .*; learnit-r8 convert converts files of"):
            state_files.load(tmp_path / name)


def test_as_tensors_and_back():
    """Numbers without a sign become wider ones with; everything else stays."""
    state = {"a": np.arange(3, dtype=np.uint16), "b": [np.float64(2.5), (1, "x", None)]}
    tensors = state_files.as_tensors(state)
    back = state_files.as_arrays(tensors)

    assert tensors["a"].dtype == torch.int64
    assert back["a"].tolist() == [0, 1, 2]
    assert back["b"] == [2.5, [1, "x", None]]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda model: model, r"parameter groups of \[4\] tensors like this one, got groups of \[2, 2\]"),
        (lambda _: torch.nn.Linear(64, 3), "saved model must have the tensors of this one"),
    ],
)
def test_state_that_does_not_fit_changes_nothing(other, message):
    """Neither model nor scheduler takes over a part of a state whose rest does not fit."""
    adapter = adapted()
    foreign_model = other(classifier(seed=1))
    parameters = list(foreign_model.parameters())
    groups = [{"params": parameters[:2]}, {"params": parameters[2:]}] if len(parameters) > 2 else parameters
    foreign = adapted(model=foreign_model, optimizer=torch.optim.SGD(groups, lr=0.1, momentum=0.9))
    x, y, *_ = next(iter(foreign.loader()))
    foreign.step(foreign.loss(cross_entropy(foreign_model(x), y % 3, reduction="none")))
    before = [each.clone() for each in adapter.model.parameters()]

    with pytest.raises(ValueError, match=message):
        adapter.load_state_dict(foreign.state_dict())
    assert adapter.scheduler.global_step == 0
    assert all(map(torch.equal, before, adapter.model.parameters()))


def test_state_without_its_parts_is_refused():
    """What is not a state at all is named."""
    with pytest.raises(ValueError, match=r"state must be what state_dict\(\) returned, got the keys \['net'\]"):
        adapted().load_state_dict({"net": 1})


def test_a_heal_leaves_the_rates_that_were_set_since():
    """With rates of the user's own, a backup brings the weights back, and not a rate; a resume brings both."""
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = ModelState(model, optimizer, keeps_options=True)
    saved, rates = clone(state.read()), []
    for is_resume in (False, True):
        optimizer.param_groups[0]["lr"] = 0.01
        state.load(clone(saved), from_ram=True, is_resume=is_resume)
        rates.append(optimizer.param_groups[0]["lr"])

    assert rates == [0.01, 0.1]


def test_each_rank_goes_on_with_its_own_generators():
    """A checkpoint holds the random generators of all ranks, and each takes its own."""
    model, optimizer = (net := torch.nn.Linear(2, 1)), torch.optim.SGD(net.parameters(), lr=0.1)
    generators = []
    for seed in (1, 0):
        torch.manual_seed(seed)
        generators.insert(0, state_files.as_tensors(random_state()))
    saved = ModelState(model, optimizer, gather=lambda own: generators).collect()
    torch.manual_seed(1)
    expected = torch.rand(3)
    ModelState(model, optimizer, rank=1, gather=lambda own: generators).take_over(saved)

    assert torch.equal(torch.rand(3), expected)


def test_gradients_go_with_the_weights_that_are_replaced():
    """Nothing of the damaged weights is left to be added to the next gradient."""
    model = torch.nn.Linear(2, 1)
    state = ModelState(model, torch.optim.SGD(model.parameters(), lr=0.1))
    saved = clone(state.read())
    model(torch.full((1, 2), float("nan"))).sum().backward()
    state.load(saved, from_ram=True)

    assert all(parameter.grad is None for parameter in model.parameters())
