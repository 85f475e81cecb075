"""What logits say about labels travels with the losses, by whatever way a loop takes."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from learnit_r8 import R8Scheduler, predictions_of
from learnit_r8.torch import R8BatchSampler
from learnit_r8.torch.losses import cross_entropies
from learnit_r8.torch.predictions import pack, packed
from learnit_r8.torch.predictions import predictions_of as tensors_of
from tests.drive import evidence_of
from tests.torch.test_readback import Slow
from tests.torch_common import DIGITS, STEPS, X, Y, adapted, classifier, descend, weights

FIELDS = ("margin", "early", "visits", "given", "leader", "lead")


def evidence(adapter):
    return evidence_of(adapter.scheduler)


def by_losses(adapter, x, y):
    logits = adapter.model(x)
    return adapter.step(adapter.loss(cross_entropy(logits, y, reduction="none"), logits=logits, targets=y))


def by_cross_entropy(adapter, x, y):
    return adapter.step(adapter.cross_entropy(adapter.model(x), y))


def by_report(adapter, x, y):
    loss = adapter.cross_entropy(adapter.model(x), y)
    if adapter.report():
        loss.backward()
        adapter.optimizer.step()
    adapter.optimizer.zero_grad()
    return adapter.outcome


def by_losses_alone(adapter, x, y):
    return adapter.step(adapter.loss(cross_entropy(adapter.model(x), y, reduction="none")))


def train(adapter, step=by_cross_entropy, loader=None, epochs=2):
    loader = adapter.loader() if loader is None else loader
    for _ in range(epochs):
        for x, y in loader:
            step(adapter, x, y)
    return adapter


@pytest.mark.parametrize("step", [by_losses, by_report])
def test_every_way_reports_the_same(step):
    """Losses with logits, the cross entropy computed by us, and a loop of one's own give the same evidence."""
    expected, found = train(adapted()), train(adapted(), step)

    assert evidence(found)["visits"].min() == 2
    for name in FIELDS:
        np.testing.assert_array_equal(evidence(found)[name], evidence(expected)[name])
    np.testing.assert_array_equal(weights(found.model), weights(expected.model))


def test_training_is_that_without_predictions():
    """To report what the logits say changes neither a weight nor a loss."""
    plain, judged = train(adapted(), by_losses_alone), train(adapted())

    assert plain.scheduler.table.storage.evidence.whole is None
    np.testing.assert_array_equal(weights(plain.model), weights(judged.model))
    np.testing.assert_array_equal(plain.scheduler.table.last, judged.scheduler.table.last)


def test_evidence_is_that_of_the_logits():
    """After one epoch every record holds what its own logits said, with its own label."""
    said = {}
    adapter = adapted()
    places = {tuple(row): index for index, row in enumerate(X.tolist())}
    for x, y in adapter.loader():
        logits = adapter.model(x)
        indices = [places[tuple(row)] for row in x.tolist()]
        said |= dict(zip(indices, predictions_of(logits.detach().numpy(), y.numpy()).margin, strict=True))
        adapter.step(adapter.cross_entropy(logits, y))
    known = evidence(adapter)

    assert len(said) == 200
    np.testing.assert_array_equal(known["given"], Y.numpy())
    np.testing.assert_allclose(known["margin"], [said[index] for index in range(200)], rtol=1e-6)


@pytest.mark.parametrize("settings", [{"accumulate": 4}, {"max_grad_norm": 0.5}])
def test_accumulation_and_clipping_keep_the_evidence(settings):
    """Each micro-batch brings its own predictions, and the norm of the gradient travels with them."""
    adapter = train(adapted(**settings))

    assert evidence(adapter)["visits"].tolist() == [2] * 200
    np.testing.assert_array_equal(evidence(adapter)["given"], Y.numpy())


def test_workers_keep_the_evidence():
    """A loader with workers, which fetches ahead, gives the evidence of one without."""
    expected, found = train(adapted()), adapted()
    train(found, loader=found.loader(num_workers=1))

    for name in FIELDS:
        np.testing.assert_array_equal(evidence(found)[name], evidence(expected)[name])


def test_loader_and_loop_of_your_own():
    """A plain DataLoader over R8BatchSampler and update_with_loss() keep the evidence of the adapter."""
    expected = train(adapted())
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    r8 = R8Scheduler(200, batch_size=16, num_epochs=2, initial_lr=0.1)
    loader = DataLoader(DIGITS, batch_sampler=R8BatchSampler(r8))
    for _ in range(2):
        for x, y in loader:
            logits = model(x)
            losses = cross_entropy(logits, y, reduction="none")
            r8.update_with_loss(losses, predictions=tensors_of(logits, y))
            descend(optimizer, losses.mean())

    assert evidence_of(r8)["visits"].tolist() == [2] * 200
    np.testing.assert_array_equal(evidence_of(r8)["given"], evidence(expected)["given"])


def test_device_that_is_behind_is_not_waited_for():
    """Predictions are read back with the losses: nothing waits for a device that is three steps behind."""
    expected, found = train(adapted()), train(adapted(sharing=Slow(3)))

    assert found.num_waits == 0
    for name in FIELDS:
        np.testing.assert_array_equal(evidence(found)[name], evidence(expected)[name])


def test_resumed_run_has_the_same_evidence(tmp_path):
    """A run that is left in mid-epoch and resumed ends with the evidence of one that was not."""
    whole, first = train(adapted()), adapted(checkpoint_dir=tmp_path)
    for number, (x, y) in enumerate(first.loader()):
        if number == 5:
            break
        by_cross_entropy(first, x, y)
    state = first.state_dict()
    resumed = adapted()
    resumed.load_state_dict(state)
    loader = resumed.loader()
    for _ in range(2):
        for x, y in loader:
            by_cross_entropy(resumed, x, y)

    for name in FIELDS:
        np.testing.assert_array_equal(evidence(resumed)[name], evidence(whole)[name])


def test_refused_batch_leaves_no_evidence():
    """Predictions of a batch whose loss is refused are dropped with it."""
    adapter = adapted(num_epochs=1)
    for step, (x, y) in enumerate(adapter.loader()):
        if step == 5:
            break
        logits = adapter.model(x) * (float("nan") if step == 3 else 1.0)
        outcome = adapter.step(adapter.cross_entropy(logits, y))
        assert bool(outcome) == (step != 3)

    assert (evidence(adapter)["visits"] > 0).sum() == 4 * 16
    assert np.isfinite(evidence(adapter)["margin"]).all()


def test_one_logit_is_enough_for_two_classes():
    """A binary model with one output reports the evidence of two classes, and trains on the binary cross entropy."""
    model = torch.nn.Sequential(torch.nn.Linear(64, 1))
    data = TensorDataset(X, Y % 2)
    adapter = adapted(data, model=model, batch_size=200, num_epochs=1)
    (x, y) = next(iter(adapter.loader()))
    loss = adapter.cross_entropy(model(x), y)
    expected = binary_cross_entropy_with_logits(model(x)[:, 0], y.float())
    adapter.step(loss)

    assert float(loss.detach()) == pytest.approx(float(expected.detach()))
    assert adapter.scheduler.table.storage.evidence.num_classes == 2
    assert evidence(adapter)["given"].tolist() == (Y % 2).tolist()


def test_smoothing_of_two_classes_is_that_of_two_logits():
    """One logit is the second of two classes, whose first is 0, with label smoothing, too."""
    logits, labels = torch.randn(8), torch.tensor([0, 1] * 4)
    both = torch.stack([torch.zeros(8), logits], dim=1)
    losses, _ = cross_entropies(logits, labels, class_weights=None, label_smoothing=0.2)

    torch.testing.assert_close(losses, cross_entropy(both, labels, reduction="none", label_smoothing=0.2))


def test_weights_and_smoothing_train_as_those_of_torch():
    """Class weights and label smoothing change what is trained on as in torch; the evidence is of the label itself."""
    class_weights = torch.linspace(0.5, 2, 10)
    adapter = adapted(batch_size=200, num_epochs=1)
    (x, y) = next(iter(adapter.loader()))
    logits = adapter.model(x)
    weighted = adapter.cross_entropy(logits, y, class_weights=class_weights)
    adapter.step(weighted)
    smooth = adapted(batch_size=200, num_epochs=1)
    (x, y) = next(iter(smooth.loader()))
    smoothed = smooth.cross_entropy(smooth.model(x), y, label_smoothing=0.2)
    smooth.step(smoothed)

    assert float(weighted.detach()) == pytest.approx(float(cross_entropy(logits, y, weight=class_weights).detach()))
    plain = adapted(batch_size=200, num_epochs=1)
    (x, y) = next(iter(plain.loader()))
    plain.step(plain.cross_entropy(plain.model(x), y))
    np.testing.assert_array_equal(evidence(smooth)["margin"], evidence(plain)["margin"])
    assert not np.allclose(smooth.scheduler.table.last, plain.scheduler.table.last)


@pytest.mark.parametrize("marker", [-1, -100])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("num_logits", [1, 10])
def test_sample_without_label_is_left_out(num_logits, weighted, marker):
    """Its loss is 0, without a gradient; the mean is that of the others, as with torch's ignore_index."""
    model = torch.nn.Linear(64, num_logits)
    adapter = adapted(TensorDataset(X, Y % max(num_logits, 2)), model=model, batch_size=200, num_epochs=1)
    (x, y) = next(iter(adapter.loader()))
    y[:50] = marker
    logits = model(x)
    logits.retain_grad()
    class_weights = torch.linspace(0.5, 2, max(num_logits, 2)) if weighted else None
    loss = adapter.cross_entropy(logits, y, class_weights=class_weights)
    scores = torch.cat([torch.zeros_like(logits), logits], 1) if num_logits == 1 else logits
    expected = cross_entropy(scores[50:], y[50:], weight=class_weights)
    adapter.step(loss)

    assert float(loss.detach()) == pytest.approx(float(expected.detach()))
    assert logits.grad.any(1).tolist() == [False] * 50 + [True] * 150
    assert (adapter.scheduler.table.last == 0).sum() == 50
    np.testing.assert_array_equal(evidence(adapter)["visits"] == 0, adapter.scheduler.table.last == 0)


def test_batch_without_any_label_teaches_nothing():
    """There is no 0 / 0."""
    adapter = adapted()
    x, y = next(iter(adapter.loader()))
    before = weights(adapter.model)
    loss = adapter.cross_entropy(adapter.model(x), torch.full_like(y, -100))
    adapter.step(loss)

    assert float(loss.detach()) == 0
    np.testing.assert_array_equal(weights(adapter.model), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_is_pack_of_predictions(dtype):
    """The quick way on a CPU gives the numbers of the way on a device."""
    logits, losses = torch.randn(20, 7, generator=torch.manual_seed(0)).to(dtype), torch.rand(20)
    targets = torch.arange(20) % 7
    assert tensors_of(logits, torch.full((20,), -100)).given.tolist() == [-1] * 20
    quick, classes = packed(losses, logits, targets)

    assert classes == 7
    np.testing.assert_allclose(
        quick.reshape(4, 20).numpy(), pack(losses, tensors_of(logits, targets)).numpy(), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"logits": "z"}, ValueError, r"^logits and targets must be given together, got no targets\.$"),
        ({"targets": "y"}, ValueError, r"got no logits\.$"),
        (
            {"logits": "z", "targets": "y", "losses": "mean"},
            ValueError,
            r"^logits need one loss for each sample",
        ),
        ({"logits": "z", "targets": "y", "exact": False}, ValueError, r"got losses of mixed samples"),
        ({"logits": "z", "targets": "y", "mask": "m"}, ValueError, r"got several losses a sample"),
        (
            {"logits": "z", "targets": "real"},
            ValueError,
            r"^targets must be whole numbers, the classes; for numbers",
        ),
        ({"logits": "z", "targets": "many"}, ValueError, r"with several labels a sample, no single class"),
        ({"logits": "tokens", "targets": "y"}, ValueError, r"got \(16, 3, 10\) and \(16,\)"),
        ({"logits": "z", "targets": "high"}, ValueError, r"^targets must be in \[0, 10\), got values from 99 to 99\.$"),
        ({"logits": "list", "targets": "y"}, TypeError, r"^logits must be a tensor, got a list\.$"),
    ],
)
def test_what_has_no_single_label_is_refused(given, error, said):
    """Means, mixed samples, sequences, several labels and real targets are refused before anything changes."""
    adapter = adapted()
    x, y = next(iter(adapter.loader()))
    z = adapter.model(x)
    values = {
        "z": z, "y": y, "m": torch.ones(16), "real": y.float(), "many": torch.zeros(16, 10), "list": [1],
        "tokens": torch.zeros(16, 3, 10), "high": torch.full((16,), 99), "mean": z.mean(),
    }  # fmt: skip
    named = {name: values.get(value, value) if isinstance(value, str) else value for name, value in given.items()}
    losses = named.pop("losses", cross_entropy(z, y, reduction="none"))
    with pytest.raises(error, match=said):
        adapter.loss(losses, **named)
    by_cross_entropy(adapter, x, y)

    assert adapter.scheduler.global_step == 1
    assert (evidence(adapter)["visits"] > 0).sum() == 16


def test_kind_that_changes_is_refused():
    """The number of classes stays: another one is refused, and the next batch goes on."""
    adapter = adapted()
    loader = iter(adapter.loader())
    by_cross_entropy(adapter, *next(loader))
    x, y = next(loader)
    with pytest.raises(ValueError, match=r"predictions\.num_classes must stay 10, as reported first, got 12\."):
        adapter.step(adapter.cross_entropy(torch.cat([adapter.model(x), torch.zeros(16, 2)], 1), y))


def test_steps_without_predictions_in_between_are_fine():
    """Batches may come without predictions: their samples keep what they had."""
    adapter = adapted(num_epochs=1)
    for number, (x, y) in enumerate(adapter.loader()):
        (by_cross_entropy if number % 2 else by_losses_alone)(adapter, x, y)

    assert (evidence(adapter)["visits"] > 0).sum() == 16 * (STEPS // 2)
    assert len(DIGITS) == 200
