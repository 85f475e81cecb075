"""accelerate's prepared loaders, kept: to the bit what the script does alone, resumed, and one NaN healed."""

import pytest

torch = pytest.importorskip("torch")
accelerate = pytest.importorskip("accelerate")
pytest.importorskip("sklearn")

from accelerate import Accelerator, skip_first_batches
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from learnit_r8.engine.settings import grouped
from learnit_r8.torch import attach
from tests.torch.accelerate_common import DATA, STEPS
from tests.torch_common import equal

pytestmark = pytest.mark.filterwarnings("ignore")


class Training:
    """Three epochs over a prepared loader, with a prepared rate."""

    def __init__(self, *, accumulate=1, with_r8=True, **settings):
        torch.manual_seed(0)
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(32, 10)
        )
        optimizer = torch.optim.SGD(self.net.parameters(), lr=0.2, momentum=0.9)
        parts = (self.net, optimizer, DataLoader(DATA, 32, shuffle=True), torch.optim.lr_scheduler.StepLR(optimizer, 9))
        self.model, self.optimizer, self.loader, self.rates = self.accelerator.prepare(*parts)
        self.adapter = None
        if with_r8:
            given = {"num_epochs": 3, "accumulate": accumulate, **settings}
            self.adapter = attach(self.model, self.optimizer, self.loader, **grouped(given))
            self.accelerator.register_for_checkpointing(self.adapter.lr_scheduler)

    def run(self, *, nan_at=None, save=None, skip=0):
        adapter, number = self.adapter, 0
        for epoch in range(3) if adapter is None else adapter.epochs():
            loader = skip_first_batches(self.loader, skip) if skip else self.loader
            for x, y in loader if adapter is None else adapter.batches(loader):
                number += 1
                if number == nan_at:
                    self.net[0].weight.data[0, 0] = float("nan")
                with self.accelerator.accumulate(self.model):
                    loss = cross_entropy(self.model(x), y)
                    if adapter is None or adapter.report(loss):
                        self.accelerator.backward(loss)
                        self.optimizer.step()
                        self.rates.step()
                    self.optimizer.zero_grad()
                if save is not None and number == save[1]:
                    self.accelerator.save_state(save[0])
            assert epoch < 3
        return self

    def state(self):
        leaves = torch.utils._pytree.tree_leaves([self.optimizer.state_dict(), self.rates.state_dict()])
        return [*self.net.state_dict().values(), torch.get_rng_state(), *leaves]


def test_nothing_changes_without_an_incident_and_a_nan_is_healed():
    """With accumulated gradients weights, optimizer, rate and generators are those of the script alone; one NaN in the
    weights goes back."""
    plain = Training(accumulate=3, with_r8=False).run()
    watched = Training(accumulate=3).run()

    assert equal(plain.state(), watched.state())
    assert watched.adapter.scheduler.global_step == 3 * STEPS

    hurt = Training(accumulate=3, backup_every=6).run(nan_at=20)
    assert hurt.adapter.scheduler.sentry.num_refused >= 1
    assert all(each.isfinite().all() for each in hurt.net.parameters())


def test_resumes_by_its_own_state(tmp_path):
    """``load_state`` of accelerate's brings the run to its next batch; skipping batches besides is refused."""
    whole = Training().run(save=(tmp_path, 20)).state()
    again = Training()
    again.accelerator.load_state(tmp_path)
    torch.manual_seed(5)
    again.run()

    assert again.adapter.scheduler.global_step == 3 * STEPS
    assert equal(whole, again.state())

    third = Training()
    third.accelerator.load_state(tmp_path)
    with pytest.raises(ValueError, match=r"skip_first_batches\(\) must be left out"):
        third.run(skip=7)


def test_a_loop_that_never_ends_is_told(monkeypatch):
    """Where an endless generator goes on after the budget was spent, an error says so in place of a hang."""
    monkeypatch.setattr("learnit_r8.engine.run_state.MOST_IN_VAIN", 1100)
    training = Training(num_epochs=None, num_steps=2)

    def train():
        while True:
            for x, y in training.adapter.batches():
                training.adapter.report(cross_entropy(training.model(x), y))

    with pytest.raises(RuntimeError, match="spent at step 2, and 1,100 loops since then have trained nothing"):
        train()
