"""BatchNorm with ``momentum=None``, whose averages weigh all batches alike, counts none that was not learned from."""

import pytest

torch = pytest.importorskip("torch")

from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from learnit_r8.torch import attach
from tests.torch_common import equal

NAN = float("nan")


def build():
    torch.manual_seed(0)
    x = torch.randn(320, 8)
    norm = torch.nn.BatchNorm1d(16, momentum=None)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), norm, torch.nn.ReLU(), torch.nn.Linear(16, 3))
    return TensorDataset(x, x[:, :3].argmax(1)), model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def train(*, is_own, bad_at=None, damaged_at=None):
    """A training, the batches and rates that it learned from, and the steps of the states that were put back."""
    data, model, optimizer = build()
    given = DataLoader(data, batch_size=20, shuffle=True) if is_own else data
    settings = {} if is_own else {"batch_size": 20, "scheduler_mode": "keep"}
    learned, backs, num_seen = [], [], 0
    with attach(model, optimizer, given, num_epochs=4, **settings) as adapter:
        for _ in adapter.epochs():
            for x, y in adapter.batches() if is_own else adapter.loader():
                x = x * NAN if num_seen == bad_at else x
                if num_seen == damaged_at:
                    model.requires_grad_(False)
                    # So much that single arrays are not repaired.
                    momentum = [each["momentum_buffer"] for each in optimizer.state.values()]
                    for each in (*model.parameters(), *model.buffers(), *momentum):
                        if each.is_floating_point():
                            each.fill_(NAN)
                    model.requires_grad_(True)
                num_seen += 1
                loss = cross_entropy(model(x), y)
                outcome = adapter.report(loss)
                if outcome.rolled_back_to is not None:
                    backs.append(outcome.rolled_back_to)
                    del learned[backs[-1] :]
                if outcome:
                    learned.append((x, y, optimizer.param_groups[0]["lr"]))
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
    return model, learned, backs


def train_by_hand(learned):
    _, model, optimizer = build()
    for x, y, lr in learned:
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("is_own", [True, False], ids=["own loader", "R8's batches"])
def test_a_refused_batch_leaves_no_trace_in_cumulative_statistics(is_own):
    """Means, variances, their count and the weights are to the bit those of a run without the batch."""
    model, learned, backs = train(is_own=is_own, bad_at=25)

    assert not backs
    assert len(learned) in (62, 63)
    assert model[1].num_batches_tracked == len(learned)
    assert equal(model.state_dict().values(), train_by_hand(learned).state_dict().values())


@pytest.mark.filterwarnings("ignore:.*the weights were damaged")
@pytest.mark.parametrize("is_own", [True, False], ids=["own loader", "R8's batches"])
def test_a_restore_brings_cumulative_statistics_back(is_own):
    """They are to the bit those of the batches that count, tests of the weights not among them."""
    model, learned, backs = train(is_own=is_own, damaged_at=25)

    assert backs[-1] <= 25
    assert model[1].num_batches_tracked == len(learned)
    assert equal(model.state_dict().values(), train_by_hand(learned).state_dict().values())
