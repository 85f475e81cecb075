"""Ensemble targets: which networks are held to what they have said, and how."""

import re

import numpy as np
import pytest
import torch
from torch.nn import functional

from learnit_r8 import Focus
from learnit_r8.torch import attach
from learnit_r8.torch.ensemble_targets import EnsembleTargets

SIZE, EPOCHS, BATCH = 600, 14, 50


class Run:
    """A training on clouds of points, whose labels are wrong for two in five; its network is wide, or hardly learns."""

    def __init__(self, lr=0.1, *, share=0.4, **settings):
        torch.manual_seed(1)
        centres, right = torch.randn(4, 20), torch.arange(2 * SIZE) % 4
        inputs = centres[right] + torch.randn(2 * SIZE, 20)
        self.labels = torch.where(torch.rand(2 * SIZE) < share, (right + torch.randint(1, 4, (2 * SIZE,))) % 4, right)
        self.held_out, self.right = inputs[SIZE:], right[SIZE:]
        self.model = torch.nn.Sequential(torch.nn.Linear(20, 256), torch.nn.ReLU(), torch.nn.Linear(256, 4))
        self.adapter = attach(
            self.model, torch.optim.SGD(self.model.parameters(), lr=lr, momentum=0.9),
            torch.utils.data.TensorDataset(inputs[:SIZE], self.labels[:SIZE]),
            batch_size=BATCH, num_epochs=EPOCHS, groups=self.labels[:SIZE].numpy(),
            policy=Focus(noise_guard="weigh"), **settings,
        )  # fmt: skip

    def train(self, *, own_loss=False, stop=None):
        """Train to the end, or to an epoch; with ``own_loss`` by a loss that R8 is only told of."""
        adapter, loss = self.adapter, functional.cross_entropy
        for epoch in adapter.epochs():
            if epoch == stop:
                break
            for x, y in adapter.loader():
                said = self.model(x)
                if own_loss:
                    adapter.step(adapter.loss(loss(said, y, reduction="none"), logits=said, targets=y))
                else:
                    adapter.step(adapter.cross_entropy(said, y))
        return self

    @property
    def is_held(self):
        return self.adapter.state.read()["ensemble targets"]["is_held"]

    @property
    def accuracy(self):
        with torch.no_grad():
            return float((self.model(self.held_out).argmax(1) == self.right).float().mean())

    @property
    def weights(self):
        return torch.cat([each.detach().reshape(-1) for each in self.model.parameters()])


@pytest.fixture(scope="module")
def held():
    """A run that memorises, trained to its end."""
    return Run().train()


def test_a_network_that_memorises_is_held(held):
    """It ends with more right than one with weights alone, and its lists go by the margins of before."""
    alone = Run().train(own_loss=True)

    assert held.is_held
    assert not alone.is_held
    assert held.accuracy > alone.accuracy + 0.05
    assert held.adapter.table.storage.trust == "early"


def test_one_that_is_far_from_fitting_is_not():
    """It is trained as if there were no targets, to the bit."""
    held, alone = Run(lr=0.001).train(), Run(lr=0.001).train(own_loss=True)

    assert not held.is_held
    assert torch.equal(held.weights, alone.weights)


def test_one_that_learns_right_labels_alone_is_held_as_soon_as_it_is_sure():
    """Before half of the budget, though it has learned hardly one of the wrong labels, and is none the worse for it."""
    run = Run(lr=0.01)
    run.train(stop=7)
    held, alone = Run(lr=0.01).train(), Run(lr=0.01).train(own_loss=True)

    assert run.is_held
    assert run.adapter.table.overview().memorised < 0.1
    assert held.accuracy >= alone.accuracy


def test_resume_is_exact(held, tmp_path):
    """Before it is decided, and after."""
    for stop in (3, 8):
        run = Run(checkpoint_dir=tmp_path, **({} if stop == 3 else {"resume": "auto"})).train(stop=stop)
        run.adapter.scheduler.save_checkpoint()
    resumed = Run(checkpoint_dir=tmp_path, resume="auto").train()

    assert resumed.is_held
    assert torch.equal(resumed.weights, held.weights)


def test_penalty_is_that_of_the_paper():
    """3 log(1 - <mean, said now>), where the mean moves by 0.3 at each visit, this one included."""
    r8, targets = Run().adapter.scheduler, EnsembleTargets(6)
    targets.load_state_dict({"said": torch.zeros(6, 0, dtype=torch.float16), "is_held": True})
    generator, mean = torch.Generator().manual_seed(0), np.zeros((6, 3))
    for _ in range(4):
        rows, logits = np.array([4, 1]), torch.randn(2, 3, generator=generator)
        chance = logits.softmax(1).numpy()
        mean[rows] = 0.7 * mean[rows] + 0.3 * chance
        penalty = targets.penalty(r8, rows, logits)

        np.testing.assert_allclose(penalty.numpy(), 3 * np.log(1 - (mean[rows] * chance).sum(1)), atol=5e-3)


def test_what_is_not_finite_does_not_stay():
    """A batch that is refused leaves what was said before."""
    r8, targets = Run().adapter.scheduler, EnsembleTargets(2)
    targets.penalty(r8, np.arange(2), torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    before = targets.state_dict()["said"].clone()
    targets.penalty(r8, np.arange(2), torch.full((2, 2), float("nan")))

    assert torch.equal(targets.state_dict()["said"], before)


def test_one_logit_is_that_of_the_second_class():
    """As in `cross_entropy`."""
    r8, one, two = Run().adapter.scheduler, EnsembleTargets(2), EnsembleTargets(2)
    one.penalty(r8, np.arange(2), torch.tensor([[1.5], [-2.0]]))
    two.penalty(r8, np.arange(2), torch.tensor([[0.0, 1.5], [0.0, -2.0]]))

    assert torch.equal(one.state_dict()["said"], two.state_dict()["said"])


def test_too_many_numbers_are_not_kept():
    """Of 2**26 in all there are none, and no penalty."""
    targets = EnsembleTargets(2**16)

    assert targets.penalty(Run().adapter.scheduler, np.arange(2), torch.zeros(2, 2**10)) is None
    assert not targets.state_dict()["said"].numel()


def test_states_of_before_and_of_others():
    """A state without targets can be put back; one of another number of samples cannot."""
    run = Run()
    state = run.adapter.state.collect()
    del state["ensemble targets"]
    run.adapter.state.take_over(state)
    with pytest.raises(ValueError, match=re.escape("must be those of 600 samples, got 5")):
        EnsembleTargets(SIZE).load_state_dict(EnsembleTargets(5).state_dict())
