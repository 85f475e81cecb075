"""Losses that stay on their device: nothing waits for it, and verdicts lag by at most 16 steps."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn.functional import cross_entropy

from learnit_r8 import TrainingDiverged
from learnit_r8.guard import Verdict
from learnit_r8.torch.readback import MOST_LAG, HostCopy, Readback, SingleProcess, readback_on
from tests.torch_common import STEPS, adapted, no_steady, train, weights


class Late:
    """A copy that is done when some more were begun, as one of a busy device is."""

    def __init__(self, values, device):
        self.values, self.device, self.is_waited_for = values.clone(), device, False
        self.done_at = device.num_copies + device.behind
        device.num_copies += 1

    def is_done(self):
        return self.is_waited_for or self.device.num_copies > self.done_at

    def wait(self):
        self.is_waited_for = True

    def read(self):
        assert self.is_done(), "read before it was there"
        return self.values.numpy()


class Slow(SingleProcess):
    """A device that is so many steps behind."""

    def __init__(self, behind):
        self.behind, self.num_copies = behind, 0
        self.made = self.readback(None)

    def readback(self, device):
        self.made = Readback(lambda values: Late(values, self))
        return self.made


def test_nothing_waits():
    """A step on a device that is a few steps behind makes the host wait for nothing."""
    adapter = adapted(sharing=Slow(3))
    outcomes = train(adapter, epochs=1)

    assert adapter.num_waits == 0
    assert outcomes[0].verdict is Verdict.PENDING
    assert all(outcomes)


def test_every_loss_arrives():
    """At the end of each epoch every loss is known, before the next is planned."""
    late, prompt = adapted(sharing=Slow(3), policy="balanced", num_epochs=3), adapted(policy="balanced", num_epochs=3)
    train(late)
    train(prompt)

    assert late.finished
    np.testing.assert_array_equal(late.scheduler.table.loss, prompt.scheduler.table.loss)
    assert np.array_equal(weights(late.model), weights(prompt.model))


def test_a_verdict_lags_by_at_most_16_steps():
    """A device that is further behind is waited for, and only then."""
    adapter = adapted(sharing=(slow := Slow(10**6)), num_epochs=4)
    most = 0
    for x, y in adapter.loader():
        adapter.step(adapter.loss(cross_entropy(adapter.model(x), y, reduction="none")))
        most = max(most, len(slow.made))
    first = adapter.num_waits
    assert first == 0
    for x, y in adapter.loader():
        adapter.step(adapter.loss(cross_entropy(adapter.model(x), y, reduction="none")))
        most = max(most, len(slow.made))

    assert most <= MOST_LAG


def test_no_more_than_16_under_way():
    """Beyond 16 copies the oldest is waited for."""
    readback = Slow(10**6).made
    for number in range(40):
        readback.put(number, torch.ones(1))
        readback.ready()

    assert len(readback) == MOST_LAG
    assert readback.num_waits == 40 - MOST_LAG


def test_order_is_kept():
    """Values come in the order they were sent, whichever copy is done first."""
    device = Slow(3)
    taken = []
    for number in range(5):
        device.made.put(number, torch.tensor([float(number)]))
        device.behind = 0
        taken.append([item for item, _ in device.made.ready()])

    assert taken == [[], [], [], [0, 1, 2, 3], [4]]


RESTORES = pytest.mark.filterwarnings(
    "ignore:.*the weights were damaged", "ignore:more than half of the last 100", "ignore:.*a gradient is not finite"
)


@RESTORES
@pytest.mark.parametrize(("nan_at", "workers"), [(0, 0), (4, 0), (STEPS - 1, 0), (STEPS, 0), (STEPS - 1, 1)])
def test_nan_heals_late(nan_at, workers):
    """A NaN is found some steps later: the model goes back, and what was trained since does not count."""
    adapter = adapted(sharing=Slow(5), recovery=no_steady(), num_epochs=3, backup_every=10)
    outcomes = train(adapter, adapter.loader(num_workers=workers), nan_at=[nan_at])
    uses = adapter.scheduler.table.usage_count

    assert len(outcomes) == adapter.scheduler.global_step + adapter.scheduler.pace.probes == 3 * STEPS
    assert np.isfinite(weights(adapter.model)).all()
    assert np.isfinite(adapter.scheduler.table.loss).all()
    # The batch itself, those that were on their way, and probes.
    assert 3 * 200 - 10 * 16 <= uses.sum() < 3 * 200
    # A probe that has passed is trained on once more.
    assert uses.max() <= 4


@RESTORES
@pytest.mark.filterwarnings("ignore:losses or weights were not finite")
def test_losses_that_are_heard_together_with_a_restore_are_closed():
    """Where an epoch ends several are read at once: those behind the one that puts the model back are given up."""
    adapter = adapted(sharing=Slow(5), recovery=no_steady(), num_epochs=2, backup_every=4)
    number, out = 0, []
    for _ in adapter.epochs():
        for x, y in adapter.loader():
            if number == STEPS - 3:
                adapter.model[0].weight.data[0, 0] = float("nan")
            number += 1
            adapter.step(adapter.loss(cross_entropy(adapter.model(x), y, reduction="none")))
        out.append(adapter.scheduler.pace.num_out)

    assert adapter.state.num_loads
    assert (out, adapter.finished) == ([0, 0], True)


@RESTORES
def test_a_poisoned_run_is_given_up_late_too():
    """Losses that stay bad end the run, though each is known late."""
    adapter = adapted(sharing=Slow(2), num_epochs=8, recovery=no_steady(max_refused=20))
    with pytest.raises(TrainingDiverged):
        train(adapter, nan_at=range(3, 999))

    assert np.isfinite(weights(adapter.model)).all()


@RESTORES
def test_batch_after_a_late_refusal_is_not_stepped():
    """The gradient of weights that are gone is dropped."""
    adapter = adapted(sharing=Slow(2), num_epochs=3, backup_every=10)
    outcomes = train(adapter, nan_at=[5])
    refused = [number for number, outcome in enumerate(outcomes) if not outcome]

    assert refused[0] > 5
    assert outcomes[refused[0]].rolled_back_to is not None


@pytest.mark.filterwarnings("ignore:the run was closed")
def test_checkpoint_waits_for_losses(tmp_path):
    """A checkpoint holds the losses of all steps that its model has taken."""
    adapter = adapted(sharing=Slow(9), checkpoint_dir=tmp_path, checkpoint_every=5)
    for x, y in adapter.loader():
        adapter.step(adapter.loss(cross_entropy(adapter.model(x), y, reduction="none")))
    adapter.scheduler.close()
    steps = {
        int(adapter.scheduler.host.persistence.store.load(path).state["pace"]["step"])
        for path in tmp_path.glob("ck_*.r8")
    }

    # Asked for at step 5 as it is known on the host, some steps behind the model.
    assert all(step > 5 for step in steps)
    assert STEPS in steps


def test_search_knows_each_loss():
    """A search for the rate waits for each loss, as the next rate depends on it."""
    adapter = adapted(sharing=Slow(4), auto_find_lr=True, num_epochs=6)
    train(adapter)

    assert adapter.scheduler.host.rates.found_lr is not None


@pytest.mark.parametrize("fetches", [False, True])
def test_main_memory_is_read_at_once(fetches):
    """On a CPU everything is immediate; and what was sent can be changed afterwards where it is kept."""
    cpu = torch.device("cpu")
    readback = (
        Readback(lambda values: HostCopy(values.clone()), waits=True) if fetches else readback_on(cpu, keeps=True)
    )
    values = torch.ones(3)
    readback.put("a", values)
    values.zero_()

    assert len(readback) == 1
    [(item, read)] = readback.ready()
    assert (item, read.tolist()) == ("a", [1, 1, 1])
    assert readback.num_waits == fetches


def test_forgetting():
    """What is forgotten is named, in order."""
    for readback in (readback_on(torch.device("cpu")), Slow(9).made):
        for number in range(3):
            readback.put(number, torch.ones(1))

        assert readback.clear() == [0, 1, 2]
        assert len(readback) == 0


def test_other_devices_are_waited_for():
    """What is neither in main memory nor on a GPU of NVIDIA is fetched at once, and each wait is counted."""
    readback = readback_on(torch.device("mps"))
    readback.put("a", torch.ones(1))

    assert [(item, read.tolist()) for item, read in readback.ready()] == [("a", [1])]
    assert readback.num_waits == 1


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.gpu
@needs_gpu
def test_no_synchronisation_on_a_gpu():
    """torch itself finds no synchronisation in a step."""
    from tests.torch_common import X, Y, classifier, sgd

    model = classifier().cuda()
    adapter = adapted(model=model, optimizer=sgd(model), num_epochs=4, backup_every=10**6)
    images, labels = X.cuda(), Y.cuda()
    batches = adapter.sampler
    for epoch in adapter.epochs():
        for rows in batches:
            x, y = images[rows], labels[rows]
            torch.cuda.set_sync_debug_mode("error" if epoch else "default")
            adapter.step(adapter.loss(cross_entropy(model(x), y, reduction="none")))
            torch.cuda.set_sync_debug_mode("default")

    assert adapter.num_waits <= 1


@pytest.mark.gpu
@needs_gpu
def test_nan_heals_on_a_gpu():
    """Backups are in pinned memory, and a NaN heals."""
    from tests.torch_common import X, Y, classifier, sgd

    model = classifier().cuda()
    adapter = adapted(model=model, optimizer=sgd(model), num_epochs=4, recovery=no_steady())
    images, labels = X.cuda(), Y.cuda()
    for number, rows in enumerate(rows for _ in adapter.epochs() for rows in adapter.sampler):
        losses = cross_entropy(model(images[rows]), labels[rows], reduction="none")
        adapter.step(adapter.loss(losses * (float("nan") if number == 20 else 1)))

    assert all(torch.isfinite(each).all() for each in model.state_dict().values())
    assert adapter.finished
